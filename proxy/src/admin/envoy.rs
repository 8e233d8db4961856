//! Pages that Envoy has under the same names.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use super::State;
use crate::worker::Command;

/// `/server_info`.
pub(super) fn server_info(state: &State) -> String {
    let view = &state.view;
    let uptime = format!("{}s", view.started.elapsed().as_secs());
    let word = if view.shared.health_failed.load(Relaxed) || state.options.drain.is_cancelled() {
        "DRAINING"
    } else if state.options.readiness.is_ready() {
        "LIVE"
    } else {
        "INITIALIZING"
    };
    let info = json!({
        "version": concat!("pillion/", env!("CARGO_PKG_VERSION")),
        "state": word,
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": {"concurrency": view.workers.len()},
        "node": {"cluster": view.shared.own_service},
    });
    serde_json::to_string_pretty(&info).unwrap_or_default()
}

/// `/listeners`: names and addresses, as text or JSON.
pub(super) fn listeners(state: &State, query: &str) -> (&'static str, String) {
    let snapshot = state.view.snapshot.load();
    let mut all: Vec<_> = snapshot
        .listeners
        .values()
        .filter_map(|listener| Some((&*listener.name, listener.address?)))
        .collect();
    all.sort_unstable();
    if !query.split('&').any(|pair| pair == "format=json") {
        let lines = all.iter().map(|(name, address)| format!("{name}::{address}\n"));
        return ("text/plain", lines.collect());
    }
    let statuses: Vec<Value> = all
        .iter()
        .map(|(name, address)| {
            let socket = json!({"address": address.ip().to_string(), "port_value": address.port()});
            json!({"name": name, "local_address": {"socket_address": socket}})
        })
        .collect();
    ("application/json", json!({ "listener_statuses": statuses }).to_string())
}

/// `/drain_listeners`: nothing new is accepted, and what is there may finish.
pub(super) fn drain_listeners(state: &State) {
    for worker in state.view.workers.iter() {
        // A worker that is gone accepts nothing.
        let _ = worker.send(Command::Drain);
    }
}

/// `/healthcheck/fail` and `/healthcheck/ok`.
pub(super) fn fail_health_checks(state: &State, fail: bool) {
    state.view.shared.health_failed.store(fail, Relaxed);
}
