//! Calls to etcd: one connection per member, a limit on every call, and the next member when one
//! fails.

use std::error::Error as _;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pillion_net::grpc::{ConnectError, Dialer, Security};
use pillion_net::resolve::{Resolver, Target};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::request_op::Request as Write;
use pb::response_op::Response as Answer;
use pb::watch_client::WatchClient;

/// A call that takes longer has failed; whether it was carried out is then unknown.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Keys read at once.
const PAGE: i64 = 1000;
/// Largest message from etcd: a page of values of etcd's own limit would not be larger.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// No answer, or one that says to try later.
    #[error("etcd does not answer: {0}")]
    Unavailable(String),
    /// The request is larger than this etcd takes.
    #[error("etcd refuses the request: {0}")]
    TooLarge(String),
    /// Anything else etcd says.
    #[error("etcd refuses the request: {0}")]
    Refused(String),
}

/// A client of all members.
pub(super) struct Client {
    members: Vec<Channel>,
    /// Which member is asked; followers of it move when it does.
    current: watch::Sender<usize>,
    calls: AtomicUsize,
    /// Why the last call failed, until one succeeds.
    trouble: Mutex<Option<String>>,
    /// Why etcd takes no writes although it answers, until it takes one.
    full: Mutex<Option<String>>,
}

impl Client {
    pub(super) fn new(members: &[Target], tls: Option<&Arc<rustls::ClientConfig>>) -> Self {
        let dialer = |member: &Target| {
            let security = match tls {
                Some(config) => Security::Fixed(Arc::clone(config), member.host.clone()),
                None => Security::Plaintext,
            };
            Dialer::new(vec![member.clone()], security, Resolver::system()).lazy()
        };
        let first = fastrand::usize(..members.len().max(1));
        Self {
            members: members.iter().map(dialer).collect(),
            current: watch::Sender::new(first),
            calls: AtomicUsize::new(0),
            trouble: Mutex::default(),
            full: Mutex::default(),
        }
    }

