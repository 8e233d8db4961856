//! The life of a request, in order.
//!
//! Every step either lets the exchange go on or answers; what a step before the route refuses has
//! none of a route's headers or policies on its reply.

use std::rc::Rc;

use std::sync::Arc;

use http::header::{CONNECTION, HeaderValue, SERVER};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use pillion_model::http::ServerHeader;

use crate::body::Body;
use crate::downstream::{ClientTunnel, Connection};
use crate::exchange::Exchange;
use crate::filters;
use crate::headers::{client_cert, forwarded, hop, ids, names};
use crate::local_reply::{Cause, LocalReply};
use crate::outbound::{self, Destination};
use crate::request::Arriving;
use crate::response::ResponseBody;
use crate::router;

/// What every step gives: go on, or this answer.
pub(crate) type Step<T = ()> = Result<T, LocalReply>;

/// Answers one request.
pub(crate) async fn handle(
    connection: Rc<Connection>,
    request: Request<Arriving>,
    tunnel: Option<ClientTunnel>,
) -> Response<ResponseBody> {
    let mut exchange = Exchange::new(connection, request, tunnel);
    let mut answer = run(&mut exchange).await;
    while let Some(next) = exchange.redirected() {
        exchange.follow(next, answer.as_ref().ok());
        // Boxed: hardly any request is redirected, and all would carry the size of it.
        answer = Box::pin(again(&mut exchange)).await;
    }
    finish(exchange, answer)
}

/// The request path.
async fn run(x: &mut Exchange) -> Step<Response<Body>> {
    if x.connection.worker.shared().overload.sheds() {
        return Err(Cause::Overloaded.into());
    }
    filters::validate::lengths(x)?;
    filters::validate::upgrade_form(x)?;
    judge(x)?;
    hop::strip_request(&mut x.head.headers)
        .map_err(|_bad| Cause::BadRequest("http1.connection_header_rejected"))?;
    forwarded::apply(x);
    client_cert::apply(x);
    ids::apply(x);
    serve(x).await
}

/// What follows a redirect: who the client is has been found out.
async fn again(x: &mut Exchange) -> Step<Response<Body>> {
    judge(x)?;
    serve(x).await
}

/// Whether host and path can be routed; brings them into one form.
fn judge(x: &mut Exchange) -> Step {
    filters::validate::host(x)?;
    filters::validate::path(x)?;
    filters::route::strip_port(x);
    filters::validate::query_type(x)
}

/// From the route on.
async fn serve(x: &mut Exchange) -> Step<Response<Body>> {
    let unrouted = match outbound::resolve(x).await? {
        Destination::Routes => {
            // That there is no route is the router's to answer, after the filters.
            let unrouted = filters::route::resolve(x).err();
            router::choose_cluster(x);
            unrouted
        }
        Destination::Tcp(cluster) => return Box::pin(outbound::tunnel(x, &cluster)).await,
        Destination::Inner(routes) => return Ok(outbound::inner(x, routes)),
        Destination::External(target) => return Box::pin(outbound::external(x, &target)).await,
    };
    if unrouted.is_none() {
        filters::validate::upgrade_allowed(x)?;
    }
    filters::run(x).await?;
    match unrouted {
        // A filter may have found one.
        Some(reply) if x.record.routed.is_none() => Err(reply),
        _ => router::run(x).await,
    }
}

/// The way back: what every answer gets, whoever made it.
fn finish(mut x: Exchange, answer: Step<Response<Body>>) -> Response<ResponseBody> {
    let mut close = x.connection.draining.get() || x.connection.drain.is_cancelled();
    let mut changed = false;
    let mut response = match answer {
        Ok(response) => response,
        Err(mut reply) => {
            close |= reply.close;
            if x.record.routed.is_none() {
                // Who finds no route is written down as whoever finds one.
                x.record.keep_request_headers(&x.head.headers);
            }
            x.record.flags.add(reply.flags);
            x.record.details = Some(reply.details.clone());
            // A mark makes callers send a POST again.
            let mark = x.hcm.config.mark_local_replies && !x.asked;
            if let Some(replies) = &Arc::clone(&x.hcm).local_replies {
                // What a route adds is rewritten as well.
                reply = change(&mut x, reply);
                changed = true;
                replies.rewrite(&mut reply, &mut x.record);
            }
            reply.into_response(&x.record.method, x.head.grpc, mark)
        }
    };
    // A client that is still sending would take the rest for its next request.
    close |= x.progress.complete().is_none();
    // Nor is anything known of what follows a change of protocol that failed.
    close |= x.connection.activity.is_unjudged();
    x.record.status = response.status().as_u16();
    if let Some(routed) = x.record.routed.clone().filter(|_| !changed) {
        let record = &*x.record;
        for changes in routed.changes(x.weighted_changes(&routed)) {
            changes.response(response.headers_mut(), &record.request_headers, record);
        }
    }
    filters::cors::annotate(&x, response.headers_mut());
    filters::respond(&x, response.headers_mut());
    let headers = response.headers_mut();
    match x.hcm.config.server_header {
        ServerHeader::Overwrite => {
            headers.insert(SERVER, x.hcm.server_name.clone());
        }
        ServerHeader::AppendIfAbsent => {
            headers.entry(SERVER).or_insert_with(|| x.hcm.server_name.clone());
        }
        ServerHeader::PassThrough => {}
    }
    if x.hcm.config.always_set_request_id_in_response
        && let Some(id) = x.request_id.take()
    {
        headers.insert(&names::REQUEST_ID, id);
    }
    if close && x.record.version < Version::HTTP_2 && x.tunnel.is_none() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    x.respond(response)
}

/// Makes a route's header changes to an answer of our own.
fn change(x: &mut Exchange, mut reply: LocalReply) -> LocalReply {
    let Some(routed) = x.record.routed.clone() else { return reply };
    x.record.status = reply.status.as_u16();
    let mut headers: HeaderMap = reply.headers.drain(..).collect();
    for changes in routed.changes(x.weighted_changes(&routed)) {
        changes.response(&mut headers, &x.record.request_headers, &x.record);
    }
    reply.set_headers(headers);
    reply
}

/// The phrase that goes with a status: Envoy's.
pub(crate) fn phrase(status: StatusCode) -> &'static [u8] {
    match (status.as_u16(), status.canonical_reason()) {
        (203, _) => b"Non-Authoritative Information",
        (418 | 451, _) | (_, None) => b"Unknown",
        (_, Some(phrase)) => phrase.as_bytes(),
    }
}
