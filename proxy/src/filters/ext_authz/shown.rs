//! As much of a body as the server is shown. What was read is sent on afterwards, and the rest behind
//! it as it comes.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use pillion_model::authz::AuthzBody;

use crate::body::{Body, BodyError, ReplayBuffer};
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::{Cause, LocalReply};

/// What is shown of a body.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) bytes: Bytes,
    pub(super) as_bytes: bool,
    /// Whether there is more; `None`: no body is shown.
    pub(super) partial: Option<bool>,
}

/// What one frame may bring beyond the limit.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// Reads as much as is to be shown.
pub(super) async fn read(x: &mut Exchange, how: AuthzBody) -> Step<Shown> {
    // A client that changes the protocol waits for the answer before it sends.
    if matches!(x.body, Body::Empty) || x.head.upgrade.is_some() {
        return Ok(Shown::default());
    }
    let limit = how.bytes_max as usize;
    let buffer = ReplayBuffer::new(std::mem::take(&mut x.body), limit + FRAME_BYTES_MAX);
    let mut reader = buffer.reader().map_or(Body::Empty, Body::Replay);
    let mut bytes = BytesMut::new();
    let reading = async {
        while bytes.len() < limit || !how.partial {
            let Some(frame) = reader.frame().await else { break };
            if let Ok(data) = frame?.into_data() {
                bytes.extend_from_slice(&data);
            }
            if bytes.len() > limit {
                break;
            }
        }
        Ok::<_, BodyError>(())
    };
    let read = tokio::select! {
        biased;
        read = reading => read,
        expired = x.timers.expired(None) => return Err(x.timers.cause(expired).into()),
    };
    if read.is_err() {
        let broken = crate::router::broken_request(x);
        return Err(broken.unwrap_or_else(|| Cause::BadRequest("http1.codec_error").into()));
    }
    let longer = bytes.len() > limit;
    if longer && !how.partial {
        let text = Bytes::from_static(b"Payload Too Large");
        let mut reply = LocalReply::direct(StatusCode::PAYLOAD_TOO_LARGE, text, "request_payload_too_large");
        reply.close = true;
        return Err(reply);
    }
    x.body = buffer.reader().map_or(Body::Empty, Body::Replay);
    bytes.truncate(limit);
    Ok(Shown { bytes: bytes.freeze(), as_bytes: how.as_bytes, partial: Some(longer) })
}
