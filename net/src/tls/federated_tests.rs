//! Whose roots count for whom: a trust domain's own, for its own names, and where a context asks for them.

use std::sync::Arc;

use rustls_pki_types::UnixTime;

use super::verify::PeerError;
use super::*;
use crate::identity::Identity;
use crate::testing::{Leaf, TestCa};

/// An identity of `mesh` that knows `others`.
fn knowing(mesh: &TestCa, others: &[(&str, &TestCa)]) -> Identity {
    let federated = others.iter().map(|(domain, ca)| {
        let domain = pillion_model::name::TrustDomain::parse(domain).expect("a trust domain");
        let roots = Roots::federated(&domain, vec![ca.root()]).expect("a root");
        (domain, Arc::new(roots))
    });
    mesh.service("shop", "orders").with_federated(Arc::new(federated.collect())).expect("known")
}

/// Whether a certificate is accepted by these roots.
fn judged(roots: &Arc<Roots>, ca: &TestCa, leaf: Leaf) -> Result<(), PeerError> {
    let (chain, _) = ca.leaf(leaf);
    let trust = Trust::Roots { roots: Arc::clone(roots), names: Vec::new() };
    let algorithms = provider().signature_verification_algorithms;
    PeerVerifier { algorithms, trust, required: true }.verify_as_client(&chain[0], UnixTime::now())
}

fn named(uri: &str) -> Leaf {
    Leaf { uris: vec![uri.to_owned()], ..Leaf::default() }
}

const OURS: &str = "spiffe://mesh.internal/ns/shop/svc/web";
const THEIRS: &str = "spiffe://acme.example/ns/shop/svc/web";

#[test]
fn a_bundle_vouches_for_its_own_trust_domain_and_no_other() {
    let (mesh, acme) = (TestCa::new("mesh.internal"), TestCa::new("acme.example"));
    let identity = knowing(&mesh, &[("acme.example", &acme)]);
    let all = identity.all_roots();
    for (what, ca, uri, accepted) in [
        ("ours", &mesh, OURS, true),
        ("theirs", &acme, THEIRS, true),
        ("theirs that says it is ours", &acme, OURS, false),
        ("ours that says it is theirs", &mesh, THEIRS, false),
        ("of nobody that is known", &acme, "spiffe://initech.example/ns/shop/svc/web", false),
        ("of nobody, signed by us", &mesh, "spiffe://initech.example/ns/shop/svc/web", false),
    ] {
        let outcome = judged(&all, ca, named(uri));
        assert_eq!(outcome.is_ok(), accepted, "{what}: {outcome:?}");
    }
    // Where a context does not ask for them, they are nobody.
    assert!(judged(&identity.roots(), &acme, named(THEIRS)).is_err());
    let one = |name: &str| Secrets::roots(&identity, name).expect("always there");
    assert!(judged(&one("spiffe://acme.example"), &acme, named(THEIRS)).is_ok());
    assert!(judged(&one("spiffe://acme.example"), &mesh, named(OURS)).is_err());
    assert!(judged(&one("spiffe://initech.example"), &acme, named(THEIRS)).is_err());
}

#[test]
fn nobody_else_speaks_for_our_own_trust_domain() {
    let (mesh, acme) = (TestCa::new("mesh.internal"), TestCa::new("acme.example"));
    let identity = knowing(&mesh, &[("mesh.internal", &acme)]);
    assert!(identity.federated().is_empty());
    assert!(judged(&identity.all_roots(), &acme, named(OURS)).is_err());
    assert!(judged(&identity.all_roots(), &mesh, named(OURS)).is_ok());
}

#[test]
fn no_other_name_passes_for_an_identity() {
    let (mesh, acme) = (TestCa::new("mesh.internal"), TestCa::new("acme.example"));
    let all = knowing(&mesh, &[("acme.example", &acme)]).all_roots();
    let sly = Leaf { dns: vec![OURS.to_owned()], ..named(THEIRS) };
    let refused = judged(&all, &acme, sly).expect_err("policies would take it for ours");
    assert!(matches!(refused, PeerError::Rule { .. }), "{refused}");
}

#[test]
fn whoever_is_federated_no_more_is_revoked() {
    let (mesh, acme) = (TestCa::new("mesh.internal"), TestCa::new("acme.example"));
    let before = knowing(&mesh, &[("acme.example", &acme)]);
    let after = before.with_federated(Arc::default()).expect("sound");
    let theirs = PeerCertificate::parse(&acme.leaf(named(THEIRS)).0).expect("a certificate");
    let ours = PeerCertificate::parse(&mesh.leaf(named(OURS)).0).expect("a certificate");
    assert!(before.roots().revoked().names(&theirs).is_none());
    assert!(after.roots().revoked().names(&theirs).is_some());
    assert!(after.roots().revoked().names(&ours).is_none());
}
