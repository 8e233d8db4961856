//! Keys that a server is asked for: when the first token needs them, and again when they are old.
//! All workers share what came; one request asks, the others wait for it.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::BytesMut;
use http::header::HOST;
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use pillion_model::jwt::RemoteKeys;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::keys::Keys;
use crate::body::Body;
use crate::exchange::Exchange;
use crate::upstream::{Attempt, Cluster};
use crate::worker::Worker;

/// Keys of a server.
pub(super) struct Remote {
    settings: RemoteKeys,
    path: Uri,
    host: HeaderValue,
    held: ArcSwapOption<Held>,
    asking: Mutex<()>,
    /// Answers and failures so far.
    asked: AtomicU64,
}

struct Held {
    keys: Arc<Keys>,
    until: Instant,
}

/// The longest document.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// How long before the end of the old keys new ones are asked for, where that is done ahead.
const AHEAD: Duration = Duration::from_secs(5);

impl Remote {
    pub(super) fn compile(settings: &RemoteKeys) -> Result<Self, String> {
        let bad = || format!("uri `{}` is not one that keys can be asked for with", settings.uri);
        let uri: Uri = settings.uri.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        Ok(Self {
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?,
            path: uri.path_and_query().cloned().ok_or_else(bad)?.into(),
            settings: settings.clone(),
            held: ArcSwapOption::empty(),
            asking: Mutex::new(()),
            asked: AtomicU64::new(0),
        })
    }

    /// The keys, while they are good.
    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        let held = self.held.load();
        held.as_ref().filter(|held| Instant::now() < held.until).map(|held| Arc::clone(&held.keys))
    }

    /// Makes sure that there are keys, if that is possible.
    pub(super) async fn refresh(self: &Arc<Self>, x: &Exchange) {
        if let Some(cluster) = x.snapshot.clusters.get(&self.settings.cluster) {
            self.fetch(&x.connection.worker, cluster).await;
        }
    }

    /// Asks for new keys in time, without letting a request wait for them.
    pub(super) fn look_ahead(self: &Arc<Self>, x: &Exchange) {
        let soon = |held: &Held| held.until < Instant::now() + AHEAD.min(self.settings.cache / 2);
        if !self.settings.ahead || !self.held.load().as_ref().is_some_and(|held| soon(held)) {
            return;
        }
        let Some(cluster) = x.snapshot.clusters.get(&self.settings.cluster).cloned() else { return };
        if self.asking.try_lock().is_err() {
            return;
        }
        let (remote, worker) = (Arc::clone(self), Rc::clone(&x.connection.worker));
        let cut = worker.cut.clone();
        x.connection.worker.tasks.spawn_local(async move {
            cut.run_until_cancelled(remote.fetch(&worker, &cluster)).await;
        });
    }

    async fn fetch(&self, worker: &Rc<Worker>, cluster: &Arc<Cluster>) {
        let before = self.asked.load(Relaxed);
        let _one = self.asking.lock().await;
        // Whoever waited takes what came meanwhile, be it a failure.
        if self.asked.load(Relaxed) != before {
            return;
        }
        let answer = timeout(self.settings.timeout, self.ask(worker, cluster)).await;
        if let Some(keys) = answer.ok().flatten().and_then(|text| Keys::parse(&text).ok()) {
            let until = Instant::now() + self.settings.cache;
            self.held.store(Some(Arc::new(Held { keys: Arc::new(keys), until })));
        }
        self.asked.fetch_add(1, Relaxed);
    }

    async fn ask(&self, worker: &Rc<Worker>, cluster: &Arc<Cluster>) -> Option<BytesMut> {
        let mut request = Request::new(Body::Empty);
        *request.uri_mut() = self.path.clone();
        request.headers_mut().insert(HOST, self.host.clone());
        let sent = worker.pools.send(cluster, &mut Attempt::default(), &mut request).await.ok()?;
        if sent.response.status() != StatusCode::OK {
            return None;
        }
        let mut body = sent.response.into_body();
        let mut text = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.ok()?.into_data() else { continue };
            if text.len() + data.len() > DOCUMENT_BYTES_MAX {
                return None;
            }
            text.extend_from_slice(&data);
        }
        Some(text)
    }
}
