//! The one way from a request to its answer, for UDP and TCP alike.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::{Header, HeaderCounts, Metadata, ResponseCode, SerialMessage};
use hickory_proto::rr::Record;
use hickory_server::net::runtime::Time;
use hickory_server::net::{BufDnsStreamHandle, DnsStreamHandle, NetError};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::answer::Answer;
use crate::encode::{cut, edns, fits, metadata, relay};
use crate::question::Question;
use crate::zone::{Outcome, Reply, Zone};

/// What both transports share.
pub(crate) struct Shared {
    zone: Arc<dyn Zone>,
    /// Room for answers under way.
    waiting: Semaphore,
}

impl Shared {
    pub(crate) fn new(zone: Arc<dyn Zone>) -> Self {
        Self { zone, waiting: Semaphore::new(WAITING_MAX) }
    }

    async fn outcome(&self, question: &Question<'_>) -> Outcome {
        let answer = match self.zone.answer(question) {
            Reply::Now(outcome) => return outcome,
            Reply::Later(answer) => answer,
        };
        let failure = || Outcome::Answer(Answer::code(ResponseCode::ServFail));
        let Ok(_room) = self.waiting.try_acquire() else { return failure() };
        timeout(LATER_MAX, answer).await.unwrap_or_else(|_| failure())
    }
}

/// Answers requests of one socket or one connection.
#[derive(Clone)]
pub(crate) struct Handler {
    pub(crate) shared: Arc<Shared>,
    pub(crate) outlet: Outlet,
}

/// Where whole messages go that a `MessageResponse` cannot carry.
#[derive(Clone)]
pub(crate) enum Outlet {
    Udp(Arc<UdpSocket>),
    Tcp(BufDnsStreamHandle),
}

impl Outlet {
    fn send(&self, message: Vec<u8>, client: SocketAddr) -> Result<(), NetError> {
        match self {
            Self::Udp(socket) => Ok(socket.try_send_to(&message, client).map(drop)?),
            Self::Tcp(connection) => connection.clone().send(SerialMessage::new(message, client)),
        }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, out: R) -> ResponseInfo {
        let sent = match Question::of(request) {
            Ok(question) => match self.shared.outcome(&question).await {
                Outcome::Answer(answer) => self.answer(&question, answer, out).await,
                Outcome::Relayed(message) => {
                    let sent = self.outlet.send(relay(&question, message), request.src());
                    sent.map(|()| info(Metadata::response_from_request(&request.metadata)))
                }
            },
            Err(code) => refuse(request, code, out).await,
        };
        sent.unwrap_or_else(|error| {
            // As the network may lose it: the client asks again.
            tracing::debug!(client = %request.src(), %error, "an answer is lost");
            info(Metadata::response_from_request(&request.metadata))
        })
    }
}

impl Handler {
    async fn answer<R: ResponseHandler>(
        &self,
        question: &Question<'_>,
        answer: Answer,
        mut out: R,
    ) -> Result<ResponseInfo, NetError> {
        let (metadata, edns) = (metadata(question, &answer), edns(question.request));
        if !fits(question, &answer) {
            self.outlet.send(cut(question, &answer, edns.as_ref()), question.client)?;
            return Ok(info(metadata));
        }
        let Answer { ttl, answers, authority, additional, .. } = answer;
        let owner = question.name.as_asked();
        let answers: Vec<Record> =
            answers.into_iter().map(|data| Record::from_rdata(owner.clone(), ttl, data)).collect();
        let mut response = MessageResponseBuilder::from_message_request(question.request);
        if let Some(edns) = &edns {
            response.edns(edns);
        }
        out.send_response(response.build(metadata, &answers, &authority, &[], &additional)).await
    }
}

/// Nothing but a code.
async fn refuse<R: ResponseHandler>(
    request: &Request,
    code: ResponseCode,
    mut out: R,
) -> Result<ResponseInfo, NetError> {
    let edns = edns(request);
    let mut response = MessageResponseBuilder::from_message_request(request);
    if let Some(edns) = &edns {
        response.edns(edns);
    }
    out.send_response(response.error_msg(&request.metadata, code)).await
}

fn info(metadata: Metadata) -> ResponseInfo {
    Header { metadata, counts: HeaderCounts::default() }.into()
}

/// Answers waited for at a time; beyond, SERVFAIL.
const WAITING_MAX: usize = 4096;
/// How long an answer may take.
const LATER_MAX: Duration = Duration::from_secs(5);
