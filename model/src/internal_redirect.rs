//! Redirects of upstreams that a proxy follows itself.

/// Follows redirects of upstreams instead of handing them to the client. Envoy:
/// `InternalRedirectPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalRedirect {
    /// As many in a row. Default 1.
    pub max: u32,
    /// Of 301, 302, 303, 307 and 308 those that are followed. Default 302.
    pub statuses: Vec<u16>,
    /// All of these accept the route that the redirect leads to.
    pub predicates: Vec<RedirectPredicate>,
    /// Also from `http` to `https` and back.
    pub cross_scheme: bool,
    /// Headers of the response that replace those of the request; lower case.
    pub copied_headers: Vec<String>,
}

impl Default for InternalRedirect {
    fn default() -> Self {
        Self {
            max: 1,
            statuses: vec![302],
            predicates: Vec::new(),
            cross_scheme: false,
            copied_headers: Vec::new(),
        }
    }
}

/// Which routes a redirect may lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPredicate {
    /// Each one once from the same route.
    PreviousRoutes,
    /// Never from `http` to `https`.
    SafeCrossScheme,
    /// These, by name.
    AllowListed(Vec<String>),
}

/// Every status that is a redirect to somewhere.
pub const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
