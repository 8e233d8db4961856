//! `pillion proxy --service`: a sidecar of the mesh.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use pillion_model::http::{AccessLog, LogFormat};
use pillion_model::instance::InstancePort;
use pillion_model::name::{InstanceId, NodeId, ServiceName};
use pillion_net::resolve::{Resolver, Target};
use pillion_proxy::Egress;
use pillion_proxy::sidecar::{Advertise, Options, Sidecar};
use tokio::signal::unix::{SignalKind, signal};

use super::{AccessLogFormat, Arguments};
use crate::exit::Usage;
use crate::logging::SetLogFilter;
use crate::output::{line, note};

/// Runs until SIGTERM or Ctrl-C; `POST /drain` drains the inbound side before.
pub(super) async fn run(arguments: &Arguments, set_log_filter: SetLogFilter) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let options = options(arguments, set_log_filter).await?;
    let node = options.node.clone();
    let mut sidecar = tokio::select! {
        started = Sidecar::start(options) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    announce(&sidecar)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            reason = sidecar.refused() => {
                sidecar.stop().await;
                anyhow::bail!("the registry refuses {node}: {reason}");
            }
            () = sidecar.drain_asked(), if !sidecar.is_draining() => {
                note("draining the inbound side; the outbound side goes on until SIGTERM");
                sidecar.drain().await;
            }
        }
    }
    sidecar.stop().await;
    Ok(())
}

fn announce(sidecar: &Sidecar) -> anyhow::Result<()> {
    let bound = sidecar.bound();
    for (name, address) in [
        ("inbound", bound.inbound),
        ("outbound", bound.outbound),
        ("admin", bound.admin),
        ("metrics", bound.metrics),
        ("dns", bound.dns),
    ] {
        line(format_args!("{name} {address}"))?;
    }
    if let Some(range) = &bound.vips {
        line(format_args!("vips {range}"))?;
    }
    Ok(())
}

async fn options(arguments: &Arguments, set_log_filter: SetLogFilter) -> anyhow::Result<Options> {
    let (instance, listen) = (&arguments.instance, &arguments.listen);
    let Some(service) = &instance.service else {
        let text = "--service is needed: the service beside the proxy (or --envoy-config, to join no mesh)";
        return Err(Usage(text.to_owned()).into());
    };
    let service = ServiceName::new(&instance.namespace, service).map_err(|error| {
        Usage(format!("--service {service} in namespace {}: {error}", instance.namespace))
    })?;
    let ports = ports(arguments)?;
    let Some(first) = ports.values().map(|port| port.port).min() else {
        let text = "--port is needed: what the application listens on, such as 8080 or 9000:grpc";
        return Err(Usage(text.to_owned()).into());
    };
    let id = match &instance.instance_id {
        Some(id) => InstanceId::parse(id).map_err(|error| Usage(format!("--instance-id {id}: {error}")))?,
        None => InstanceId::from_host_and_port(&host_name(), first),
    };
    let mut options = Options::new(NodeId { service, instance: id }, ports, arguments.join.targets()?);
    options.credential = Some(arguments.join.credential()?);
    options.inbound = listen.inbound;
    options.outbound = listen.outbound;
    options.admin = local("--admin", listen.admin.unwrap_or(options.admin))?;
    options.metrics = listen.metrics.unwrap_or(options.metrics);
    options.dns = local("--dns", listen.dns)?;
    options.advertise = match &instance.advertise {
        Some(text) => Some(advertise(text).await?),
        None => None,
    };
    options.state_dir.clone_from(&instance.state_dir);
    options.labels = instance.label.iter().map(|label| (label.key.clone(), label.value.clone())).collect();
    options.weight = instance.weight;
    options.zone.clone_from(&instance.zone);
    options.ttl = Duration::from_secs(instance.ttl);
    options.workers = arguments.workers().get();
    options.egress = match arguments.egress {
        super::Egress::Allow => Egress::Allow,
        super::Egress::Deny => Egress::Deny,
    };
    options.access_logs = access_logs(arguments);
    options.set_log_filter = Some(set_log_filter);
    Ok(options)
}

fn ports(arguments: &Arguments) -> anyhow::Result<BTreeMap<String, InstancePort>> {
    let mut ports = BTreeMap::new();
    for text in &arguments.instance.port {
        let port = InstancePort { port: text.port, protocol: text.protocol, app_address: None };
        if ports.insert(text.name.clone(), port).is_some() {
            let name = &text.name;
            return Err(Usage(format!(
                "--port: two ports are called `{name}`; name one, such as admin=9000"
            ))
            .into());
        }
    }
    Ok(ports)
}

/// Administration and DNS are for this machine only.
fn local(flag: &str, address: SocketAddr) -> anyhow::Result<SocketAddr> {
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err(Usage(format!("{flag} {address}: must be a loopback address, such as 127.0.0.1:{}", address.port()))
        .into())
}

async fn advertise(text: &str) -> anyhow::Result<Advertise> {
    let target = Target::parse(text, 0).with_context(|| format!("--advertise {text}"))?;
    let addresses = Resolver::system().addresses(&target.host).await;
    let addresses = addresses.with_context(|| format!("--advertise {text}"))?;
    let address = addresses.first().copied().with_context(|| format!("--advertise {text}: no address"))?;
    Ok(Advertise { address, inbound_port: (target.port != 0).then_some(target.port) })
}

fn access_logs(arguments: &Arguments) -> Vec<AccessLog> {
    let Some(path) = &arguments.access_log else { return Vec::new() };
    let format = match arguments.access_log_format {
        AccessLogFormat::Text => LogFormat::Text(None),
        AccessLogFormat::Json => LogFormat::Json(
            JSON_FIELDS.iter().map(|&(key, format)| (key.to_owned(), format.to_owned())).collect(),
        ),
    };
    vec![AccessLog { path: path.clone(), format }]
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { Ipv4Addr::LOCALHOST.to_string() } else { name }
}

/// Fields of a JSON line, with Envoy's operators.
const JSON_FIELDS: [(&str, &str); 17] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytesReceived", "%BYTES_RECEIVED%"),
    ("bytesSent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(:PATH)%"),
    ("peer", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("protocol", "%PROTOCOL%"),
    ("remoteAddress", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requestId", "%REQ(X-REQUEST-ID)%"),
    ("responseCode", "%RESPONSE_CODE%"),
    ("responseCodeDetails", "%RESPONSE_CODE_DETAILS%"),
    ("responseFlags", "%RESPONSE_FLAGS%"),
    ("route", "%ROUTE_NAME%"),
    ("startTime", "%START_TIME%"),
    ("upstreamCluster", "%UPSTREAM_CLUSTER%"),
    ("upstreamHost", "%UPSTREAM_HOST%"),
];
