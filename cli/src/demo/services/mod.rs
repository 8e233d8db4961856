//! The demo's sample services: small, real HTTP and TCP servers, each its own process.
//!
//! They know nothing of the mesh, except where their sidecar's outbound port is, if they are told.
//! Each prints `listening on ADDRESS` once it does, and ends on SIGTERM or Ctrl-C after the requests
//! it has.

mod clock;
mod server;
mod traffic;
mod web;

use std::net::SocketAddr;

use clap::Subcommand;

use crate::http::Origin;

/// Which service to be.
#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// The web front: answers with what orders and payments answered it.
    Front(web::FrontArguments),
    /// Orders: answers with its version, and can be told to fail.
    Orders(web::LeafArguments),
    /// Payments: like orders, for callers that are allowed.
    Payments(web::LeafArguments),
    /// A raw TCP service: greets with its name and the time, then echoes.
    Clock(clock::Arguments),
    /// A traffic source: asks the front at a steady rate and counts what comes back.
    Traffic(traffic::Arguments),
}

/// What every sample service is told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The name of this instance, shown in answers.
    #[arg(long)]
    instance: String,
}

/// How a sample service reaches others.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Way {
    /// The sidecar's outbound port; without it, names are looked up as any program would.
    #[arg(long)]
    outbound: Option<SocketAddr>,
}

impl Way {
    /// Where to send a request for `name`; the name itself goes into `Host`.
    fn to(&self, name: &str) -> Origin {
        match self.outbound {
            Some(sidecar) => Origin { tls: false, host: sidecar.ip().to_string(), port: sidecar.port() },
            None => Origin { tls: false, host: name.to_owned(), port: HTTP_PORT },
        }
    }
}

/// The port of a URL that names none.
const HTTP_PORT: u16 = 80;

/// Runs the service until SIGTERM or Ctrl-C.
pub(crate) async fn run(service: Service) -> anyhow::Result<()> {
    let stop = server::stop_on_signal()?;
    match service {
        Service::Front(arguments) => web::front(arguments, stop).await,
        Service::Orders(arguments) => web::leaf("orders", arguments, stop).await,
        Service::Payments(arguments) => web::leaf("payments", arguments, stop).await,
        Service::Clock(arguments) => clock::run(arguments, stop).await,
        Service::Traffic(arguments) => traffic::run(arguments, stop).await,
    }
}
