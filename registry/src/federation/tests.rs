//! What is a bundle, what may take another's place, and what is exported.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pillion_model::name::TrustDomain;
use pillion_net::testing::{Leaf, TestCa};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::keep::judge;
use super::{Bundle, Exports, exports};
use crate::ca::TrustedBundle;
use crate::resolve::tests::{Mesh, instance};

fn acme() -> TrustDomain {
    TrustDomain::parse("acme.example").expect("a trust domain")
}

fn key(certificate: &CertificateDer<'_>) -> Value {
    json!({"use": "x509-svid", "kty": "EC", "x5c": [STANDARD.encode(certificate)]})
}

fn read(document: &Value) -> Result<Bundle, String> {
    Bundle::parse(document.to_string().as_bytes(), &acme(), SystemTime::now())
        .map_err(|error| error.to_string())
}

#[test]
fn a_document_reads_back_as_the_bundle_it_was_made_of() {
    let (one, two) = (TestCa::new("acme.example"), TestCa::new("acme.example"));
    let roots = vec![one.root(), two.root()];
    let document = Bundle::document(&roots, 7, Duration::from_secs(60));
    let read = read(&document).expect("a bundle");
    assert_eq!(read, Bundle { sequence: Some(7), refresh_hint: Some(Duration::from_secs(60)), roots });
    assert_eq!(document["keys"][0]["crv"], "P-256", "{document}");
}

#[test]
fn what_is_no_bundle_is_refused_as_a_whole() {
    let root = TestCa::new("acme.example");
    let leaf = |leaf: Leaf| root.leaf(leaf).0.remove(0);
    let over = SystemTime::now() - Duration::from_secs(60);
    let uri = |uri: &str| Leaf { ca: true, uris: vec![uri.to_owned()], ..Leaf::default() };
    let good = key(&root.root());
    let mut two = good.clone();
    two["x5c"] = json!([STANDARD.encode(root.root()), STANDARD.encode(root.root())]);
    for (what, document, want) in [
        ("no list", json!({"keys": 1}), "no list"),
        ("no roots", json!({"keys": []}), "no key with use x509-svid"),
        ("another use", json!({"keys": [{"use": "jwt-svid", "kty": "EC"}]}), "no key with use x509-svid"),
        ("no certificate", json!({"keys": [{"use": "x509-svid"}]}), "no x5c"),
        ("a chain", json!({"keys": [two]}), "2 certificates"),
        ("no base64", json!({"keys": [{"use": "x509-svid", "x5c": ["%"]}]}), "no base64"),
        ("a leaf", json!({"keys": [key(&leaf(Leaf::default()))]}), "no certificate authority"),
        (
            "a leaf beside a root",
            json!({"keys": [good, key(&leaf(Leaf::default()))]}),
            "keys[1] cannot be a root of acme.example",
        ),
        (
            "another domain's root",
            json!({"keys": [key(&leaf(uri("spiffe://initech.example")))]}),
            "spiffe://initech.example's",
        ),
        (
            "expired",
            json!({"keys": [key(&leaf(Leaf { not_after: over, ..uri("spiffe://acme.example") }))]}),
            "expired",
        ),
        ("no number", json!({"keys": [key(&root.root())], "spiffe_sequence": "1"}), "no whole number"),
    ] {
        let error = read(&document).expect_err(what);
        assert!(error.contains(want), "{what}: {error}");
    }
    assert!(Bundle::parse(b"{", &acme(), SystemTime::now()).is_err());
}

#[test]
fn only_a_later_bundle_takes_the_place_of_one() {
    let (one, two) = (TestCa::new("acme.example").root(), TestCa::new("acme.example").root());
    let have = |sequence| TrustedBundle {
        revision: 1,
        sequence,
        roots: vec![one.clone()],
        since: SystemTime::now(),
        basis: String::new(),
    };
    for (before, sequence, root, want) in [
        (Some(7), Some(7), &one, Ok(false)),
        (Some(7), Some(8), &one, Ok(false)),
        (Some(7), Some(8), &two, Ok(true)),
        (Some(7), Some(6), &two, Err("older")),
        (Some(7), Some(6), &one, Err("older")),
        (Some(7), None, &two, Err("older")),
        (Some(7), Some(7), &two, Err("conflicting")),
        (None, None, &two, Ok(true)),
        (None, Some(1), &two, Ok(true)),
    ] {
        let found = Bundle { sequence, refresh_hint: None, roots: vec![root.clone()] };
        let judged = judge(&have(before), &found).map_err(|refusal| refusal.reason());
        assert_eq!(judged, want, "{before:?} {sequence:?}");
    }
}

