//! The client of HTTP/2, by prior knowledge.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, SendStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::client::{Given, Pace, open};
use super::fixture::{Request, Tls};
use super::origin_http2::header_map;
use super::seen::{body_line, map_lines};

/// Sends requests one after another on one connection, or all at once.
pub(crate) async fn requests(
    to: SocketAddr,
    tls: Option<&Tls>,
    requests: &[Request],
    at_once: bool,
    tag: &str,
    pace: Pace,
) -> Given {
    let (port, channel, told) = match open(to, tls, pace).await {
        Ok(opened) => opened,
        Err(refused) => return refused,
    };
    let (read, write) = channel.halves();
    let handshake = h2::client::handshake(tokio::io::join(read, write)).await;
    let (sender, connection) = handshake.expect("a preface can be written");
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        connection.await.err().map_or_else(|| "closed".to_owned(), |error| error.to_string())
    });
    let mut streams = JoinSet::new();
    let mut lines = Vec::new();
    let mut answers = 0;
    for (index, request) in requests.iter().enumerate() {
        let (sender, request, tag) = (sender.clone(), request.clone(), tag.to_owned());
        streams.spawn(async move {
            let told = timeout(pace.answer, one(sender, &request, &tag)).await;
            (index, told.unwrap_or_else(|_elapsed| vec!["nothing more".to_owned()]))
        });
        if !at_once {
            let (_, told) = streams.join_next().await.expect("one was begun").expect("it does not panic");
            lines.extend(told);
        }
    }
    let mut later: Vec<(usize, Vec<String>)> = streams.join_all().await;
    later.sort();
    lines.extend(later.into_iter().flat_map(|(_, told)| told));
    answers += lines.iter().filter(|line| line.starts_with("HTTP/2 ")).count();
    let end = timeout(pace.settle, driver.join_next()).await;
    lines.push(match end {
        Err(_elapsed) => "connection stays open".to_owned(),
        Ok(end) => format!("connection ended: {}", end.and_then(Result::ok).unwrap_or_default()),
    });
    let lines = lines.into_iter().map(|line| format!("client got {line}"));
    Given { port, lines: told.into_iter().chain(lines).collect(), answers }
}

async fn one(sender: SendRequest<Bytes>, request: &Request, tag: &str) -> Vec<String> {
    sleep(Duration::from_millis(request.after)).await;
    let uri = if request.method() == "CONNECT" && request.protocol.is_none() {
        request.host().to_owned()
    } else {
        format!("{}://{}{}", request.scheme.as_deref().unwrap_or("http"), request.host(), request.path())
    };
    let mut head = http::Request::builder().method(request.method()).uri(uri).version(http::Version::HTTP_2);
    if let Some(headers) = head.headers_mut() {
        *headers = header_map(&request.headers);
        headers.insert("x-case", tag.parse().expect("a tag is a header value"));
    }
    if let Some(protocol) = &request.protocol {
        head = head.extension(Protocol::from(protocol.as_str()));
    }
    let head = head.body(()).unwrap_or_else(|error| panic!("{request:?}: {error}"));
    let Ok(mut sender) = sender.ready().await else { return vec!["no stream can be opened".to_owned()] };
    let body = request.body();
    let only_head = body.is_none() && request.trailers.is_empty() && !request.unfinished;
    let (response, mut stream) = match sender.send_request(head, only_head) {
        Ok(sent) => sent,
        Err(error) => return vec![format!("the request cannot be sent: {error}")],
    };
    if !only_head {
        send_body(&mut stream, request, body.unwrap_or_default());
    }
    if let Some(after) = request.gone_after {
        sleep(Duration::from_millis(after)).await;
        stream.send_reset(Reason::CANCEL);
        return vec!["the client has reset the stream".to_owned()];
    }
    read(response).await
}

fn send_body(stream: &mut SendStream<Bytes>, request: &Request, body: Vec<u8>) {
    let last = request.trailers.is_empty() && !request.unfinished;
    let _ = stream.send_data(Bytes::from(body), last);
    if !last && !request.unfinished {
        let _ = stream.send_trailers(header_map(&request.trailers));
    }
}

async fn read(response: ResponseFuture) -> Vec<String> {
    let (head, mut body) = match response.await {
        Ok(response) => response.into_parts(),
        Err(error) => return vec![ended(&error)],
    };
    let mut lines = vec![format!("HTTP/2 {}", head.status.as_u16())];
    lines.extend(map_lines(&head.headers));
    let (mut data, mut end) = (Vec::new(), None);
    while let Some(chunk) = body.data().await {
        match chunk {
            Ok(chunk) => {
                let _ = body.flow_control().release_capacity(chunk.len());
                data.extend_from_slice(&chunk);
            }
            Err(error) => {
                end = Some(ended(&error));
                break;
            }
        }
    }
    lines.push(body_line(&data, end.is_none()));
    if end.is_none() {
        match body.trailers().await {
            Ok(Some(trailers)) => {
                lines.extend(map_lines(&trailers).into_iter().map(|line| format!("  trailer{}", &line[1..])));
            }
            Ok(None) => {}
            Err(error) => end = Some(ended(&error)),
        }
    }
    lines.extend(end);
    lines
}

fn ended(error: &h2::Error) -> String {
    match error.reason() {
        Some(reason) if error.is_go_away() => format!("go away: {reason:?}"),
        Some(reason) => format!("stream reset: {reason:?}"),
        None => "connection broken".to_owned(),
    }
}
