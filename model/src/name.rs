//! Names and identities: labels, services, trust domains, SPIFFE ids, node ids, cluster names.
//!
//! A name is parsed once at the edge and is valid ever after. Names have one spelling: upper case
//! is refused rather than folded, except where DNS questions arrive (callers fold those first).

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

/// The DNS zone and trust domain used unless the Mesh resource sets another.
pub const DEFAULT_DOMAIN: &str = "mesh.internal";

/// The namespace used when none is written.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Labels that the DNS grammar uses itself and that therefore name no service and no namespace.
pub const RESERVED_LABELS: [&str; 4] = ["svc", "sub", "inst", "all"];

/// Why a text is not a valid name. The message says what is wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters at all.
    #[error("is empty; want 1 to {max} characters")]
    Empty {
        /// Longest allowed length in bytes.
        max: usize,
    },
    /// Longer than allowed.
    #[error("is {len} characters long; want at most {max}")]
    TooLong {
        /// Length found, in bytes.
        len: usize,
        /// Longest allowed length in bytes.
        max: usize,
    },
    /// A character that is not allowed, or not at this place.
    #[error("has {found:?} at position {at}; want {want}")]
    Character {
        /// Byte offset of the first offending character.
        at: usize,
        /// The character.
        found: char,
        /// What is allowed.
        want: &'static str,
    },
    /// A label that the DNS grammar keeps for itself.
    #[error("`{0}` is reserved for DNS names; choose another name than svc, sub, inst, all")]
    Reserved(String),
    /// The parts do not have the expected form.
    #[error("`{found}` is not of the form `{want}`")]
    Form {
        /// The text as given.
        found: String,
        /// The expected form.
        want: &'static str,
    },
}

/// Checks an RFC 1123 label: 1 to 63 of `a-z`, `0-9` and `-`, not beginning or ending with `-`.
///
/// # Errors
///
/// [`NameError`] tells the length or the first character that is not allowed.
pub fn check_label(text: &str) -> Result<(), NameError> {
    const WANT: &str = "a-z, 0-9 and -, beginning and ending with a letter or digit";
    if text.is_empty() {
        return Err(NameError::Empty { max: 63 });
    }
    if text.len() > 63 {
        return Err(NameError::TooLong { len: text.len(), max: 63 });
    }
    let last = text.len() - 1;
    for (at, found) in text.char_indices() {
        let inner = at != 0 && at != last;
        if !(found.is_ascii_lowercase() || found.is_ascii_digit() || (found == '-' && inner)) {
            return Err(NameError::Character { at, found, want: WANT });
        }
    }
    Ok(())
}

/// Checks a label that names a service or a namespace: a label that is not reserved.
///
/// # Errors
///
/// As [`check_label`], and [`NameError::Reserved`].
pub fn check_name(text: &str) -> Result<(), NameError> {
    check_label(text)?;
    if RESERVED_LABELS.contains(&text) {
        return Err(NameError::Reserved(text.to_owned()));
    }
    Ok(())
}

/// A service's full name: namespace and service label. Cheap to clone.
///
/// Written `service.namespace` (`Display`); `FromStr` also takes a bare `service`, which means
/// namespace `default`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    namespace: Arc<str>,
    service: Arc<str>,
}

impl ServiceName {
    /// Checks both labels and makes the name.
    ///
    /// # Errors
    ///
    /// [`NameError`] about the first label that is not valid.
    pub fn new(namespace: &str, service: &str) -> Result<Self, NameError> {
        check_name(namespace)?;
        check_name(service)?;
        Ok(Self { namespace: namespace.into(), service: service.into() })
    }

    /// The namespace label.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service label.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The service's DNS name in `zone`: `<service>.<namespace>.<zone>`.
    pub fn dns_name(&self, zone: &str) -> String {
        format!("{}.{}.{zone}", self.service, self.namespace)
    }

    /// The TLS server name a caller's sidecar sends for one port:
    /// `<port-name>.<service>.<namespace>.<zone>`.
    pub fn sni(&self, port_name: &str, zone: &str) -> String {
        format!("{port_name}.{}.{}.{zone}", self.service, self.namespace)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service, self.namespace)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('.') {
            None => Self::new(DEFAULT_NAMESPACE, text),
            Some((service, namespace)) if !namespace.contains('.') => Self::new(namespace, service),
            Some(_) => Err(NameError::Form { found: text.to_owned(), want: "service.namespace" }),
        }
    }
}

