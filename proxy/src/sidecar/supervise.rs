//! From the registration and the application's health to what is reported, and to readiness.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use pillion_model::health::{Probe, Reported};
use pillion_net::readiness::ReadyGuard;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::options::Options;
use super::{probe, registration};
use crate::control;

/// Follows the registration: runs the health check it asks for, reports results, tells readiness.
///
/// The instance takes traffic once the application accepts connections, and, where there is a
/// health check, has passed it.
pub(super) struct Supervise {
    pub(super) status: watch::Receiver<registration::Status>,
    pub(super) state: watch::Sender<registration::State>,
    pub(super) control: watch::Receiver<control::Status>,
    /// Told when the application accepts: virtual addresses may share its ports then.
    pub(super) accepts: Arc<Notify>,
}

impl Supervise {
    /// Runs until `stop`.
    pub(super) async fn run(self, options: Options, registered: Option<ReadyGuard>, stop: CancellationToken) {
        let Self { mut status, state, mut control, accepts: told } = self;
        let mut registered = registered;
        let apps: BTreeMap<String, SocketAddr> =
            options.ports.iter().map(|(name, port)| (name.clone(), Options::app_address(port))).collect();
        let (wanted, wanted_watch) = watch::channel(None);
        let (result, mut results) = watch::channel(Probe::Unknown);
        let checks = probe::run(&apps, wanted_watch, result, stop.clone());
        let follow = async {
            let mut accepting = std::pin::pin!(probe::all_accept(&apps));
            let mut accepts = false;
            loop {
                if let registration::Status::Registered(answer) = &*status.borrow_and_update() {
                    let check = answer.health_check.as_ref().map(probe::Check::from);
                    wanted.send_if_modified(|have| std::mem::replace(have, check.clone()) != check);
                    registered.take();
                }
                let (probe, checked) = (*results.borrow_and_update(), wanted.borrow().is_some());
                report(&state, |state| {
                    state.probe = probe;
                    let may_begin = accepts && (!checked || probe == Probe::Passing);
                    if state.reported == Reported::Starting && may_begin {
                        state.reported = Reported::Ready;
                    }
                });
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = status.changed() => if changed.is_err() { return },
                    changed = results.changed() => if changed.is_err() { return },
                    () = &mut accepting, if !accepts => {
                        accepts = true;
                        told.notify_one();
                    }
                    // The registry is away, and the last configuration serves: that is ready enough.
                    Ok(_) = control.wait_for(serves_from_disk), if registered.is_some() => {
                        registered.take();
                    }
                }
            }
        };
        tokio::join!(checks, follow);
    }
}

fn serves_from_disk(control: &control::Status) -> bool {
    !control.connected && control.restored > 0 && control.synced && control.last_error.is_some()
}

fn report(state: &watch::Sender<registration::State>, change: impl FnOnce(&mut registration::State)) {
    state.send_if_modified(|state| {
        let before = *state;
        change(state);
        *state != before
    });
}
