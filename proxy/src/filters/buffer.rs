//! Requests that are sent on once they are whole.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http_body_util::BodyExt;

use super::overrides;
use crate::body::{Body, Whole};
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::{Cause, LocalReply};

/// Waits for the whole body, unless the route says otherwise.
pub(super) async fn hold(x: &mut Exchange, bytes_max: u32) -> Step {
    let routed = x.record.routed.clone();
    let said = overrides(x, routed.as_ref()).and_then(|overrides| overrides.buffer());
    let Some(bytes_max) = said.unwrap_or(Some(bytes_max)) else { return Ok(()) };
    // A client that changes the protocol waits for the answer before it sends.
    if matches!(x.body, Body::Empty) || x.head.upgrade.is_some() {
        return Ok(());
    }
    let Some((bytes, trailers)) = read(x, bytes_max as usize).await? else {
        let text = Bytes::from_static(b"Payload Too Large");
        let mut reply = LocalReply::direct(StatusCode::PAYLOAD_TOO_LARGE, text, "request_payload_too_large");
        // As if the rest were still to come.
        reply.close = true;
        return Err(reply);
    };
    if !x.head.headers.contains_key(CONTENT_LENGTH) && x.version < http::Version::HTTP_2 {
        x.head.headers.insert(CONTENT_LENGTH, bytes.len().into());
    }
    x.body = match trailers {
        None => Body::full(bytes),
        Some(trailers) => Body::Whole(Box::new(Whole { bytes, trailers })),
    };
    Ok(())
}

/// Reads the body to its end within the request's time limits; `None`: it is longer than
/// `bytes_max`.
pub(super) async fn read(x: &mut Exchange, bytes_max: usize) -> Step<Option<(Bytes, Option<HeaderMap>)>> {
    let mut body = std::mem::take(&mut x.body);
    let mut bytes = BytesMut::new();
    let mut trailers = None;
    let reading = async {
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) if bytes.len() + data.len() > bytes_max => return Ok(false),
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Ok::<_, crate::body::BodyError>(true)
    };
    let read = tokio::select! {
        biased;
        read = reading => read,
        expired = x.timers.expired(None) => return Err(x.timers.cause(expired).into()),
    };
    match read {
        Ok(true) => Ok(Some((bytes.freeze(), trailers))),
        Ok(false) => Ok(None),
        Err(_broken) => Err(broken(x)),
    }
}

/// The answer to a request whose body broke off.
fn broken(x: &mut Exchange) -> LocalReply {
    crate::router::broken_request(x).unwrap_or_else(|| Cause::BadRequest("http1.codec_error").into())
}