/// A trust domain name, such as `prod.example.com`: 1 to 255 bytes of `a-z`, `0-9`, `.`, `-`, `_`
/// (SPIFFE-ID sections 2.1 and 2.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain name.
    ///
    /// # Errors
    ///
    /// [`NameError`] tells the length or the first character that is not allowed.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty { max: 255 });
        }
        if text.len() > 255 {
            return Err(NameError::TooLong { len: text.len(), max: 255 });
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
        if let Some((at, found)) = text.char_indices().find(|&(_, c)| !allowed(c)) {
            return Err(NameError::Character { at, found, want: "a-z, 0-9, `.`, `-` and `_`" });
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(DEFAULT_DOMAIN.into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a peer is: one of the three SPIFFE id forms the mesh issues.
///
/// `spiffe://<trust-domain>/ns/<namespace>/svc/<service>` for workloads and gateways,
/// `spiffe://<trust-domain>/registry` for the registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    path: IdPath,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum IdPath {
    Service(ServiceName),
    Registry,
}

impl SpiffeId {
    /// The identity of a service's workloads.
    pub fn service(trust_domain: TrustDomain, service: ServiceName) -> Self {
        Self { trust_domain, path: IdPath::Service(service) }
    }

    /// The identity of the registry.
    pub fn registry(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, path: IdPath::Registry }
    }

    /// The trust domain part.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The service this identity belongs to; `None` for the registry.
    pub fn service_name(&self) -> Option<&ServiceName> {
        match &self.path {
            IdPath::Service(name) => Some(name),
            IdPath::Registry => None,
        }
    }

    /// Whether this is the registry's identity.
    pub fn is_registry(&self) -> bool {
        matches!(self.path, IdPath::Registry)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            IdPath::Service(name) => {
                write!(f, "spiffe://{}/ns/{}/svc/{}", self.trust_domain, name.namespace(), name.service())
            }
            IdPath::Registry => write!(f, "spiffe://{}/registry", self.trust_domain),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        const WANT: &str = "spiffe://<trust-domain>/ns/<namespace>/svc/<service>";
        let form = || NameError::Form { found: text.to_owned(), want: WANT };
        let rest = text.strip_prefix("spiffe://").ok_or_else(form)?;
        let (domain, path) = rest.split_once('/').ok_or_else(form)?;
        let trust_domain = TrustDomain::parse(domain)?;
        if path == "registry" {
            return Ok(Self::registry(trust_domain));
        }
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["ns", namespace, "svc", service] => {
                Ok(Self::service(trust_domain, ServiceName::new(namespace, service)?))
            }
            _ => Err(form()),
        }
    }
}

/// An instance id: an RFC 1123 label, unique within its service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// Parses an instance id.
    ///
    /// # Errors
    ///
    /// As [`check_label`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_label(text)?;
        Ok(Self(text.into()))
    }

    /// The default id of an instance without an explicit one: host name and port, made a label.
    ///
    /// Characters that are not allowed become `-`; a long host name is cut from the front.
    pub fn from_host_and_port(host: &str, port: u16) -> Self {
        let lower = host.to_ascii_lowercase();
        let clean: String = lower
            .chars()
            .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
            .collect();
        let suffix = format!("-{port}");
        let start = clean.len().saturating_sub(63 - suffix.len());
        let host = clean[start..].trim_matches('-');
        if host.is_empty() {
            return Self(format!("i{suffix}").into());
        }
        Self(format!("{host}{suffix}").into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// xDS `node.id`: `<namespace>/<service>/<instance-id>`. Must match the SVID of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// The service this node serves.
    pub service: ServiceName,
    /// The instance within the service.
    pub instance: InstanceId,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.service.namespace(), self.service.service(), self.instance)
    }
}

impl FromStr for NodeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(service), Some(instance), None) => Ok(Self {
                service: ServiceName::new(namespace, service)?,
                instance: InstanceId::parse(instance)?,
            }),
            _ => Err(NameError::Form { found: text.to_owned(), want: "<namespace>/<service>/<instance-id>" }),
        }
    }
}

