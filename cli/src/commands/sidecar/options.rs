//! From flags to what a sidecar is started with.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use pillion_model::http::{AccessLog, LogFormat};
use pillion_model::instance::InstancePort;
use pillion_model::name::{InstanceId, NodeId, ServiceName};
use pillion_net::attest::{Attestation, pins};
use pillion_net::bootstrap::{Credential, JoinToken};
use pillion_net::resolve::{Resolver, Target};
use pillion_proxy::Egress;
use pillion_proxy::sidecar::{Advertise, Options, Upstream, stored_instance};

use super::{
    AccessLogFormat, AttestArguments, AttestMethod, InstanceArguments, JoinArguments, SidecarArguments,
    TrafficArguments,
};
use crate::arguments::MESH_PORT;
use crate::exit::Usage;

impl SidecarArguments {
    /// What a sidecar is started with.
    ///
    /// Everything that needs nobody else is read here, so that wrong usage is told before anything
    /// starts; [`resolve_advertised`] does the rest.
    ///
    /// # Errors
    ///
    /// [`Usage`] names the flag.
    pub(crate) fn options(&self) -> anyhow::Result<Options> {
        let instance = &self.instance;
        if let Some(text) = &instance.advertise {
            Target::parse(text, 0).map_err(|error| Usage(format!("--advertise: {error}")))?;
        }
        let service = self.service()?;
        let ports = self.ports()?;
        let first = ports.values().map(|port| port.port).min();
        let id = self.instance_id(&service, first)?;
        let mut options = Options::new(NodeId { service, instance: id }, ports, self.join.targets()?);
        options.credential = Some(self.join.credential()?);
        options.agent.clone_from(&instance.spiffe_socket);
        if let Some(domain) = &instance.mesh_domain {
            options.mesh_domain.clone_from(domain);
        }
        self.listen(&mut options)?;
        options.upstreams =
            self.listen.upstream.iter().map(|text| self.upstream(text)).collect::<Result<_, _>>()?;
        options.dependencies =
            self.listen.dependency.iter().map(|text| self.dependency(text)).collect::<Result<_, _>>()?;
        options.hosts_file.clone_from(&self.listen.hosts_file);
        options.state_dir.clone_from(&instance.state_dir);
        let label = |label: &super::LabelText| (label.key.clone(), label.value.clone());
        options.labels = instance.label.iter().map(label).collect();
        options.weight = instance.weight;
        options.zone.clone_from(&instance.zone);
        options.ttl = Duration::from_secs(instance.ttl);
        options.workers = self.traffic.workers().get();
        options.memory_max = self.traffic.memory_max;
        options.egress = match self.traffic.egress {
            super::Egress::Allow => Egress::Allow,
            super::Egress::Deny => Egress::Deny,
        };
        options.access_logs = self.traffic.access_logs();
        Ok(options)
    }

    fn service(&self) -> anyhow::Result<ServiceName> {
        let InstanceArguments { service, namespace, .. } = &self.instance;
        let Some(service) = service else {
            let text = "--service is needed: the service that the application beside the sidecar belongs to";
            return Err(Usage(text.to_owned()).into());
        };
        let name = ServiceName::new(namespace, service);
        Ok(name.map_err(|error| Usage(format!("--service {service} in namespace {namespace}: {error}")))?)
    }

    fn instance_id(&self, service: &ServiceName, port: Option<u16>) -> anyhow::Result<InstanceId> {
        if let Some(id) = &self.instance.instance_id {
            let id = InstanceId::parse(id).map_err(|error| Usage(format!("--instance-id {id}: {error}")));
            return Ok(id?);
        }
        if let Some(dir) = &self.instance.state_dir
            && let Some(stored) = stored_instance(dir, service)?
        {
            return Ok(stored);
        }
        let host = host_name();
        Ok(match port {
            Some(port) => InstanceId::from_host_and_port(&host, port),
            None => InstanceId::from_host_and_port(&format!("{host}-{}", std::process::id()), 0),
        })
    }

    fn listen(&self, options: &mut Options) -> anyhow::Result<()> {
        let listen = &self.listen;
        options.inbound = listen.inbound.unwrap_or(options.inbound);
        options.outbound = listen.outbound.unwrap_or(options.outbound);
        options.admin = local("--admin", listen.admin.unwrap_or(options.admin))?;
        options.metrics = listen.metrics.unwrap_or(options.metrics);
        options.dns = local("--dns", listen.dns.unwrap_or(options.dns))?;
        Ok(())
    }

