//! An origin that speaks HTTP/2 by prior knowledge.

use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::fixture::{End, Reply};
use super::http1::split_header;
use super::origin::{Scripts, reply_body};
use super::seen::{body_line, map_lines};

pub(crate) async fn serve(stream: TcpStream, name: &str, scripts: &Scripts) {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let (name, scripts) = (name.to_owned(), scripts.clone());
                streams.spawn(async move { one(request, respond, &name, &scripts).await });
            }
            Some(ended) = streams.join_next(), if !streams.is_empty() => {
                if ended.is_ok_and(|end| end == End::Close) {
                    return; // what was written last goes with the connection
                }
            }
        }
    }
}

async fn one(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: &str,
    scripts: &Scripts,
) -> End {
    let (head, mut body) = request.into_parts();
    let tag = head.headers.get("x-case").and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned();
    let (number, reply) = scripts.attempt(&tag, name);
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let first = format!("{} {path} over HTTP/2", head.method);
    let scheme = format!("  :scheme: {}", head.uri.scheme_str().unwrap_or("none"));
    let authority = format!("  :authority: {}", head.uri.authority().map_or("none", |a| a.as_str()));
    scripts.add(&tag, number, [first, scheme, authority].into_iter().chain(map_lines(&head.headers)));
    if !reply.early {
        read(&mut body, |lines| scripts.add(&tag, number, lines)).await;
    }
    answer(&mut respond, &reply, name, |line| scripts.add(&tag, number, [line])).await;
    if reply.early {
        read(&mut body, |lines| scripts.add(&tag, number, lines)).await;
    }
    scripts.done(&tag, number);
    reply.end
}

async fn read(body: &mut RecvStream, see: impl FnOnce(Vec<String>)) {
    let (mut data, mut complete) = (Vec::new(), true);
    while let Some(chunk) = body.data().await {
        let Ok(chunk) = chunk else {
            complete = false;
            break;
        };
        let _ = body.flow_control().release_capacity(chunk.len());
        data.extend_from_slice(&chunk);
    }
    let mut lines = vec![body_line(&data, complete)];
    if complete && let Ok(Some(trailers)) = body.trailers().await {
        lines.extend(map_lines(&trailers).into_iter().map(|line| format!("  trailer{}", &line[1..])));
    }
    see(lines);
}

async fn answer(respond: &mut SendResponse<Bytes>, reply: &Reply, name: &str, see: impl FnOnce(String)) {
    sleep(Duration::from_millis(reply.after)).await;
    let code = Reason::from(reply.code.unwrap_or_else(|| Reason::INTERNAL_ERROR.into()));
    if reply.nothing {
        if reply.end == End::Reset {
            respond.send_reset(code);
        } else if reply.end == End::Hang {
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            see(reset.map_or_else(
                |error| format!("  then the connection ended: {error}"),
                |reason| format!("  then a reset: {reason:?}"),
            ));
        }
        return;
    }
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(reply.status.unwrap_or(200)).unwrap_or_default();
    *response.headers_mut() = header_map(&reply.headers);
    let data = Bytes::from(reply_body(reply, name));
    let only_head = data.is_empty() && reply.trailers.is_empty() && reply.end == End::Keep && !reply.echo;
    let Ok(mut stream) = respond.send_response(response, only_head) else { return };
    if only_head {
        return;
    }
    sleep(Duration::from_millis(reply.body_after)).await;
    let last = reply.trailers.is_empty() && reply.end == End::Keep;
    let _ = stream.send_data(data, last);
    if reply.end == End::Reset {
        sleep(Duration::from_millis(20)).await; // so that the proxy sees both
        stream.send_reset(code);
    } else if reply.end == End::Keep && !last {
        let _ = stream.send_trailers(header_map(&reply.trailers));
    } else if reply.end == End::Hang {
        let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
    }
}

/// Headers written as `name: value`; what cannot stand in HTTP/2 is a mistake of the fixture.
pub(crate) fn header_map(lines: &[String]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = split_header(line);
        let name = HeaderName::try_from(&*name).unwrap_or_else(|error| panic!("{line}: {error}"));
        let value = HeaderValue::try_from(&*value).unwrap_or_else(|error| panic!("{line}: {error}"));
        headers.append(name, value);
    }
    headers
}
