//! The same task in each proxy's own words.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

/// The identity that both ends of a pair have.
const IDENTITY: &str = "spiffe://bench/ns/default/svc/bench";

/// What one proxy does.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// Where it accepts.
    pub listen: SocketAddr,
    /// Where it sends.
    pub to: SocketAddr,
    /// What is mutual TLS.
    pub role: Role,
    /// What is carried.
    pub carried: Carried,
    /// Each connection to the upstream is for one request.
    pub once: bool,
    /// Further clusters, each with a host of its own, which nobody asks for.
    pub clusters: usize,
}

/// What goes through the proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// HTTP/1.1 between client, proxies and application.
    Http1,
    /// gRPC, over HTTP/2 all the way.
    Grpc,
    /// Bytes that nobody looks at.
    Bytes,
}

/// Which side of a proxy is mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// None.
    Plain,
    /// The way to the upstream, over HTTP/2 where the proxy can.
    Caller,
    /// The way from the downstream, which is authorised by its certificate.
    Receiver,
}

/// Certificates in files.
#[derive(Clone, Debug)]
pub struct Tls {
    roots: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    /// Certificate and key in one.
    both: PathBuf,
}

impl Tls {
    /// Makes an authority and one certificate for both ends.
    ///
    /// # Errors
    ///
    /// If the files cannot be written.
    pub fn make(folder: &Path) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut root = CertificateParams::new(Vec::<String>::new())?;
        // A certificate with its issuer's name would be taken for one that signed itself.
        root.distinguished_name.push(DnType::CommonName, "bench root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root_certificate = root.self_signed(&key)?;
        let issuer = Issuer::new(root, key);
        let leaf_key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(Vec::<String>::new())?;
        let address = SanType::IpAddress(Ipv4Addr::LOCALHOST.into());
        leaf.subject_alt_names = vec![SanType::URI(IDENTITY.try_into()?), address];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = leaf.signed_by(&leaf_key, &issuer)?;
        let write = |name: &str, text: String| {
            let file = folder.join(name);
            std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            Ok::<_, anyhow::Error>(file)
        };
        Ok(Self {
            roots: write("roots.pem", root_certificate.pem())?,
            both: write("both.pem", leaf.pem() + &leaf_key.serialize_pem())?,
            certificate: write("certificate.pem", leaf.pem())?,
            key: write("key.pem", leaf_key.serialize_pem())?,
        })
    }

    /// The authority's certificate.
    pub(super) fn read_roots(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        Ok(CertificateDer::pem_file_iter(&self.roots)?.collect::<Result<_, _>>()?)
    }

    /// The certificate of both ends, and its key.
    pub(super) fn read_leaf(&self) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_file_iter(&self.certificate)?.collect::<Result<_, _>>()?;
        Ok((chain, PrivateKeyDer::from_pem_file(&self.key)?))
    }

    /// Envoy's `CommonTlsContext`.
    fn common(&self) -> Value {
        json!({
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": ["h2"],
            "tls_certificates": [{
                "certificate_chain": {"filename": self.certificate}, "private_key": {"filename": self.key},
            }],
            "validation_context": {
                "trusted_ca": {"filename": self.roots},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": IDENTITY}}],
            },
        })
    }
}

