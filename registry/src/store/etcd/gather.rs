//! Commits of several callers in one transaction of etcd, each with its own outcome.
//!
//! A commit is sent at once while few are under way; those that come meanwhile are gathered and go
//! together. Only what does not touch each other's keys does: etcd checks every condition before the
//! first write. If a condition does not hold, etcd carries out nothing, and is asked what it has: whose
//! condition it was learns of its conflict, and the others are sent again without it. Those that went
//! together have one revision.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{CALL_TIMEOUT, ClientError, TxnAnswer, TxnRequest};
use super::keys::Keys;
use super::{EtcdStore, Key, Op, StoreError, Transaction};

/// Writes, and conditions, of those that go together: etcd takes 128 unless it is told otherwise, and
/// one condition names the history.
pub(super) const OPERATIONS_MAX: usize = 127;
/// Their keys and values, in bytes: etcd takes 1.5 MiB.
const BYTES_MAX: usize = 1 << 20;
/// Transactions of etcd under way at the same time.
const AT_ONCE: usize = 2;
/// Commits that may wait; further callers wait for a place.
pub(super) const QUEUE_MAX: usize = 4096;

/// A commit that waits for its turn.
pub(super) struct Waiting {
    transaction: Transaction,
    since: Instant,
    /// It was too much for etcd together with others.
    alone: bool,
    done: oneshot::Sender<Result<u64, Failure>>,
}

/// Why a commit failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    /// After a conflict.
    pub(super) found: Option<Found>,
}

/// What etcd has of the keys of a commit's conditions.
#[derive(Debug)]
pub(super) struct Found {
    /// The revision of each; `None`: it is absent.
    pub(super) keys: Vec<(Key, Option<u64>)>,
    /// As of this revision.
    pub(super) revision: u64,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { error, found: None }
    }
}

impl EtcdStore {
    /// Has a transaction carried out, alone or with others.
    pub(super) async fn submit(&self, transaction: Transaction) -> Result<u64, Failure> {
        let stopped = || StoreError::Unavailable("this registry is stopping".to_owned());
        let (done, answer) = oneshot::channel();
        let waiting = Waiting { transaction, since: Instant::now(), alone: false, done };
        self.queue.send(waiting).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Carries out what is submitted, and at `stop` what was submitted before.
    pub(super) async fn gather(&self, mut queue: mpsc::Receiver<Waiting>, stop: &CancellationToken) {
        let (mut waiting, mut new) = (VecDeque::new(), Vec::new());
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        loop {
            while under_way.len() < AT_ONCE
                && let Some(batch) = Batch::next(&mut waiting)
            {
                under_way.push(self.carry_out(batch));
            }
            if !open && under_way.is_empty() {
                return;
            }
            let room = QUEUE_MAX.saturating_sub(waiting.len());
            tokio::select! {
                Some(again) = under_way.next() => {
                    again.into_iter().rev().for_each(|again: Waiting| waiting.push_front(again));
                }
                count = queue.recv_many(&mut new, room), if open && room > 0 => {
                    open = count > 0;
                    waiting.extend(new.drain(..));
                }
                () = stop.cancelled(), if !queue.is_closed() => queue.close(),
            }
        }
    }

    /// Carries out a batch, and returns who has to be tried again.
    async fn carry_out(&self, batch: Batch) -> Vec<Waiting> {
        let epoch = {
            let copy = self.copy();
            match &copy.detached {
                Some(reason) => {
                    let error = StoreError::Unavailable(reason.clone());
                    drop(copy);
                    return batch.fail(&error);
                }
                None => copy.mirror.at.epoch.clone(),
            }
        };
        match self.client.txn(batch.request(&self.keys, &epoch)).await {
            // A transaction that changed nothing has no revision of its own.
            Ok(answer) if answer.succeeded() => batch.succeed(match answer.changed() {
                true => answer.revision(),
                false => self.log.latest().revision,
            }),
            // Every transaction would carry these questions through etcd's log; few need an answer.
            Ok(_) => match self.client.txn(batch.question(&self.keys)).await {
                Ok(answer) => batch.part(&answer, &epoch),
                Err(error) => batch.fail(&error.into()),
            },
            Err(ClientError::TooLarge(_)) if batch.members.len() > 1 => batch.separate(),
            Err(error) => batch.fail(&error.into()),
        }
    }
}

/// What goes together.
#[derive(Default)]
struct Batch {
    members: Vec<Waiting>,
    /// The conditions of all, each once.
    required: BTreeMap<Key, Option<u64>>,
    written: BTreeSet<Key>,
    bytes: usize,
}

impl Batch {
    /// The first that wait and go together; who does not fit keeps its place.
    fn next(waiting: &mut VecDeque<Waiting>) -> Option<Self> {
        let mut batch = Self::default();
        let mut later = VecDeque::new();
        while let Some(next) = waiting.pop_front() {
            if next.done.is_closed() {
                continue; // nobody waits for it
            }
            if next.since.elapsed() >= CALL_TIMEOUT {
                let reason = format!("etcd did not get to it within {CALL_TIMEOUT:?}");
                drop(next.done.send(Err(StoreError::Unavailable(reason).into())));
            } else if batch.takes(&next) {
                batch.push(next);
            } else {
                later.push_back(next);
                if batch.is_full() {
                    break;
                }
            }
        }
        later.append(waiting);
        *waiting = later;
        (!batch.members.is_empty()).then_some(batch)
    }