    fn upstream(&self, text: &super::UpstreamText) -> anyhow::Result<Upstream> {
        let namespace = text.namespace.as_ref().unwrap_or(&self.instance.namespace);
        let service = ServiceName::new(namespace, &text.service);
        let service = service.map_err(|error| Usage(format!("--upstream {text}: {error}")))?;
        Ok(Upstream { listen: text.listen, service, port: text.port })
    }

    fn dependency(&self, text: &str) -> anyhow::Result<ServiceName> {
        let (service, namespace) = text.split_once('.').unwrap_or((text, &self.instance.namespace));
        Ok(ServiceName::new(namespace, service)
            .map_err(|error| Usage(format!("--dependency {text}: {error}")))?)
    }

    fn ports(&self) -> anyhow::Result<BTreeMap<String, InstancePort>> {
        let mut ports = BTreeMap::new();
        for text in &self.instance.port {
            let port = InstancePort { port: text.port, protocol: text.protocol, app_address: None };
            if ports.insert(text.name.clone(), port).is_some() {
                let name = &text.name;
                let text = format!("--port: two ports are called `{name}`; name one, such as admin=9000");
                return Err(Usage(text).into());
            }
        }
        Ok(ports)
    }
}

impl JoinArguments {
    /// The registries to join.
    pub(crate) fn targets(&self) -> anyhow::Result<Vec<Target>> {
        let targets = self.registry.iter().map(|text| Target::parse(text, MESH_PORT));
        Ok(targets.collect::<Result<_, _>>().map_err(|error| Usage(format!("--registry: {error}")))?)
    }

    /// What proves that we may join: a token, or being on the machine of a registry that is open.
    pub(crate) fn credential(&self) -> anyhow::Result<Credential> {
        if let Some(with) = self.attest.attestation()? {
            let pins = self.attest.pins()?;
            return Ok(Credential::Attestation { with, pins });
        }
        // A variable that is set to nothing, as compose files do it, says nothing.
        let given = self.join_token.as_ref().filter(|token| !token.trim().is_empty());
        let token = match (given, &self.join_token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => {
                std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?
            }
            (None, None) => return Ok(Credential::OpenLoopback),
        };
        Ok(Credential::Token(token.parse::<JoinToken>()?))
    }
}

impl AttestArguments {
    fn attestation(&self) -> Result<Option<Attestation>, Usage> {
        let Some(method) = self.attest else { return Ok(None) };
        let attestation = match (method, &self.attest_cert, &self.attest_key) {
            (AttestMethod::X509, Some(certificate), Some(key)) => {
                Attestation::X509 { certificate: certificate.clone(), key: key.clone() }
            }
            (AttestMethod::X509, ..) => {
                return Err(Usage("--attest x509 needs --attest-cert and --attest-key".to_owned()));
            }
            (AttestMethod::Kubernetes, ..) => {
                let file = self.attest_token_file.clone();
                Attestation::Kubernetes { token: file.unwrap_or_else(|| TOKEN_FILE.into()) }
            }
            (AttestMethod::Aws, ..) => Attestation::Aws,
        };
        Ok(Some(attestation))
    }

    fn pins(&self) -> Result<Vec<[u8; 32]>, Usage> {
        let needed =
            || Usage("--attest needs --registry-roots, by which the registry is verified".to_owned());
        let file = self.registry_roots.as_ref().ok_or_else(needed)?;
        let wrong = |reason: String| Usage(format!("--registry-roots {}: {reason}", file.display()));
        let text = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        pins(&text).map_err(wrong)
    }
}

/// Where a projected token is usually mounted.
const TOKEN_FILE: &str = "/var/run/secrets/pillion/token";

/// The address that `--advertise` names.
pub(crate) async fn resolve_advertised(arguments: &SidecarArguments) -> anyhow::Result<Option<Advertise>> {
    match &arguments.instance.advertise {
        Some(text) => Ok(Some(advertise(text).await?)),
        None => Ok(None),
    }
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

impl TrafficArguments {
    fn access_logs(&self) -> Vec<AccessLog> {
        let Some(path) = &self.access_log else { return Vec::new() };
        let format = match self.access_log_format {
            AccessLogFormat::Text => LogFormat::Text(None),
            AccessLogFormat::Json => LogFormat::Json(
                JSON_FIELDS.iter().map(|&(key, format)| (key.to_owned(), format.to_owned())).collect(),
            ),
        };
        vec![AccessLog { path: path.clone(), format, filter: None }]
    }
}

pub(crate) fn host_name() -> String {
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