fn typed(kind: &str, mut settings: Value) -> Value {
    settings["@type"] = format!("type.googleapis.com/{kind}").into();
    settings
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

/// A bootstrap for Envoy, which Pillion runs as well.
pub(super) fn envoy(hop: &Hop, tls: Option<&Tls>) -> String {
    let mut cluster = json!({
        "name": "app",
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000,
        }]},
        "load_assignment": {
            "cluster_name": "app",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(hop.to)}}]}],
        },
    });
    let mut options = json!({});
    if hop.carried == Carried::Grpc || hop.role == Role::Caller {
        options["explicit_http_config"] = json!({"http2_protocol_options": {}});
    } else {
        options["explicit_http_config"] = json!({"http_protocol_options": {}});
    }
    if hop.once {
        options["common_http_protocol_options"] = json!({"max_requests_per_connection": 1});
    }
    if hop.carried != Carried::Bytes {
        let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"] = json!({kind: typed(kind, options)});
    }
    let mut chain = json!({});
    let mut filters = Vec::new();
    let mut manager = json!({
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {
                "cluster": "app",
                "timeout": "15s",
                "retry_policy": {"retry_on": "connect-failure,refused-stream,reset", "num_retries": 2},
            }}],
        }]},
    });
    match (hop.role, tls) {
        (Role::Caller, Some(tls)) => {
            let context = json!({"common_tls_context": tls.common(), "sni": "bench"});
            let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
            cluster["transport_socket"] = json!({"name": "tls", "typed_config": typed(kind, context)});
        }
        (Role::Receiver, Some(tls)) => {
            let context = json!({"common_tls_context": tls.common(), "require_client_certificate": true});
            let kind = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
            chain["transport_socket"] = json!({"name": "tls", "typed_config": typed(kind, context)});
            let principal = json!({"authenticated": {"principal_name": {"exact": IDENTITY}}});
            let policy = json!({"permissions": [{"any": true}], "principals": [principal]});
            let rules = json!({"rules": {"action": "ALLOW", "policies": {"bench": policy}}});
            let kind = "envoy.extensions.filters.http.rbac.v3.RBAC";
            filters.push(json!({"name": "envoy.filters.http.rbac", "typed_config": typed(kind, rules)}));
            manager["forward_client_cert_details"] = "SANITIZE_SET".into();
            manager["set_current_client_cert_details"] = json!({"uri": true});
        }
        _ => {}
    }
    let router = typed("envoy.extensions.filters.http.router.v3.Router", json!({}));
    filters.push(json!({"name": "router", "typed_config": router}));
    manager["http_filters"] = filters.into();
    let mut clusters = vec![cluster];
    let hosts = manager["route_config"]["virtual_hosts"].as_array_mut();
    if let Some(hosts) = hosts {
        for number in 0..hop.clusters {
            let (name, mut further) = (format!("further-{number}"), clusters[0].clone());
            further["name"] = name.clone().into();
            further["load_assignment"]["cluster_name"] = name.clone().into();
            let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name}});
            hosts.push(json!({"name": name, "domains": [name], "routes": [route]}));
            clusters.push(further);
        }
    }
    chain["filters"] = if hop.carried == Carried::Bytes {
        let kind = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
        let bytes = json!({"stat_prefix": "bench", "cluster": "app"});
        json!([{"name": "tcp", "typed_config": typed(kind, bytes)}])
    } else {
        let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        json!([{"name": "http", "typed_config": typed(kind, manager)}])
    };
    let listener = json!({"name": "in", "address": address(hop.listen), "filter_chains": [chain]});
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}}).to_string()
}

/// HAProxy speaks HTTP/1.1 to its upstream, but of gRPC.
pub(super) fn haproxy(hop: &Hop, tls: Option<&Tls>) -> String {
    let (mut bind, mut server, mut rule) = (String::new(), String::new(), String::new());
    if let Some(tls) = tls {
        let (both, roots) = (tls.both.display(), tls.roots.display());
        let secure = format!("ssl crt {both} ca-file {roots} verify required ssl-min-ver TLSv1.3");
        match hop.role {
            Role::Plain => {}
            Role::Caller => server = secure,
            Role::Receiver => {
                bind = secure;
                rule = "  http-request deny unless { ssl_c_used } { ssl_c_verify 0 }
  http-request set-header x-forwarded-client-cert Hash=%[ssl_c_sha1,hex]
"
                .to_owned();
            }
        }
    }
    let Hop { listen, to, .. } = hop;
    if hop.carried == Carried::Bytes {
        return format!(
            "global
  nbthread 1
  maxconn 8000
defaults
  mode tcp
  timeout connect 1s
  timeout client 60s
  timeout server 60s
frontend in
  bind {listen} {bind}
  default_backend out
backend out
  server app {to} {server}
"
        );
    }
    if hop.carried == Carried::Grpc {
        bind.push_str(if bind.is_empty() { "proto h2" } else { " alpn h2" });
        server.push_str(if server.is_empty() { "proto h2" } else { " alpn h2" });
    }
    let (keep, reuse) = if hop.once { ("http-server-close", "never") } else { ("http-keep-alive", "always") };
    format!(
        "global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server 15s
  retries 2
  option {keep}
  http-reuse {reuse}
frontend in
  bind {listen} {bind}
  option forwardfor
  unique-id-format %{{+X}}o%ci:%cp_%fi:%fp_%Ts_%rt
  unique-id-header x-request-id
{rule}  default_backend out
backend out
  server app {to} {server}
"
    )
}

/// nginx is held against others on one plaintext hop only.
pub(super) fn nginx(hop: &Hop, folder: &Path) -> String {
    let Hop { listen, to, .. } = hop;
    let folder = folder.display();
    format!(
        "daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 20000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  upstream app {{ server {to}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen {listen};
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Request-ID $request_id;
    }}
  }}
}}
"
    )
}
