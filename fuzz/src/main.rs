//! Feeds changed examples to everything that reads what others send: `cargo xtask fuzz`.
//!
//! The examples of a target are the files of `fuzz/corpus/<target>`. An input has failed if something
//! panicked over it, if it got no answer or a 500, or if reading it took longer than it may. It is kept
//! in `target/fuzz`, and `--input` tries it again. What is tried is drawn at random from a seed that is
//! printed; nothing here sees which code it reaches.

mod api;
mod corpus;
mod dns;
mod documents;
mod http;
mod mutate;
mod panics;
mod proxy_protocol;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use pillion_registry::app::{self, Options};
use tokio::time::Instant;

use corpus::Corpus;
use mutate::Mutator;

/// Longest an input may take.
const INPUT_TIME_MAX: Duration = Duration::from_secs(5);

/// What there is to fuzz.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// Requests to the registry's HTTP API: registrations, batches, Cloud Map, Consul, watch positions.
    Api,
    /// Messages to the registry's DNS, over UDP and TCP.
    Dns,
    /// Join tokens.
    Token,
    /// Documents of resources: YAML, JSON and TOML.
    Config,
    /// Envoy bootstraps.
    Bootstrap,
    /// Headers of the PROXY protocol.
    ProxyProtocol,
    /// Bytes to a proxy, as HTTP/1 and HTTP/2: heads, routes, policies.
    Http,
}

/// Feeds changed examples to everything that reads what others send.
#[derive(Parser)]
struct Arguments {
    /// Which targets; all without any.
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// How long each.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Begins from this seed rather than from a random one.
    #[arg(long)]
    seed: Option<u64>,
    /// Tries one input, of the one target given.
    #[arg(long, requires = "targets")]
    input: Option<PathBuf>,
    /// Where the examples are.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus"))]
    corpus: PathBuf,
    /// Where inputs that fail are kept.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/fuzz"))]
    keep: PathBuf,
}

/// What inputs are sent to.
struct Running {
    registry: app::Running,
    proxy: http::Proxy,
}

fn main() -> ExitCode {
    panics::watch();
    let outcome = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(run(&Arguments::parse()));
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let data = tempfile::tempdir().context("make a folder")?;
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let options = Options { api: any, mesh: any, dns: any, open: true, ..Options::new(data.path()) };
    let registry = app::start(options).await.context("start a registry")?;
    registry.ready().await;
    let running = Running { registry, proxy: http::Proxy::start().await.context("start a proxy")? };
    let targets = match &arguments.targets[..] {
        [] => <Target as clap::ValueEnum>::value_variants(),
        some => some,
    };
    for target in targets {
        fuzz(arguments, *target, &running).await?;
    }
    running.registry.stop().await;
    Ok(())
}

async fn fuzz(arguments: &Arguments, target: Target, running: &Running) -> anyhow::Result<()> {
    let corpus = Corpus::read(&arguments.corpus.join(target.name()))?;
    if let Some(file) = &arguments.input {
        let input = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        return attempt(target, running, &input).await.map_err(|reason| anyhow::anyhow!("failed: {reason}"));
    }
    for (name, example) in corpus.all() {
        attempt(target, running, example).await.map_err(|reason| anyhow::anyhow!("{name}: {reason}"))?;
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut mutator = Mutator::new(seed);
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut tried: u64 = 0;
    while Instant::now() < end {
        let input = match target {
            Target::Api => api::change(&mut mutator, &corpus),
            _ => mutator.change(&corpus),
        };
        tried += 1;
        if let Err(reason) = attempt(target, running, &input).await {
            std::fs::create_dir_all(&arguments.keep)?;
            let file = arguments.keep.join(format!("{}-{seed}-{tried}", target.name()));
            std::fs::write(&file, &input).with_context(|| format!("write {}", file.display()))?;
            anyhow::bail!("{}: {reason}; the input is {}", target.name(), file.display());
        }
    }
    println!("{:<14} {tried} inputs in {} s, seed {seed}: none failed", target.name(), arguments.seconds);
    Ok(())
}

/// Tries one input. The error says how it failed.
async fn attempt(target: Target, running: &Running, input: &[u8]) -> Result<(), String> {
    let begin = Instant::now();
    let outcome = match target {
        Target::Api => api::attempt(running.registry.api_addr, input).await,
        Target::Dns => dns::attempt(running.registry.dns_addr, input).await,
        Target::Token => documents::token(input),
        Target::Config => documents::config(input),
        Target::Bootstrap => documents::bootstrap(input),
        Target::ProxyProtocol => proxy_protocol::attempt(input),
        Target::Http => running.proxy.attempt(input).await,
    };
    if let Some(panic) = panics::take() {
        return Err(panic);
    }
    outcome?;
    let took = begin.elapsed();
    if took > INPUT_TIME_MAX { Err(format!("it took {took:.1?}")) } else { Ok(()) }
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Dns => "dns",
            Self::Token => "token",
            Self::Config => "config",
            Self::Bootstrap => "bootstrap",
            Self::ProxyProtocol => "proxy_protocol",
            Self::Http => "http",
        }
    }
}
