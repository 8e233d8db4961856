//! A sidecar process on free ports.

use std::net::SocketAddr;
use std::path::Path;

use super::http::{self, Answer};
use super::ports::free_address;
use super::process::{Process, finish, run};
use super::registry::Registry;
use super::wait::{DEADLINE, eventually};

/// What a sidecar is started with.
#[derive(Clone, Debug)]
pub struct Plan {
    name: String,
    arguments: Vec<String>,
    inbound: SocketAddr,
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// The process.
    pub process: Process,
    /// For other sidecars, over mutual TLS.
    pub inbound: SocketAddr,
    /// For its application's calls.
    pub outbound: SocketAddr,
    /// Administration.
    pub admin: SocketAddr,
    /// `/metrics`, `/ready`, `/live`.
    pub metrics: SocketAddr,
    /// DNS for its application.
    pub dns: SocketAddr,
}

/// A free port of loopback.
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

impl Plan {
    /// One of `service` (`name.namespace`) beside an application at `port` (`[name=]port[:protocol]`).
    ///
    /// # Panics
    ///
    /// If the service has no namespace.
    pub fn new(mesh: SocketAddr, service: &str, port: &str) -> Self {
        let (name, namespace) = service.split_once('.').expect("name.namespace");
        let plan = Self { name: format!("sidecar of {service}"), arguments: Vec::new(), inbound: ANY };
        let plan = plan.with(&["--registry", &mesh.to_string(), "--service", name]);
        plan.with(&["--namespace", namespace, "--port", port, "--workers", "1"])
    }

    /// One that only calls.
    pub fn caller(mesh: SocketAddr, service: &str) -> Self {
        Self::new(mesh, service, "1") // nobody listens there
    }

    /// With further arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// As this instance.
    #[must_use]
    pub fn instance(mut self, id: &str) -> Self {
        self.name = format!("sidecar {id}");
        self.with(&["--instance-id", id])
    }

    /// Keeping what it must remember in `folder`.
    #[must_use]
    pub fn state(self, folder: &Path) -> Self {
        self.with(&["--state-dir", &folder.display().to_string()])
    }

    /// Taking calls of other sidecars at this address, by which they know it.
    #[must_use]
    pub fn inbound(mut self, address: SocketAddr) -> Self {
        self.inbound = address;
        self
    }

    /// The words after `pillion`.
    pub fn arguments(&self) -> Vec<String> {
        let (inbound, any) = (self.inbound.to_string(), ANY.to_string());
        let advertise = self.inbound.ip().to_string();
        let dns = free_address().to_string();
        let listeners = ["--outbound", &any, "--admin", &any, "--metrics", &any, "--dns", &dns];
        let ours = ["proxy", "--inbound", &inbound, "--advertise", &advertise];
        let ours = ours.into_iter().chain(listeners).map(str::to_owned);
        ours.chain(self.arguments.iter().cloned()).collect()
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&self) -> Sidecar {
        let process = Process::pillion(&self.name, self.arguments());
        let sidecar = Sidecar {
            inbound: process.bound("inbound").await,
            outbound: process.bound("outbound").await,
            admin: process.bound("admin").await,
            metrics: process.bound("metrics").await,
            dns: process.bound("dns").await,
            process,
        };
        sidecar.ready().await;
        sidecar
    }
}

impl Sidecar {
    /// Starts one of `service` beside an application, and waits until it takes calls.
    pub async fn beside(registry: &Registry, service: &str, application: SocketAddr) -> Self {
        let sidecar = Plan::new(registry.mesh, service, &application.port().to_string()).start().await;
        registry.serving(service, 1).await;
        sidecar
    }

    /// Starts one that only calls.
    pub async fn caller(registry: &Registry, service: &str) -> Self {
        Plan::caller(registry.mesh, service).start().await
    }

    /// Waits until it says that it is ready.
    ///
    /// # Panics
    ///
    /// At the deadline.
    pub async fn ready(&self) {
        let finished = run(["wait", "--address", &self.metrics.to_string()]).await;
        assert_eq!(finished.code, 0, "{finished:?}\n{}", self.process.output());
    }

    /// Asks for `path` of `host`, as its application would.
    ///
    /// # Errors
    ///
    /// What went wrong, as text.
    pub async fn get(&self, host: &str, path: &str) -> Result<Answer, String> {
        http::get(self.outbound, host, path).await
    }

    /// Asks until the answer has this status.
    pub async fn get_until(&self, host: &str, path: &str, status: u16) -> Answer {
        eventually(&format!("{host}{path} answers {status}"), DEADLINE, || async {
            let answer = self.get(host, path).await?;
            if answer.status == status { Ok(answer) } else { Err(format!("{answer:?}")) }
        })
        .await
    }

    /// The virtual address of a name, as its DNS answers it.
    ///
    /// # Panics
    ///
    /// If it answers none.
    pub async fn vip(&self, dig: &Path, name: &str) -> std::net::Ipv4Addr {
        let (server, port) = (format!("@{}", self.dns.ip()), self.dns.port().to_string());
        let answer = finish(dig, [&server, "-p", &port, "+short", "+tries=2", "+time=5", name, "A"]).await;
        answer.stdout.trim().parse().unwrap_or_else(|error| panic!("{name}: {error}: {answer:?}"))
    }

    /// Sends a request, whose Host says where to, as its application would.
    ///
    /// # Errors
    ///
    /// What went wrong, as text.
    pub async fn send(&self, request: ::http::Request<bytes::Bytes>) -> Result<Answer, String> {
        http::send(self.outbound, request).await
    }

    /// Its metrics, as Prometheus text.
    ///
    /// # Panics
    ///
    /// If there is no answer.
    pub async fn scrape(&self) -> String {
        http::get(self.metrics, "metrics", "/metrics").await.expect("metrics answer").body
    }

    /// The sum of the samples of `metric` whose labels hold all of `labels`.
    pub async fn metric(&self, metric: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.scrape().await, metric, labels)
    }
}

/// The sum of the samples of `metric` whose labels hold all of `labels`.
pub fn sum(text: &str, metric: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric).filter(|rest| rest.starts_with(['{', ' ']))?;
        if wanted.iter().all(|label| rest.contains(label.as_str())) {
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        } else {
            None
        }
    });
    samples.sum()
}
