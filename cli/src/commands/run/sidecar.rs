//! The sidecar process that `pillion run` starts.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::names::Names;
use crate::commands::sidecar::SidecarArguments;
use crate::demo::child::DIE_WITH_PARENT;
use crate::http::{Origin, send};
use crate::output::{self, note};

/// How long a question whether it is ready may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is asked.
const QUESTION_INTERVAL: Duration = Duration::from_millis(100);
/// How often a start that takes its time is told.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// How long draining may take: in-flight requests have 20 s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
/// How long the sidecar may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A sidecar process.
pub(super) struct Sidecar {
    process: Child,
    lines: Lines,
    /// Where it finds registries, for messages.
    registries: String,
    _reader: JoinSet<()>,
}

/// What a sidecar that is ready has bound, read from what it prints.
#[derive(Clone)]
pub(super) struct Bound {
    inbound: SocketAddr,
    pub(super) outbound: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
    dns: SocketAddr,
    /// Local ports of single services, by `service.namespace:port`.
    upstreams: Vec<(String, SocketAddr)>,
}

impl Sidecar {
    /// Starts the process.
    pub(super) fn spawn(arguments: &SidecarArguments, names: &Names) -> anyhow::Result<Self> {
        let mut arguments = arguments.clone();
        names.prepare(&mut arguments.listen);
        let binary = std::env::current_exe().context("find our own binary")?;
        let mut command = Command::new(binary);
        // Its own process group: Ctrl-C is for the command, the sidecar ends when we say so.
        command.arg("proxy").args(arguments.words()).process_group(0).kill_on_drop(true);
        if let Some(token) = &arguments.join.join_token {
            command.env("PILLION_JOIN_TOKEN", token); // an argument could be read by everybody on this host
        }
        command.env(DIE_WITH_PARENT, "1").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().context("start `pillion proxy`")?;
        let stdout = process.stdout.take().context("stdout is piped")?;
        let (lines, mut reader) = (Lines::default(), JoinSet::new());
        reader.spawn(lines.clone().keep(stdout));
        Ok(Self { process, lines, registries: arguments.join.registry.join(", "), _reader: reader })
    }

    /// Waits until it is ready, as long as it takes: a registry that is away may come back. Says every
    /// few seconds what it waits for.
    pub(super) async fn ready(&mut self) -> anyhow::Result<Bound> {
        let lines = self.lines.clone();
        let waiting = Mutex::new(format!("the registry at {}", self.registries));
        let ready = async {
            let bound = lines.bound().await;
            let metrics = origin(loopback(bound.metrics));
            while let Err(error) = ask(&metrics).await {
                *waiting.lock().unwrap_or_else(PoisonError::into_inner) =
                    format!("the registry at {} ({error:#})", self.registries);
                tokio::time::sleep(QUESTION_INTERVAL).await;
            }
            bound
        };
        let progress = async {
            let mut ticks = interval(PROGRESS_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.tick().await; // the first is at once
            loop {
                ticks.tick().await;
                let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
                note(format_args!("the command has not been started: its sidecar waits for {waiting}"));
            }
        };
        tokio::select! {
            bound = ready => Ok(bound),
            never = progress => never,
            status = self.process.wait() => anyhow::bail!("it ended with {}", status?),
        }
    }

    /// Waits for its end, which should not come before ours.
    pub(super) async fn ended(&mut self) -> String {
        self.process
            .wait()
            .await
            .map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string())
    }

    /// Asks it to take nothing new, and waits until what is in flight is answered.
    pub(super) async fn drain(&mut self, bound: &Bound) {
        let request = http::Request::post("/drain?wait=true").body(Bytes::new());
        let drained = match request {
            Ok(request) => send(&origin(bound.admin), None, request, DRAIN_TIMEOUT).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = drained {
            note(format_args!("the sidecar did not drain: {error:#}"));
        }
    }

    /// Ends it.
    pub(super) async fn stop(mut self) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process(id, Signal::TERM); // it may have ended already
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.process.wait()).await.is_err() {
            note(format_args!("the sidecar has not ended within {STOP_TIMEOUT:?} and is killed"));
            let _ = self.process.kill().await;
        }
    }
}

impl Bound {
    /// Says what listens where and which way names work.
    pub(super) fn announce(&self, names: &Names) {
        let Self { inbound, outbound, admin, metrics, dns, upstreams } = self;
        note(format_args!(
            "sidecar ready: inbound {inbound}, outbound {outbound}, admin {admin}, metrics {metrics}, dns {dns}"
        ));
        for (service, address) in upstreams {
            note(format_args!("upstream {service}: {address}"));
        }
        note(format_args!("names: {names}"));
    }

    /// What the command is told.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let fixed = [
            ("PILLION_PROXY", format!("http://{}", self.outbound)),
            ("PILLION_ADMIN_URL", format!("http://{}", self.admin)),
            ("PILLION_METRICS_URL", format!("http://{}", loopback(self.metrics))),
            ("PILLION_DNS_SERVER", self.dns.to_string()),
        ];
        let upstreams = self.upstreams.iter().flat_map(|(service, address)| {
            let names = upstream_variables(service, &self.upstreams);
            names.into_iter().map(|name| (name, address.to_string()))
        });
        fixed.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(upstreams).collect()
    }
}