    fn takes(&self, next: &Waiting) -> bool {
        if self.members.is_empty() {
            return true;
        }
        let Transaction { preconditions, ops } = &next.transaction;
        let agrees = |key: &Key, revision| self.required.get(key).is_none_or(|have| *have == revision);
        !next.alone
            && self.members.iter().all(|member| !member.alone)
            && self.required.len() + preconditions.len() <= OPERATIONS_MAX
            && self.written.len() + ops.len() <= OPERATIONS_MAX
            && self.bytes + size(&next.transaction) <= BYTES_MAX
            && preconditions.iter().all(|c| !self.written.contains(&c.key) && agrees(&c.key, c.revision))
            && ops.iter().all(|op| !self.written.contains(&op.key) && !self.required.contains_key(&op.key))
    }

    /// Whether looking for more that fit is not worth it.
    fn is_full(&self) -> bool {
        let operations = self.written.len().max(self.required.len());
        operations * 10 >= OPERATIONS_MAX * 9 || self.members.iter().any(|member| member.alone)
    }

    fn push(&mut self, next: Waiting) {
        let Transaction { preconditions, ops } = &next.transaction;
        self.bytes += size(&next.transaction);
        self.required.extend(preconditions.iter().map(|c| (c.key.clone(), c.revision)));
        self.written.extend(ops.iter().map(|op| op.key.clone()));
        self.members.push(next);
    }

    /// What the history is called, and what there is of each condition's key, in the order of `required`.
    fn question(&self, keys: &Keys) -> TxnRequest {
        let mut request = TxnRequest::default();
        request.read(keys.epoch());
        for key in self.required.keys() {
            request.read(keys.encode(key));
        }
        request
    }

    /// As etcd takes it: on the condition that the history is ours.
    fn request(&self, keys: &Keys, epoch: &str) -> TxnRequest {
        let mut request = TxnRequest::default();
        request.require_value(keys.epoch(), epoch);
        for (key, revision) in &self.required {
            request.require_revision(keys.encode(key), *revision);
        }
        for member in &self.members {
            // etcd refuses two writes to one key: the last one stands.
            let last: BTreeMap<&Key, &Op> = member.transaction.ops.iter().map(|op| (&op.key, op)).collect();
            for op in last.values() {
                let key = keys.encode(&op.key);
                match &op.value {
                    Some(value) => request.put(key, value.clone(), 0),
                    None => request.delete(key),
                }
            }
        }
        request
    }

    fn succeed(self, revision: u64) -> Vec<Waiting> {
        for member in self.members {
            drop(member.done.send(Ok(revision)));
        }
        Vec::new()
    }

    fn fail(self, error: &StoreError) -> Vec<Waiting> {
        for member in self.members {
            drop(member.done.send(Err(error.clone().into())));
        }
        Vec::new()
    }

    fn separate(mut self) -> Vec<Waiting> {
        self.members.iter_mut().for_each(|member| member.alone = true);
        self.members
    }

