//! Turns host names into addresses without `getaddrinfo`, which a static binary lacks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use hickory_resolver::TokioResolver;

/// A host name or address with a port, as users write it: `registry.example.com:7071`, `10.0.0.1`,
/// `[::1]:7071`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Why a text is no [`Target`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not of the form host[:port]: {reason}")]
pub struct TargetError {
    found: String,
    reason: &'static str,
}

impl Target {
    /// Reads one target; `default_port` where none is written.
    ///
    /// # Errors
    ///
    /// [`TargetError`] tells what is wrong.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, TargetError> {
        let refuse = |reason| TargetError { found: text.to_owned(), reason };
        if text.contains("://") {
            return Err(refuse("leave out the scheme"));
        }
        if let Ok(address) = SocketAddr::from_str(text) {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = IpAddr::from_str(bare) {
            return Ok(Self { host: address.to_string(), port: default_port });
        }
        let (host, port) = match text.rsplit_once(':') {
            None => (text, default_port),
            Some((host, port)) => (host, port.parse().map_err(|_| refuse("the port is not 0 to 65535"))?),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(allowed) {
            return Err(refuse("the host is neither an address nor a DNS name"));
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// Reads a list separated by commas.
    ///
    /// # Errors
    ///
    /// The first element's that is wrong; an empty list is wrong, too.
    pub fn parse_list(text: &str, default_port: u16) -> Result<Vec<Self>, TargetError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let targets = parts.map(|part| Self::parse(part, default_port)).collect::<Result<Vec<_>, _>>()?;
        if targets.is_empty() {
            return Err(TargetError { found: text.to_owned(), reason: "it names no host" });
        }
        Ok(targets)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why a host has no address for us.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No name server is known.
    #[error(
        "cannot resolve `{host}`: this machine has no usable /etc/resolv.conf; write an IP address instead"
    )]
    NoConfiguration {
        /// The name.
        host: String,
    },
    /// The name servers did not help.
    #[error("cannot resolve `{host}`: {reason}")]
    Lookup {
        /// The name.
        host: String,
        /// The resolver's message.
        reason: String,
    },
}

/// Resolves names by `/etc/resolv.conf` and `/etc/hosts`, both read once. Cheap to clone.
#[derive(Clone)]
pub struct Resolver(Option<TokioResolver>);

impl Resolver {
    /// A resolver with the system's configuration. Without `/etc/resolv.conf` it knows addresses and
    /// `localhost` only.
    pub fn system() -> Self {
        let made = TokioResolver::builder_tokio().and_then(|mut builder| {
            let options = builder.options_mut();
            options.timeout = QUERY_TIMEOUT;
            options.attempts = 2;
            builder.build()
        });
        Self(
            made.inspect_err(
                |error| tracing::warn!(%error, "no DNS configuration, names cannot be resolved"),
            )
            .ok(),
        )
    }

    /// Every address of `host`, in the resolver's order; addresses are themselves.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] names the host.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if host.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        let Some(resolver) = &self.0 else {
            return Err(ResolveError::NoConfiguration { host: host.to_owned() });
        };
        match resolver.lookup_ip(host).await {
            Ok(found) => Ok(found.iter().collect()),
            Err(error) => {
                // The resolver's own text for these shows its structures.
                let reason = if error.is_nx_domain() {
                    "there is no such name".to_owned()
                } else if error.is_no_records_found() {
                    "the name has no address".to_owned()
                } else {
                    error.to_string()
                };
                Err(ResolveError::Lookup { host: host.to_owned(), reason })
            }
        }
    }

    /// Every socket address of `target`.
    ///
    /// # Errors
    ///
    /// As [`Resolver::addresses`].
    pub async fn sockets(&self, target: &Target) -> Result<Vec<SocketAddr>, ResolveError> {
        let found = self.addresses(&target.host).await?;
        Ok(found.into_iter().map(|ip| SocketAddr::new(ip, target.port)).collect())
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_take_names_and_addresses_with_and_without_port() {
        for (text, want) in [
            ("registry", "registry:7071"),
            ("registry.example.com:80", "registry.example.com:80"),
            ("10.0.0.1", "10.0.0.1:7071"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("::1", "[::1]:7071"),
            ("[::1]", "[::1]:7071"),
            ("[::1]:5", "[::1]:5"),
        ] {
            assert_eq!(Target::parse(text, 7071).expect(text).to_string(), want);
        }
        for bad in ["", ":7071", "a:b", "a:70000", "https://a", "a b", "a/b"] {
            assert!(Target::parse(bad, 7071).is_err(), "{bad}");
        }
        let list = Target::parse_list("a, b:1,", 7071).expect("two");
        assert_eq!(list.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:7071", "b:1"]);
        assert!(Target::parse_list(" ,", 7071).is_err());
    }

    #[tokio::test]
    async fn addresses_and_localhost_need_no_name_server() {
        let resolver = Resolver(None);
        for (host, want) in [("10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("localhost", "127.0.0.1")] {
            assert_eq!(resolver.addresses(host).await.expect(host), [want.parse::<IpAddr>().expect("ip")]);
        }
        let error = resolver.addresses("registry").await.expect_err("no configuration");
        assert!(error.to_string().contains("write an IP address"), "{error}");
    }
}
