//! `x-forwarded-client-cert`: what the next hop is told of the client's certificate.

use std::fmt::Write as _;

use http::HeaderValue;
use pillion_model::http::{ClientCertDetails, ForwardClientCert};
use pillion_net::tls::PeerCertificate;

use super::names::FORWARDED_CLIENT_CERT;
use crate::exchange::Exchange;

/// Removes, keeps, appends or replaces the header, as configured.
pub(crate) fn apply(x: &mut Exchange) {
    use ForwardClientCert as F;
    let config = &x.hcm.config;
    let headers = &mut x.head.headers;
    let Some(peer) = x.connection.peer_certificate() else {
        if config.client_cert != F::AlwaysForwardOnly
            && headers.keys().any(|name| *name == FORWARDED_CLIENT_CERT)
        {
            headers.remove(&FORWARDED_CLIENT_CERT);
        }
        return;
    };
    match config.client_cert {
        F::Sanitize => {
            headers.remove(&FORWARDED_CLIENT_CERT);
        }
        F::ForwardOnly | F::AlwaysForwardOnly => {}
        F::AppendForward | F::SanitizeSet => {
            let element = x.connection.client_cert_element(|| {
                let chain = x.connection.chain();
                let own = chain.tls.as_ref().and_then(|tls| tls.own_uri.as_deref());
                element(own, peer, config.client_cert_details)
            });
            if config.client_cert == F::SanitizeSet {
                headers.insert(&FORWARDED_CLIENT_CERT, element);
            } else {
                let mut all = Vec::new();
                for value in headers.get_all(&FORWARDED_CLIENT_CERT) {
                    all.extend_from_slice(value.as_bytes());
                    all.push(b',');
                }
                all.extend_from_slice(element.as_bytes());
                if let Ok(all) = HeaderValue::from_bytes(&all) {
                    headers.insert(&FORWARDED_CLIENT_CERT, all);
                }
            }
        }
    }
}

/// One element, in Envoy's order; `own` is who we are.
fn element(own: Option<&str>, peer: &PeerCertificate, details: ClientCertDetails) -> HeaderValue {
    let mut text = own.map_or_else(String::new, |own| format!("By={};", quoted(own)));
    let _ = write!(text, "Hash={}", peer.sha256_hex);
    if details.cert
        && let Some(leaf) = peer.chain.first()
    {
        let _ =
            write!(text, ";Cert=\"{}\"", url_encode(&pillion_net::identity::pem_text("CERTIFICATE", leaf)));
    }
    if details.chain {
        let pem: String = peer
            .chain
            .iter()
            .map(|certificate| pillion_net::identity::pem_text("CERTIFICATE", certificate))
            .collect();
        let _ = write!(text, ";Chain=\"{}\"", url_encode(&pem));
    }
    if details.subject {
        // What RFC 2253 escapes needs no further escape.
        let _ = write!(text, ";Subject=\"{}\"", peer.subject);
    }
    if details.uri {
        if peer.uri_sans.is_empty() {
            text.push_str(";URI=");
        }
        for uri in &peer.uri_sans {
            let _ = write!(text, ";URI={}", quoted(uri));
        }
    }
    if details.dns {
        for name in &peer.dns_sans {
            let _ = write!(text, ";DNS={}", quoted(name));
        }
    }
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A value with separators in it is quoted, so that it cannot pose as another key.
fn quoted(value: &str) -> String {
    if value.contains([',', ';', '=', '"']) {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        value.to_owned()
    }
}

fn url_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 5 / 4);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_pose_as_keys() {
        assert_eq!(quoted("spiffe://mesh/ns/a/svc/b"), "spiffe://mesh/ns/a/svc/b");
        assert_eq!(quoted("a;URI=b\"c"), "\"a;URI=b\\\"c\"");
        assert_eq!(url_encode("a b\n"), "a%20b%0A");
    }
}