const MESH: &str = "
kind: Federation
name: acme
trustDomain: acme.example
bundle: {url: 'https://acme.example/', profile: https_web}
services: acme.example:7072
---
kind: Service
name: orders
namespace: shop
export: [acme.example]
ports: [{name: http, port: 80, protocol: http}]
---
kind: Service
name: secret
namespace: shop
ports: [{name: http, port: 80, protocol: http}]
---
kind: Service
name: rates
namespace: shop
import: {trustDomain: acme.example, service: rates.finance}
ports: [{name: http, port: 80, protocol: http}]
";

#[test]
fn what_one_mesh_exports_is_what_the_other_calls() {
    let mut alone = instance("orders.shop", "orders-2", &[]);
    alone.inbound_port = None; // no sidecar: nobody who could tell callers apart
    let mesh = Mesh::new(MESH).with(instance("orders.shop", "orders-1", &[("version", "1")])).with(alone);
    let told = exports(&mesh.model(), &acme());
    let port = &told.services["orders.shop"].ports["http"];
    assert_eq!(told.services.len(), 1, "{told:?}");
    assert_eq!(port.sni, "http.orders.shop.mesh.internal");
    let addresses: Vec<_> = port.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:15006"]);
    assert!(exports(&mesh.model(), &TrustDomain::parse("initech.example").expect("one")).services.is_empty());

    // The other side's view of the same: under its own name, by our identity and server name.
    let mut other = Mesh::new(MESH);
    let service = told.services["orders.shop"].clone();
    let offered = Exports { services: [("rates.finance".to_owned(), service)].into() };
    offered.check().expect("usable");
    other.imports.insert(acme(), offered.into());
    let model = other.model();
    let rates = &model.services[&"rates.shop".parse().expect("a name")];
    let tls = rates.clusters[0].tls.as_ref().expect("mutual TLS");
    assert_eq!(tls.sni, "http.orders.shop.mesh.internal");
    let validation = format!("{:?}", tls.validation);
    assert!(validation.contains("Secret(\"spiffe://acme.example\")"), "{validation}");
    assert!(validation.contains("spiffe://acme.example/ns/finance/svc/rates"), "{validation}");
    assert_eq!(rates.endpoints[0].localities[0].endpoints[0].hostname, "orders-1");
    assert!(rates.inbound.ports.is_empty());
}

#[test]
fn exports_that_cannot_be_used_are_refused() {
    let mesh = Mesh::new(MESH).with(instance("orders.shop", "orders-1", &[]));
    let told = serde_json::to_value(exports(&mesh.model(), &acme())).expect("JSON");
    let endpoint = "/services/orders.shop/ports/http/endpoints/0";
    for (place, value, want) in [
        (format!("{endpoint}/instance"), json!("a b"), "instance"),
        (format!("{endpoint}/address"), json!("0.0.0.0:15006"), "no address of an instance"),
        (format!("{endpoint}/address"), json!("10.0.0.1:0"), "no address of an instance"),
        (format!("{endpoint}/weight"), json!(0), "weight 0"),
        (format!("{endpoint}/health"), json!("splendid"), "health"),
        ("/services/orders.shop/ports/http/sni".to_owned(), json!("a..b"), "sni"),
    ] {
        let mut changed = told.clone();
        *changed.pointer_mut(&place).unwrap_or_else(|| panic!("{place}")) = value;
        let changed: Exports = serde_json::from_value(changed).expect("of the form");
        let error = changed.check().expect_err(&place);
        assert!(error.contains(want), "{place}: {error}");
    }
}
