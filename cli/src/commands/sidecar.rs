//! What `pillion proxy` and `pillion run` are told about a sidecar.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use pillion_model::instance::Protocol;
use pillion_model::name::check_label;

/// The registry to join, and how.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct JoinArguments {
    /// Registries to join, the first that answers: `host[:7071],…`.
    #[arg(long, env = "PILLION_REGISTRY", value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) registry: Vec<String>,
    /// The join token for the first start.
    #[arg(long, env = "PILLION_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) join_token: Option<String>,
    /// A file with the join token.
    #[arg(long, env = "PILLION_JOIN_TOKEN_FILE", value_name = "FILE", conflicts_with = "join_token")]
    pub(crate) join_token_file: Option<PathBuf>,
}

/// Who the instance beside the sidecar is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InstanceArguments {
    /// The service that the application beside the sidecar belongs to.
    #[arg(long, env = "PILLION_SERVICE", value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// The service's namespace.
    #[arg(long, env = "PILLION_NAMESPACE", value_name = "NAME", default_value = "default")]
    pub(crate) namespace: String,
    /// A port the application listens on: `[name=]port[:protocol]`, protocol http, http2, grpc or tcp.
    #[arg(long, env = "PILLION_PORT", value_name = "PORT", value_delimiter = ',')]
    pub(crate) port: Vec<PortText>,
    /// The instance's id within the service; without it, host name and port.
    #[arg(long, env = "PILLION_INSTANCE_ID", value_name = "ID")]
    pub(crate) instance_id: Option<String>,
    /// Labels of the instance, by which subsets select: `version=v1`.
    #[arg(long, env = "PILLION_LABEL", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub(crate) label: Vec<LabelText>,
    /// Availability zone of the instance.
    #[arg(long, env = "PILLION_ZONE", value_name = "ZONE", default_value = "")]
    pub(crate) zone: String,
    /// Relative share of traffic, 0 to 65535.
    #[arg(long, env = "PILLION_WEIGHT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=65535))]
    pub(crate) weight: u32,
    /// How long the registration lives unrenewed, in seconds.
    #[arg(long, env = "PILLION_TTL", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=86400))]
    pub(crate) ttl: u64,
    /// The address others reach this instance at; without it, the one that reaches the registry.
    #[arg(long, env = "PILLION_ADVERTISE", value_name = "HOST[:PORT]")]
    pub(crate) advertise: Option<String>,
    /// Where the last configuration, the identity and the generation are kept.
    #[arg(long, env = "PILLION_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// Where the sidecar listens. Port 0 picks a free one; what was bound is printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListenArguments {
    /// For other sidecars, over mutual TLS.
    #[arg(long, env = "PILLION_INBOUND", value_name = "ADDRESS", default_value = "0.0.0.0:15006")]
    pub(crate) inbound: SocketAddr,
    /// For the application's calls: routed by Host, and an HTTP proxy.
    #[arg(long, env = "PILLION_OUTBOUND", value_name = "ADDRESS", default_value = "127.0.0.1:15001")]
    pub(crate) outbound: SocketAddr,
    /// Administration; loopback only. A sidecar's default is 127.0.0.1:15000, a bootstrap names its own.
    #[arg(long, env = "PILLION_ADMIN", value_name = "ADDRESS")]
    pub(crate) admin: Option<SocketAddr>,
    /// `/metrics`, `/ready` and `/live`. A sidecar's default is 0.0.0.0:15020; with a bootstrap, none.
    #[arg(long, env = "PILLION_METRICS", value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// DNS for the application; loopback only.
    #[arg(long, env = "PILLION_DNS", value_name = "ADDRESS", default_value = "127.0.0.1:15053")]
    pub(crate) dns: SocketAddr,
}

/// `[name=]port[:protocol]`, the name being the protocol's word unless given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortText {
    /// The port's name.
    pub(crate) name: String,
    /// Where the application listens, on loopback.
    pub(crate) port: u16,
    /// What is spoken.
    pub(crate) protocol: Protocol,
}

impl FromStr for PortText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) => (Some(name), rest),
            None => (None, text),
        };
        let (port, protocol) = rest.split_once(':').unwrap_or((rest, "http"));
        let port: u16 = port.parse().map_err(|_| format!("`{port}` is no port; want 1 to 65535"))?;
        if port == 0 {
            return Err("port 0 cannot be called; want 1 to 65535".to_owned());
        }
        let protocol = Protocol::parse(protocol)
            .ok_or_else(|| format!("protocol `{protocol}` is unknown; want http, http2, grpc or tcp"))?;
        let name = name.unwrap_or_else(|| protocol.as_str()).to_owned();
        check_label(&name).map_err(|error| format!("port name `{name}` {error}"))?;
        Ok(Self { name, port, protocol })
    }
}

impl std::fmt::Display for PortText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}:{}", self.name, self.port, self.protocol.as_str())
    }
}

/// `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LabelText {
    /// Before the equals sign.
    pub(crate) key: String,
    /// After it.
    pub(crate) value: String,
}

impl FromStr for LabelText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!("`{text}` is not of the form key=value")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_name_and_a_protocol() {
        for (text, want) in [
            ("8080", "http=8080:http"),
            ("8080:grpc", "grpc=8080:grpc"),
            ("web=8080", "web=8080:http"),
            ("db=5432:tcp", "db=5432:tcp"),
        ] {
            assert_eq!(text.parse::<PortText>().expect(text).to_string(), want);
        }
        for (text, want) in [
            ("0", "port 0"),
            ("http", "no port"),
            ("80:udp", "`udp` is unknown"),
            ("Web=80", "port name `Web`"),
            ("70000", "no port"),
        ] {
            let error = text.parse::<PortText>().expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