/// The name of an outbound cluster: `outbound|<port-name>|<subset>|<service>.<namespace>`.
/// An empty subset means all instances. Also the name of its endpoints (EDS).
pub fn outbound_cluster(port_name: &str, subset: &str, service: &ServiceName) -> String {
    format!("outbound|{port_name}|{subset}|{service}")
}

/// The name of the route configuration (RDS) for one port of a service:
/// `<port-name>.<service>.<namespace>`.
pub fn route_configuration(port_name: &str, service: &ServiceName) -> String {
    format!("{port_name}.{service}")
}

/// The name of an inbound cluster: `inbound|<port-name>`.
pub fn inbound_cluster(port_name: &str) -> String {
    format!("inbound|{port_name}")
}

/// Reads the parts of an outbound cluster's name: port name, subset (may be empty), service.
pub fn parse_outbound_cluster(name: &str) -> Option<(&str, &str, ServiceName)> {
    let mut parts = name.split('|');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("outbound"), Some(port), Some(subset), Some(service), None) => {
            Some((port, subset, service.parse().ok()?))
        }
        _ => None,
    }
}

/// Whether sidecars use an address for themselves: 127.64.0.0/10, that of [`vip`].
pub fn is_vip(address: std::net::IpAddr) -> bool {
    matches!(address.to_canonical(), std::net::IpAddr::V4(v4) if v4.octets()[0] == 127 && v4.octets()[1] & 0xc0 == 64)
}

/// A loopback virtual address: the second half of 127.64.0.0/10's slot `slot`, for service index `index`.
///
/// Each sidecar claims one slot (0 to 63, the /16 `127.(64+slot).0.0`) and answers `index` in it.
pub fn vip(slot: u8, index: u16) -> std::net::Ipv4Addr {
    let [hi, lo] = index.to_be_bytes();
    std::net::Ipv4Addr::new(127, 64 + (slot & 63), hi, lo)
}

/// An address to dial: IP and port. Names are resolved before they become one.
pub type Address = SocketAddr;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_rfc_1123_and_errors_say_where() {
        for good in ["a", "orders", "a-1", "1a", &"x".repeat(63)] {
            check_label(good).expect(good);
        }
        for (bad, want) in [
            ("", "is empty"),
            ("Orders", "'O' at position 0"),
            ("-a", "'-' at position 0"),
            ("a-", "'-' at position 1"),
            ("a_b", "'_' at position 1"),
            (&"x".repeat(64) as &str, "64 characters"),
        ] {
            let error = check_label(bad).expect_err(bad).to_string();
            assert!(error.contains(want), "{bad}: {error}");
        }
        assert!(matches!(check_name("svc"), Err(NameError::Reserved(_))));
    }

    #[test]
    fn identities_read_back_what_they_print() {
        for text in ["spiffe://mesh.internal/ns/shop/svc/orders", "spiffe://mesh.internal/registry"] {
            assert_eq!(text.parse::<SpiffeId>().expect(text).to_string(), text);
        }
        for bad in [
            "https://mesh.internal/registry",
            "spiffe://mesh.internal",
            "spiffe://mesh.internal/ns/shop/svc/orders/x",
            "spiffe://MESH/registry",
            "spiffe://mesh.internal/ns/shop/svc/Orders",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn node_ids_cluster_names_and_vips_have_one_form() {
        let node: NodeId = "shop/orders/orders-1".parse().expect("valid");
        assert_eq!(node.to_string(), "shop/orders/orders-1");
        let name = outbound_cluster("http", "v1", &node.service);
        assert_eq!(name, "outbound|http|v1|orders.shop");
        assert_eq!(parse_outbound_cluster(&name), Some(("http", "v1", node.service)));
        assert_eq!(vip(3, 258).to_string(), "127.67.1.2");
        let is = |text: &str| is_vip(text.parse().expect("an address"));
        assert!(is("127.64.0.0") && is("127.127.255.255") && is("::ffff:127.67.1.2"));
        assert!(!is("127.63.255.255") && !is("127.128.0.0") && !is("10.64.0.1") && !is("::1"));
    }

    #[test]
    fn default_instance_ids_are_labels() {
        for host in ["ip-10-0-0-1.ec2.internal", "HOST", "", "___", &"h".repeat(100)] {
            let id = InstanceId::from_host_and_port(host, 8080);
            check_label(id.as_str()).unwrap_or_else(|error| panic!("{host}: {id} {error}"));
        }
    }
}
