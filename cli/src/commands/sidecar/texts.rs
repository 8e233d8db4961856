//! What single flags of a sidecar hold.

use std::str::FromStr;

use pillion_model::instance::Protocol;
use pillion_model::name::check_label;

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

impl std::fmt::Display for LabelText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// `port=service[.namespace][:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamText {
    /// The port of 127.0.0.1; 0 picks a free one.
    pub(crate) listen: u16,
    /// The service's name.
    pub(crate) service: String,
    /// Its namespace; `None`: the caller's own.
    pub(crate) namespace: Option<String>,
    /// The service's port.
    pub(crate) port: u16,
}

impl FromStr for UpstreamText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (listen, target) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not of the form port=service[.namespace][:port]"))?;
        let number = |port: &str| port.parse().map_err(|_| format!("`{port}` is no port; want 0 to 65535"));
        let (name, port) = match target.split_once(':') {
            Some((name, port)) => (name, number(port)?),
            None => (target, UPSTREAM_PORT_DEFAULT),
        };
        let (service, namespace) = match name.split_once('.') {
            Some((service, namespace)) => (service, Some(namespace)),
            None => (name, None),
        };
        for label in std::iter::once(service).chain(namespace) {
            check_label(label)
                .map_err(|error| format!("`{label}` {error}; want service or service.namespace"))?;
        }
        let namespace = namespace.map(str::to_owned);
        Ok(Self { listen: number(listen)?, service: service.to_owned(), namespace, port })
    }
}

impl std::fmt::Display for UpstreamText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { listen, service, namespace, port } = self;
        match namespace {
            Some(namespace) => write!(f, "{listen}={service}.{namespace}:{port}"),
            None => write!(f, "{listen}={service}:{port}"),
        }
    }
}

/// The port of a service where an upstream names none.
const UPSTREAM_PORT_DEFAULT: u16 = 80;

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

    #[test]
    fn upstreams_have_a_local_port_and_a_service() {
        for (text, want) in [
            ("9001=orders.shop:8080", "9001=orders.shop:8080"),
            ("0=orders", "0=orders:80"),
            ("9001=db:5432", "9001=db:5432"),
        ] {
            assert_eq!(text.parse::<UpstreamText>().expect(text).to_string(), want);
        }
        for (text, want) in [
            ("orders.shop", "not of the form"),
            ("x=orders", "`x` is no port"),
            ("1=orders:x", "`x` is no port"),
            ("1=orders.shop.mesh.internal", "`shop.mesh.internal`"),
            ("1=", "``"),
        ] {
            let error = text.parse::<UpstreamText>().expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
