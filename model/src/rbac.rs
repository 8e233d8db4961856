//! Authorization: Envoy's RBAC rules and the pure decision over them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::matcher::{Cidr, HeaderMatcher, RequestView, StringMatcher, cidr_contains};
use crate::metadata::MetadataMatcher;

/// The rules of an RBAC filter. Envoy: `config.rbac.v3.RBAC`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rbac {
    /// What a match means.
    pub action: Action,
    /// Policies by name, tried in the names' order.
    pub policies: BTreeMap<String, Policy>,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A match lets through; no match denies.
    Allow,
    /// A match denies; no match lets through.
    Deny,
    /// Never denies: counted and logged.
    Log,
}

/// Matches when any permission and any principal match.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// What is done.
    pub permissions: Vec<Permission>,
    /// By whom.
    pub principals: Vec<Principal>,
}

/// What is done. Envoy: `Permission`.
#[derive(Clone, Debug, PartialEq)]
pub enum Permission {
    /// Anything.
    Any,
    /// All of these.
    And(Vec<Self>),
    /// One of these.
    Or(Vec<Self>),
    /// Not this.
    Not(Box<Self>),
    /// A header; each value is tried by itself.
    Header(HeaderMatcher),
    /// The path without query.
    UrlPath(StringMatcher),
    /// The local address of the connection.
    DestinationIp(Cidr),
    /// The local port of the connection.
    DestinationPort(u16),
    /// The local port of the connection, from the first up to the second without it.
    DestinationPortRange(i32, i32),
    /// What a filter has found out about the request.
    Metadata(MetadataMatcher),
    /// The server name the client asked for.
    RequestedServerName(StringMatcher),
}

/// By whom. Envoy: `Principal`.
#[derive(Clone, Debug, PartialEq)]
pub enum Principal {
    /// Anyone.
    Any,
    /// All of these.
    And(Vec<Self>),
    /// One of these.
    Or(Vec<Self>),
    /// Not this.
    Not(Box<Self>),
    /// The peer's certificate was verified, and one of its names (URI, then DNS, then subject)
    /// matches; without a matcher any verified certificate does.
    Authenticated(Option<StringMatcher>),
    /// The address of the connection's other end.
    DirectRemoteIp(Cidr),
    /// The client's address after `x-forwarded-for` was evaluated.
    RemoteIp(Cidr),
    /// A header; each value is tried by itself.
    Header(HeaderMatcher),
    /// The path without query.
    UrlPath(StringMatcher),
    /// What a filter has found out about the request.
    Metadata(MetadataMatcher),
}

/// What is known of the connection a request came on.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Names of the peer's verified certificate: URIs, then DNS names, then the subject. `None`
    /// without TLS or without a client certificate.
    pub names: Option<&'a [String]>,
    /// The socket's other end.
    pub direct_remote: SocketAddr,
    /// The client's address after `x-forwarded-for`.
    pub remote: SocketAddr,
    /// The socket's own end.
    pub local: SocketAddr,
    /// The server name the client asked for.
    pub server_name: Option<&'a str>,
}

/// The outcome, with the policy that matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether the request may pass.
    pub allowed: bool,
    /// The policy that matched, if one did.
    pub policy: Option<&'a str>,
}

impl Rbac {
    /// Decides on a request (`request` given) or on a connection (`None`: header and path rules
    /// do not match there).
    pub fn authorize(&self, peer: &Peer<'_>, request: Option<&dyn RequestView>) -> Decision<'_> {
        let policy = self
            .policies
            .iter()
            .find(|(_, policy)| policy.is_match(peer, request))
            .map(|(name, _)| name.as_str());
        let allowed = match self.action {
            Action::Allow => policy.is_some(),
            Action::Deny => policy.is_none(),
            Action::Log => true,
        };
        Decision { allowed, policy }
    }
}

impl Policy {
    /// Whether any permission and any principal match.
    pub fn is_match(&self, peer: &Peer<'_>, request: Option<&dyn RequestView>) -> bool {
        self.permissions.iter().any(|permission| permission.is_match(peer, request))
            && self.principals.iter().any(|principal| principal.is_match(peer, request))
    }
}

impl Permission {
    fn is_match(&self, peer: &Peer<'_>, request: Option<&dyn RequestView>) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|one| one.is_match(peer, request)),
            Self::Or(any) => any.iter().any(|one| one.is_match(peer, request)),
            Self::Not(inner) => !inner.is_match(peer, request),
            Self::Header(matcher) => request.is_some_and(|view| matcher.is_match(view)),
            Self::UrlPath(matcher) => request.is_some_and(|view| matcher.is_match(view.path())),
            Self::DestinationIp(range) => cidr_contains(range, peer.local.ip()),
            Self::DestinationPort(port) => peer.local.port() == *port,
            Self::DestinationPortRange(start, end) => (*start..*end).contains(&i32::from(peer.local.port())),
            Self::Metadata(matcher) => {
                matcher.is_match(|filter| request.and_then(|view| view.metadata(filter)))
            }
            Self::RequestedServerName(matcher) => matcher.is_match(peer.server_name.unwrap_or_default()),
        }
    }
}

impl Principal {
    fn is_match(&self, peer: &Peer<'_>, request: Option<&dyn RequestView>) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|one| one.is_match(peer, request)),
            Self::Or(any) => any.iter().any(|one| one.is_match(peer, request)),
            Self::Not(inner) => !inner.is_match(peer, request),
            Self::Authenticated(matcher) => peer.names.is_some_and(|names| {
                matcher.as_ref().is_none_or(|matcher| names.iter().any(|name| matcher.is_match(name)))
            }),
            Self::DirectRemoteIp(range) => cidr_contains(range, peer.direct_remote.ip()),
            Self::RemoteIp(range) => cidr_contains(range, peer.remote.ip()),
            Self::Header(matcher) => request.is_some_and(|view| matcher.is_match(view)),
            Self::UrlPath(matcher) => request.is_some_and(|view| matcher.is_match(view.path())),
            Self::Metadata(matcher) => {
                matcher.is_match(|filter| request.and_then(|view| view.metadata(filter)))
            }
        }
    }
}
