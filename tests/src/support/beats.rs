//! Heartbeats over HTTP on behalf of many instances.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http;

/// How often everybody's heartbeat is sent.
const EVERY: Duration = Duration::from_millis(400);
/// How long one answer may take; the next heartbeats do not wait longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends heartbeats until it is dropped.
#[derive(Debug)]
pub struct Beats {
    /// By service and id: when a heartbeat was last accepted.
    beating: Arc<Mutex<BTreeMap<(String, String), Instant>>>,
    _work: JoinSet<()>,
}

impl Beats {
    /// For instances of namespace `default`, as service and id, in turn to each of `registries`.
    pub fn start(registries: Vec<SocketAddr>, instances: impl IntoIterator<Item = (String, String)>) -> Self {
        let now = Instant::now();
        let beating: BTreeMap<_, _> = instances.into_iter().map(|instance| (instance, now)).collect();
        let beating = Arc::new(Mutex::new(beating));
        let (kept, mut work) = (Arc::clone(&beating), JoinSet::new());
        work.spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for registry in registries.iter().cycle() {
                ticks.tick().await;
                let due: Vec<_> =
                    kept.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
                let Ok(answer) = tokio::time::timeout(ANSWER_TIMEOUT, beat(*registry, &due)).await else {
                    continue;
                };
                let now = Instant::now();
                for (instance, result) in due.iter().zip(answer["results"].as_array().into_iter().flatten()) {
                    if result["status"] == "ok"
                        && let Some(last) =
                            kept.lock().unwrap_or_else(PoisonError::into_inner).get_mut(instance)
                    {
                        *last = now;
                    }
                }
            }
        });
        Self { beating, _work: work }
    }

    /// Sends no more heartbeats of this one; says when the last was accepted.
    ///
    /// # Panics
    ///
    /// If there were none to begin with.
    pub fn mute(&self, service: &str, id: &str) -> Instant {
        let instance = (service.to_owned(), id.to_owned());
        let mut beating = self.beating.lock().unwrap_or_else(PoisonError::into_inner);
        beating.remove(&instance).unwrap_or_else(|| panic!("{instance:?} has no heartbeats"))
    }

    /// Sends heartbeats of this one too.
    pub fn unmute(&self, service: &str, id: &str) {
        let instance = (service.to_owned(), id.to_owned());
        self.beating.lock().unwrap_or_else(PoisonError::into_inner).insert(instance, Instant::now());
    }
}

async fn beat(registry: SocketAddr, instances: &[(String, String)]) -> Value {
    let list: Vec<_> =
        instances.iter().map(|(service, id)| json!({ "service": service, "id": id })).collect();
    let request = ::http::Request::post("/v1/heartbeats")
        .header("host", registry.to_string())
        .header("content-type", "application/json")
        .body(Bytes::from(json!({ "heartbeats": list }).to_string()));
    match http::send(registry, request.expect("a valid request")).await {
        Ok(answer) => answer.json(),
        // It is away, which is what a test may be about.
        Err(_) => Value::Null,
    }
}
