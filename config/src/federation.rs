//! `kind: Federation`: another mesh, with a trust domain of its own, that takes part in ours.

use pillion_model::name::TrustDomain;
use schemars::JsonSchema;
use serde::Serialize;

use crate::reader::{Field, Object};
use crate::resource::Id;

/// Another mesh whose identities can be told apart from ours and be trusted for what they are: where
/// its trust bundle is fetched, and where its registry tells what it exports to us.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Federation {
    /// Its namespace. Default `default`.
    #[schemars(default)]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The other mesh's trust domain, by which services and policies name it.
    pub trust_domain: String,
    /// Where its trust bundle is.
    pub bundle: BundleEndpoint,
    /// `host:port` of its registry's federation port, which tells what is exported to us. Without it
    /// nothing can be imported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<String>,
}

/// A SPIFFE bundle endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct BundleEndpoint {
    /// `https://host[:port][/path]`.
    pub url: String,
    /// How the endpoint proves who it is. Default `https_spiffe`.
    pub profile: Profile,
    /// `https_spiffe`: the endpoint's SPIFFE id. Default `spiffe://<trustDomain>/registry`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<String>,
    /// `https_spiffe`: the first bundle, a JWK set, by which the endpoint's first certificate is verified:
    /// what `pillion ca bundle` prints there. A different text begins anew with what it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted: Option<String>,
}

/// How a bundle endpoint proves who it is (SPIFFE Federation, section 5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
pub enum Profile {
    /// By an SVID of its own trust domain, verified against the last good bundle.
    #[default]
    #[serde(rename = "https_spiffe")]
    HttpsSpiffe,
    /// By a certificate for its host name, verified against the system's root certificates.
    #[serde(rename = "https_web")]
    HttpsWeb,
}

/// The parts of an `https` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpsUrl {
    /// Name or address, without brackets.
    pub host: String,
    /// Default 443.
    pub port: u16,
    /// Path and query; `/` if none is written.
    pub path: String,
}

impl Federation {
    pub(crate) fn read(id: Id, mut object: Object<'_>) -> Option<Self> {
        let trust_domain = object.required("trustDomain", trust_domain);
        let bundle = object.required("bundle", BundleEndpoint::read);
        let services = object.optional("services", |field| {
            field.checked(|text| host_and_port(text, None).map(|_| text.to_owned()))
        });
        if let (Some(domain), Some(id)) =
            (&trust_domain, bundle.as_ref().and_then(|it| it.spiffe_id.as_ref()))
            && !id.starts_with(&format!("spiffe://{domain}/"))
        {
            object.refuse(format!("has bundle.spiffeId {id:?}, which is not in trust domain {domain}"));
        }
        object.finish();
        Some(Self {
            namespace: id.namespace,
            name: id.name,
            trust_domain: trust_domain?,
            bundle: bundle?,
            services,
        })
    }
}

impl BundleEndpoint {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let url = object
            .required("url", |field| field.checked(|text| HttpsUrl::parse(text).map(|_| text.to_owned())));
        let profile = object.optional("profile", |field| {
            field.choice(&[("https_spiffe", Profile::HttpsSpiffe), ("https_web", Profile::HttpsWeb)])
        });
        let spiffe_id = object.optional("spiffeId", |field| field.checked(spiffe_id));
        let trusted = object.optional("trusted", Field::some_text);
        match profile.unwrap_or_default() {
            Profile::HttpsSpiffe if !object.has("trusted") => {
                object.refuse(
                    "has no `trusted`, the first bundle, which https_spiffe needs: what `pillion ca bundle` \
                     prints in the other mesh",
                );
            }
            Profile::HttpsWeb if object.has("trusted") || object.has("spiffeId") => {
                object.refuse("has `trusted` or `spiffeId`, which are for profile https_spiffe only");
            }
            _ => {}
        }
        object.finish();
        Some(Self { url: url?, profile: profile.unwrap_or_default(), spiffe_id, trusted })
    }
}

impl HttpsUrl {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// What is wrong, to be read after the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("https://").ok_or("is no URL that begins with https://")?;
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        if authority.contains('@') || rest.contains(['#', ' ']) || !rest.is_ascii() {
            return Err("has a user, a fragment or a character that no URL of an endpoint has".to_owned());
        }
        let (host, port) = host_and_port(authority, Some(443))?;
        Ok(Self { host, port, path: if path.is_empty() { "/".to_owned() } else { path.to_owned() } })
    }
}

/// A trust domain's name.
pub(crate) fn trust_domain(field: Field<'_>) -> Option<String> {
    field.checked(|text| TrustDomain::parse(text).map(|domain| domain.as_str().to_owned()))
}

fn spiffe_id(text: &str) -> Result<String, String> {
    let domain = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
    match domain {
        Some((domain, path)) if !path.is_empty() => match TrustDomain::parse(domain) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!("is no SPIFFE id: its trust domain {error}")),
        },
        _ => Err("is no SPIFFE id, such as spiffe://acme.example/registry".to_owned()),
    }
}

/// `host:port`; an IPv6 address stands in brackets. Without a port the default, if there is one.
fn host_and_port(text: &str, default: Option<u16>) -> Result<(String, u16), String> {
    const WANT: &str = "is not of the form host:port";
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0),
        None => default,
    };
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_host = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        }
    };
    match port {
        Some(port) if is_host => Ok((inner.unwrap_or(host).to_owned(), port)),
        _ => Err(WANT.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_https_url() {
        for (text, want) in [
            ("https://acme.example", Some(("acme.example", 443, "/"))),
            ("https://acme.example:7072/bundle", Some(("acme.example", 7072, "/bundle"))),
            ("https://[fd00::1]:7072/", Some(("fd00::1", 7072, "/"))),
            ("https://10.0.0.1/x?a=b", Some(("10.0.0.1", 443, "/x?a=b"))),
            ("http://acme.example/", None),
            ("https://user@acme.example/", None),
            ("https://acme.example:0/", None),
            ("https:///x", None),
        ] {
            let parsed = HttpsUrl::parse(text).ok();
            let parsed = parsed.as_ref().map(|url| (url.host.as_str(), url.port, url.path.as_str()));
            assert_eq!(parsed, want, "{text}");
        }
    }
}
