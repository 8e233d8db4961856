//! The one way from a request to its answer, for UDP and TCP alike.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::{Edns, Header, HeaderCounts, Metadata, ResponseCode, SerialMessage};
use hickory_proto::rr::Record;
use hickory_server::net::runtime::Time;
use hickory_server::net::{BufDnsStreamHandle, DnsStreamHandle, NetError};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::answer::Answer;
use crate::cookie::{Cookies, Shown, now};
use crate::encode::{cut, edns, fits, metadata, relay};
use crate::note::{Note, Reason};
use crate::question::Question;
use crate::stats::Stats;
use crate::udp::send;
use crate::zone::{Outcome, Reply, Zone};

/// What both transports share.
pub(crate) struct Shared {
    pub(crate) zone: Arc<dyn Zone>,
    /// Room for answers under way.
    waiting: Semaphore,
    pub(crate) cookies: Cookies,
    pub(crate) stats: Arc<Stats>,
}

impl Shared {
    pub(crate) fn new(zone: Arc<dyn Zone>, stats: Arc<Stats>) -> Self {
        Self { zone, waiting: Semaphore::new(WAITING_MAX), cookies: Cookies::new(), stats }
    }

    async fn outcome(&self, question: &Question<'_>) -> Outcome {
        let answer = match self.zone.answer(question) {
            Reply::Now(outcome) => return outcome,
            Reply::Later(answer) => answer,
        };
        let failure = |text: &'static str| {
            self.stats.late.add();
            Outcome::Answer(Answer::code(ResponseCode::ServFail).noting(Reason::Other, text))
        };
        let Ok(_room) = self.waiting.try_acquire() else {
            return failure("too many questions are under way");
        };
        timeout(LATER_MAX, answer).await.unwrap_or_else(|_| failure("the answer took too long"))
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
            Self::Udp(socket) => Ok(send(socket, &message, client)?),
            Self::Tcp(connection) => connection.clone().send(SerialMessage::new(message, client)),
        }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, out: R) -> ResponseInfo {
        let cookie = self.shared.cookies.check(request, now());
        let sent = match Question::of(request) {
            Ok(_) if cookie == Shown::Malformed => self.refuse(request, ResponseCode::FormErr, out).await,
            Err(code) => self.refuse(request, code, out).await,
            Ok(question) => match self.shared.outcome(&question).await {
                Outcome::Answer(answer) => self.answer(&question, answer, cookie, out).await,
                Outcome::Relayed(message) => match relay(&question, message) {
                    Ok(message) => {
                        let sent = self.outlet.send(message, request.src());
                        sent.map(|()| info(Metadata::response_from_request(&request.metadata)))
                    }
                    Err(answer) => self.answer(&question, answer, cookie, out).await,
                },
            },
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
        cookie: Shown,
        mut out: R,
    ) -> Result<ResponseInfo, NetError> {
        let (metadata, edns) = (metadata(question, &answer), self.edns(question, &answer, cookie));
        if !fits(question, &answer, edns.as_ref()) {
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

    /// Tells a client over the limit to ask again over TCP.
    pub(crate) fn limit(&self, request: &Request) -> Result<(), NetError> {
        self.shared.stats.limited.add();
        let Ok(question) = Question::of(request) else { return Ok(()) };
        let answer = Answer { more: true, ..Answer::default() };
        self.outlet.send(cut(&question, &answer, edns(request, None).as_ref()), request.src())
    }

    fn edns(&self, question: &Question<'_>, answer: &Answer, cookie: Shown) -> Option<Edns> {
        let cookie = match cookie {
            Shown::Client(client) | Shown::Ours(client) => Some(client),
            Shown::Nothing | Shown::Malformed => None,
        };
        let cookie = cookie.map(|client| self.shared.cookies.option(client, question.client.ip(), now()));
        edns(question.request, cookie.into_iter().chain(answer.note.as_ref().map(Note::option)))
    }

    /// Nothing but a code.
    async fn refuse<R: ResponseHandler>(
        &self,
        request: &Request,
        code: ResponseCode,
        mut out: R,
    ) -> Result<ResponseInfo, NetError> {
        self.shared.stats.malformed.add();
        let edns = edns(request, None);
        let mut response = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            response.edns(edns);
        }
        out.send_response(response.error_msg(&request.metadata, code)).await
    }
}

fn info(metadata: Metadata) -> ResponseInfo {
    Header { metadata, counts: HeaderCounts::default() }.into()
}

/// Answers waited for at a time; beyond, SERVFAIL.
const WAITING_MAX: usize = 4096;
/// How long an answer may take.
const LATER_MAX: Duration = Duration::from_secs(5);