    /// Why etcd cannot be asked, or takes no writes, as far as the last calls know.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().or_else(|| self.full())
    }

    /// Why etcd takes no writes although it answers: its space is used up.
    pub(super) fn full(&self) -> Option<String> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_full(&self, full: Option<String>) {
        *self.full.lock().unwrap_or_else(PoisonError::into_inner) = full;
    }

    /// Rings when another member is asked from now on.
    pub(super) fn moves(&self) -> watch::Receiver<usize> {
        self.current.subscribe()
    }

    /// Calls made so far.
    #[cfg(test)]
    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Everything from `first` up to `end`, as of one revision, and that revision.
    pub(super) async fn range(
        &self,
        first: Bytes,
        end: Bytes,
    ) -> Result<(u64, Vec<pb::KeyValue>), ClientError> {
        let (mut key, mut revision, mut found) = (first, 0, Vec::new());
        loop {
            let request = pb::RangeRequest { key, range_end: end.clone(), limit: PAGE, revision };
            let page = self.read(|member| {
                let request = request.clone();
                async move { kv(member).range(request).await }
            });
            let page = page.await?;
            revision = if revision == 0 { page.header.unwrap_or_default().revision } else { revision };
            found.extend(page.kvs);
            match found.last() {
                Some(last) if page.more => key = [&last.key[..], b"\0"].concat().into(),
                _ => return Ok((unsigned(revision), found)),
            }
        }
    }

    /// One key, and etcd's revision.
    pub(super) async fn get(&self, key: Bytes) -> Result<(u64, Option<pb::KeyValue>), ClientError> {
        let (revision, found) = self.range(key, Bytes::new()).await?;
        Ok((revision, found.into_iter().next()))
    }

    /// Carries out a transaction. Tried again elsewhere only if it cannot have been carried out.
    pub(super) async fn txn(&self, request: TxnRequest) -> Result<TxnAnswer, ClientError> {
        let mut last = None;
        for _ in 0..self.members.len() {
            let request = request.0.clone();
            match self.call(|member| async move { kv(member).txn(request).await }).await {
                Ok(answer) => {
                    let answer = TxnAnswer(answer);
                    if answer.succeeded() && answer.changed() {
                        self.set_full(None);
                    }
                    return Ok(answer);
                }
                Err(status) if never_sent(&status) => last = Some(status),
                Err(status) => {
                    if status.code() == Code::ResourceExhausted && status.message().contains("space exceeded")
                    {
                        self.set_full(Some(detail(&status)));
                    }
                    return Err(status.into());
                }
            }
        }
        Err(last.map_or_else(|| ClientError::Unavailable("no member is configured".to_owned()), Into::into))
    }

    /// What happens to the keys from `first` up to `end`, from revision `from` on.
    pub(super) async fn watch(
        &self,
        first: Bytes,
        end: Bytes,
        from: u64,
    ) -> Result<Streaming<pb::WatchResponse>, ClientError> {
        let create = pb::WatchCreateRequest { key: first, range_end: end, start_revision: signed(from) };
        let request =
            pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        // The stream of requests stays open: its end would end the watch.
        let requests = futures_util::stream::unfold(Some(request), |next| async {
            match next {
                Some(request) => Some((request, None)),
                None => std::future::pending().await,
            }
        });
        let mut request = Request::new(requests);
        // A member that is cut off from the others ends the watch instead of keeping silent.
        request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
        let watch = |member| async move {
            WatchClient::new(member).max_decoding_message_size(MESSAGE_BYTES_MAX).watch(request).await
        };
        Ok(self.call(watch).await?)
    }

    /// A new lease of this many seconds.
    pub(super) async fn grant(&self, seconds: i64) -> Result<i64, ClientError> {
        let request = pb::LeaseGrantRequest { ttl: seconds, id: 0 };
        let grant = |member| async move { LeaseClient::new(member).lease_grant(request).await };
        Ok(self.call(grant).await?.id)
    }

    /// Renews a lease; `false` if it has ended.
    pub(super) async fn renew(&self, lease: i64) -> Result<bool, ClientError> {
        let request = pb::LeaseKeepAliveRequest { id: lease };
        let renew = |member| async move {
            let once = futures_util::stream::iter([request]);
            let mut answers = LeaseClient::new(member).lease_keep_alive(once).await?.into_inner();
            let answer = answers.message().await?;
            answer.map(Response::new).ok_or_else(|| Status::unavailable("no answer to a renewal"))
        };
        Ok(self.call(renew).await?.ttl > 0)
    }

    /// Ends a lease, and what hangs on it.
    pub(super) async fn revoke(&self, lease: i64) -> Result<(), ClientError> {
        let request = pb::LeaseRevokeRequest { id: lease };
        let revoke = |member| async move { LeaseClient::new(member).lease_revoke(request).await };
        Ok(self.call(revoke).await.map(drop)?)
    }

    /// What the member that is asked says of itself.
    pub(super) async fn status(&self) -> Result<pb::StatusResponse, ClientError> {
        let status =
            |member| async move { MaintenanceClient::new(member).status(pb::StatusRequest {}).await };
        self.read(status).await
    }

    /// A call that may be repeated: every member is asked once.
    async fn read<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut last = Status::unavailable("no member is configured");
        for _ in 0..self.members.len() {
            match self.call(&call).await {
                Ok(answer) => return Ok(answer),
                Err(status) if is_trouble(&status) => last = status,
                Err(status) => return Err(status.into()),
            }
        }
        Err(last.into())
    }

    async fn call<T, F>(&self, call: impl FnOnce(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let at = *self.current.borrow();
        let Some(member) = self.members.get(at) else {
            return Err(Status::unavailable("no member is configured"));
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, call(member.clone())).await;
        let answer = answer
            .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}"))));
        let trouble = answer.as_ref().err().filter(|status| is_trouble(status));
        if trouble.is_some() {
            self.leave(at);
        }
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble.map(detail);
        answer.map(Response::into_inner)
    }

    /// Asks the next member from now on, unless somebody has moved on already.
    pub(super) fn leave(&self, member: usize) {
        self.current.send_if_modified(|current| {
            let leaves = *current == member && self.members.len() > 1;
            if leaves {
                *current = (member + 1) % self.members.len();
            }
            leaves
        });
    }
}