/// The variables of one upstream: `PILLION_UPSTREAM_ORDERS_SHOP_80`, and `PILLION_UPSTREAM_ORDERS`
/// where it is the only one of a service called so.
fn upstream_variables(service: &str, all: &[(String, SocketAddr)]) -> Vec<String> {
    let variable = |text: &str| {
        let upper = text.to_ascii_uppercase();
        format!("PILLION_UPSTREAM_{}", upper.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
    };
    let short = |service: &str| service.split(['.', ':']).next().map(variable).unwrap_or_default();
    let own = short(service);
    let of_that_name: BTreeSet<&str> =
        all.iter().map(|(other, _)| other.as_str()).filter(|other| short(other) == own).collect();
    (of_that_name.len() == 1).then_some(own).into_iter().chain([variable(service)]).collect()
}

async fn ask(metrics: &Origin) -> anyhow::Result<()> {
    let request = http::Request::get("/ready").body(Bytes::new()).context("build the request")?;
    let answer = send(metrics, None, request, QUESTION_TIMEOUT).await?;
    anyhow::ensure!(answer.status.is_success(), "{}", answer.text().trim());
    Ok(())
}

fn origin(address: SocketAddr) -> Origin {
    Origin { tls: false, host: address.ip().to_string(), port: address.port() }
}

/// The address by which we reach a socket of this host.
fn loopback(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()))
    } else {
        address
    }
}

/// What the sidecar printed, by listener; other lines are handed on to our stdout.
#[derive(Clone, Default)]
struct Lines {
    found: Arc<Mutex<Found>>,
    bell: watch::Sender<()>,
}

#[derive(Default)]
struct Found {
    listeners: [Option<SocketAddr>; 5],
    upstreams: Vec<(String, SocketAddr)>,
    /// The last line of the start was seen.
    is_complete: bool,
}

const LISTENERS: [&str; 5] = ["inbound", "outbound", "admin", "metrics", "dns"];

impl Lines {
    async fn keep(self, stdout: ChildStdout) {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if self.found.lock().unwrap_or_else(PoisonError::into_inner).take(&line) {
                self.bell.send_replace(());
            } else {
                let _ = output::line(line); // an access log; nothing to do if nobody reads it
            }
        }
    }

    /// Waits until everything has been told.
    async fn bound(&self) -> Bound {
        let mut bell = self.bell.subscribe();
        loop {
            if let Some(bound) = self.found.lock().unwrap_or_else(PoisonError::into_inner).bound() {
                return bound;
            }
            drop(bell.changed().await); // the sender is held by self
        }
    }
}

impl Found {
    /// Takes a line of the start; false: it is none.
    fn take(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            _ if self.is_complete => return false,
            ["vips", _] => self.is_complete = true,
            ["upstream", service, address] => match address.parse() {
                Ok(address) => self.upstreams.push((service.to_owned(), address)),
                Err(_) => return false,
            },
            [name, address] => match (LISTENERS.iter().position(|known| *known == name), address.parse()) {
                (Some(index), Ok(address)) => self.listeners[index] = Some(address),
                _ => return false,
            },
            _ => return false,
        }
        true
    }

    fn bound(&self) -> Option<Bound> {
        match self.listeners {
            [Some(inbound), Some(outbound), Some(admin), Some(metrics), Some(dns)] if self.is_complete => {
                let upstreams = self.upstreams.clone();
                Some(Bound { inbound, outbound, admin, metrics, dns, upstreams })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_start_are_told_from_others() {
        let mut found = Found::default();
        for line in [
            "inbound 0.0.0.0:1",
            "outbound 127.0.0.1:2",
            "admin 127.0.0.1:3",
            "metrics 0.0.0.0:4",
            "dns 127.0.0.1:5",
        ] {
            assert!(found.take(line), "{line}");
        }
        assert!(!found.take("[2026-11-21T12:00:00Z] GET / 200"));
        assert!(!found.take("outbound of nothing"));
        assert!(found.bound().is_none(), "upstreams may follow");
        assert!(found.take("upstream orders.shop:80 127.0.0.1:9001") && found.take("vips none"));
        let bound = found.bound().expect("complete");
        assert_eq!(
            bound.upstreams,
            [("orders.shop:80".to_owned(), "127.0.0.1:9001".parse().expect("valid"))]
        );
    }

    #[test]
    fn an_upstream_that_is_the_only_one_of_its_name_has_the_short_variable_too() {
        let at: SocketAddr = "127.0.0.1:1".parse().expect("valid");
        let all =
            ["orders.shop:80", "my-db.shop:5432", "my-db.other:5432"].map(|service| (service.to_owned(), at));
        for (service, want) in [
            ("orders.shop:80", &["PILLION_UPSTREAM_ORDERS", "PILLION_UPSTREAM_ORDERS_SHOP_80"][..]),
            ("my-db.shop:5432", &["PILLION_UPSTREAM_MY_DB_SHOP_5432"]),
        ] {
            assert_eq!(upstream_variables(service, &all), want);
        }
    }
}