    /// A condition did not hold: tells those whose it was, and returns the others. That is everybody where
    /// it holds again by now.
    fn part(self, answer: &TxnAnswer, epoch: &str) -> Vec<Waiting> {
        let mut read = answer.read().into_iter();
        if read.next().flatten().is_none_or(|(_, value)| *value != *epoch.as_bytes()) {
            let reason = "the history in etcd has changed; reading it again";
            return self.fail(&StoreError::Unavailable(reason.to_owned()));
        }
        let found: BTreeMap<&Key, Option<u64>> =
            self.required.keys().zip(read.map(|found| found.map(|(revision, _)| revision))).collect();
        let mut again = Vec::new();
        for member in self.members {
            let conditions = &member.transaction.preconditions;
            let at = |key: &Key| found.get(key).copied().flatten();
            let Some(broken) = conditions.iter().find(|condition| at(&condition.key) != condition.revision)
            else {
                again.push(member);
                continue;
            };
            let (key, wanted) = (broken.key.clone(), broken.revision);
            let error = StoreError::Conflict { found: at(&key), key, wanted };
            let known = conditions.iter().map(|condition| (condition.key.clone(), at(&condition.key)));
            let found = Some(Found { keys: known.collect(), revision: answer.revision() });
            drop(member.done.send(Err(Failure { error, found })));
        }
        again
    }
}

/// The bytes of keys and values, about.
fn size(transaction: &Transaction) -> usize {
    let op = |op: &Op| op.key.name.len() + op.value.as_ref().map_or(0, bytes::Bytes::len) + 64;
    transaction.ops.iter().map(op).sum::<usize>() + transaction.preconditions.len() * 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Space;
    use tokio::sync::oneshot::Receiver;

    fn key(name: &str) -> Key {
        Key::new(Space::Token, name)
    }

    type Answers = Vec<Receiver<Result<u64, Failure>>>;

    /// Transactions as (conditions, writes); each letter is a key.
    fn queue(transactions: &[(&str, &str)]) -> (VecDeque<Waiting>, Answers) {
        let make = |(conditions, writes): &(&str, &str)| {
            let mut transaction = Transaction::default();
            for name in conditions.chars() {
                transaction.require(key(&name.to_string()), Some(1));
            }
            for name in writes.chars() {
                transaction.push(Op::put(key(&name.to_string()), "x"));
            }
            let (done, answer) = oneshot::channel();
            (Waiting { transaction, since: Instant::now(), alone: false, done }, answer)
        };
        transactions.iter().map(make).unzip()
    }

    fn batches(mut waiting: VecDeque<Waiting>) -> Vec<usize> {
        std::iter::from_fn(|| Batch::next(&mut waiting).map(|batch| batch.members.len())).collect()
    }

    #[tokio::test]
    async fn only_what_does_not_touch_goes_together() {
        for (transactions, want) in [
            (&[("s", "a"), ("s", "b"), ("s", "c")][..], &[3][..]),
            (&[("", "a"), ("", "a"), ("", "b")], &[2, 1]),
            (&[("a", "a"), ("a", "a")], &[1, 1]),
            (&[("", "a"), ("a", "b")], &[1, 1]),
            (&[("a", "b"), ("", "a")], &[1, 1]),
            (&[("", "aab"), ("", "c")], &[2]),
        ] {
            let (waiting, _answers) = queue(transactions);
            assert_eq!(batches(waiting), want, "{transactions:?}");
        }
    }

    #[tokio::test]
    async fn a_batch_is_what_etcd_takes_unless_one_alone_is_more() {
        let many = "x".repeat(300);
        let (mut waiting, _answers) = queue(&[("", "a"); 300]);
        for (n, waiting) in waiting.iter_mut().enumerate() {
            waiting.transaction.ops = vec![Op::put(key(&n.to_string()), "x")];
        }
        assert_eq!(batches(waiting), [127, 127, 46]);
        let (mut waiting, _answers) = queue(&[("", &many), ("", "z")]);
        for (n, op) in waiting[0].transaction.ops.iter_mut().enumerate() {
            op.key = key(&n.to_string());
        }
        assert_eq!(batches(waiting), [1, 1]);
    }

    #[tokio::test]
    async fn who_is_alone_goes_alone_and_who_is_gone_not_at_all() {
        let (mut waiting, mut answers) = queue(&[("", "a"), ("", "b"), ("", "c"), ("", "d")]);
        waiting[1].alone = true;
        drop(answers.pop());
        assert_eq!(batches(waiting), [2, 1]);
    }
}
