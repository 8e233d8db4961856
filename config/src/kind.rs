//! Kinds of resources, and the key of a resource.

use std::fmt;

use serde::Serialize;

/// The kinds there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// Settings of the whole mesh.
    Mesh,
    /// Something callers reach by name.
    Service,
    /// Rules for requests to a service.
    Route,
    /// Who may call a service.
    AuthorizationPolicy,
    /// Another mesh.
    Federation,
}

/// Kinds of the design that this version does not have yet.
pub(crate) const KINDS_LATER: [&str; 2] = ["Gateway", "Workload"];

impl Kind {
    /// Every kind, in the order in which resources refer to each other.
    pub const ALL: [Self; 5] =
        [Self::Mesh, Self::Service, Self::Route, Self::AuthorizationPolicy, Self::Federation];

    /// The word in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Service => "Service",
            Self::Route => "Route",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::Federation => "Federation",
        }
    }

    /// Reads the word in `kind:`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Reads the word as people type it and as API paths spell it: in any case, singular or plural.
    pub fn parse_lenient(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| {
            let name = kind.as_str().to_ascii_lowercase();
            let plural = match name.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None if name.ends_with('h') => format!("{name}es"),
                None => format!("{name}s"),
            };
            text == name || text == plural
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which resource: kind, namespace, name. Written `Service shop/orders`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ResourceKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace; `default` for the Mesh.
    pub namespace: String,
    /// The name; `mesh` for the Mesh.
    pub name: String,
}

impl ResourceKey {
    /// A key.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_people_type_them() {
        for (text, want) in [
            ("services", Some(Kind::Service)),
            ("Service", Some(Kind::Service)),
            ("authorizationpolicies", Some(Kind::AuthorizationPolicy)),
            ("meshes", Some(Kind::Mesh)),
            ("federations", Some(Kind::Federation)),
            ("route", Some(Kind::Route)),
            ("rout", None),
        ] {
            assert_eq!(Kind::parse_lenient(text), want, "{text}");
        }
        assert_eq!(Kind::parse("service"), None);
    }
}