fn kv(member: Channel) -> KvClient<Channel> {
    KvClient::new(member).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Whether another member, or the same one later, may answer.
fn is_trouble(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Internal | Code::Cancelled
    )
}

/// Whether there was not even a connection.
fn never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What a status says, with its causes.
fn detail(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let text = detail(&status);
        match status.code() {
            _ if text.contains("too many operations") => Self::TooLarge(format!(
                "{text}; start etcd with a larger --max-txn-ops (4096), or change less at once"
            )),
            _ if text.contains("request is too large") || text.contains("larger than") => Self::TooLarge(
                format!("{text}; start etcd with a larger --max-request-bytes, or change less at once"),
            ),
            _ if is_trouble(&status) => Self::Unavailable(text),
            _ => Self::Refused(text),
        }
    }
}

/// A transaction to be.
#[derive(Clone, Debug, Default)]
pub(super) struct TxnRequest(pb::TxnRequest);

impl TxnRequest {
    pub(super) fn require_value(&mut self, key: Bytes, value: &str) {
        let union = pb::compare::TargetUnion::Value(value.to_owned().into());
        self.require(key, pb::compare::CompareTarget::Value, union);
    }

    pub(super) fn require_revision(&mut self, key: Bytes, revision: Option<u64>) {
        let union = pb::compare::TargetUnion::ModRevision(signed(revision.unwrap_or(0)));
        self.require(key, pb::compare::CompareTarget::Mod, union);
    }

    fn require(&mut self, key: Bytes, target: pb::compare::CompareTarget, union: pb::compare::TargetUnion) {
        self.0.compare.push(pb::Compare {
            result: pb::compare::CompareResult::Equal.into(),
            target: target.into(),
            key,
            target_union: Some(union),
        });
    }

    pub(super) fn put(&mut self, key: Bytes, value: Bytes, lease: i64) {
        let write = Write::RequestPut(pb::PutRequest { key, value, lease });
        self.0.success.push(pb::RequestOp { request: Some(write) });
    }

    pub(super) fn delete(&mut self, key: Bytes) {
        let write = Write::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end: Bytes::new() });
        self.0.success.push(pb::RequestOp { request: Some(write) });
    }

    pub(super) fn read(&mut self, key: Bytes) {
        let read = Write::RequestRange(pb::RangeRequest { key, ..Default::default() });
        self.0.success.push(pb::RequestOp { request: Some(read) });
    }
}

/// What became of a transaction.
#[derive(Debug)]
pub(super) struct TxnAnswer(pb::TxnResponse);

impl TxnAnswer {
    pub(super) fn succeeded(&self) -> bool {
        self.0.succeeded
    }

    /// etcd's revision afterwards.
    pub(super) fn revision(&self) -> u64 {
        self.0.header.as_ref().map_or(0, |header| unsigned(header.revision))
    }

    /// Whether anything was written.
    pub(super) fn changed(&self) -> bool {
        self.0.responses.iter().any(|response| match &response.response {
            Some(Answer::ResponsePut(_)) => true,
            Some(Answer::ResponseDeleteRange(delete)) => delete.deleted > 0,
            _ => false,
        })
    }

    /// What was read, in the order asked: revision and value of each key that is there.
    pub(super) fn read(&self) -> Vec<Option<(u64, Bytes)>> {
        let read = self.0.responses.iter().map(|response| match &response.response {
            Some(Answer::ResponseRange(range)) => {
                range.kvs.first().map(|kv| (unsigned(kv.mod_revision), kv.value.clone()))
            }
            _ => None,
        });
        read.collect()
    }
}

/// etcd's numbers are signed and never negative.
pub(super) fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}
