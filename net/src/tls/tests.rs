//! Handshakes in memory: who is let in, who is not, and what the refusal says.

use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{NamedGroup, ProtocolVersion};
use rustls_pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::testing::{Leaf, TestCa};

type Outcome = Result<Agreed, (Option<String>, Option<String>)>;

/// What both sides agreed on.
struct Agreed {
    version: ProtocolVersion,
    group: NamedGroup,
    alpn: Option<Vec<u8>>,
    client: Option<PeerCertificate>,
}

/// One handshake; on failure what the server says and what the client says.
async fn shake(server: Arc<ServerConfig>, client: Arc<ClientConfig>, sni: &str) -> Outcome {
    use tokio::io::AsyncReadExt as _;
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = ServerName::try_from(sni.to_owned()).expect("a name");
    let accept = async {
        let stream = TlsAcceptor::from(server).accept(far).await.map_err(|error| explain(&error))?;
        let (_, session) = stream.get_ref();
        let client = session.peer_certificates().map(|chain| PeerCertificate::parse(chain).expect("parsed"));
        Ok(Agreed {
            version: session.protocol_version().expect("agreed"),
            group: session.negotiated_key_exchange_group().expect("agreed").name(),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            client,
        })
    };
    let connect = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        // In TLS 1.3 the server's refusal of our certificate arrives after our side is done.
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error),
        }
    };
    let (accepted, connected) = tokio::join!(accept, connect);
    let connected = connected.map_err(|error: std::io::Error| explain(&error));
    match (accepted, connected) {
        (Ok(agreed), Ok(())) => Ok(agreed),
        (accepted, connected) => Err((accepted.err(), connected.err())),
    }
}

fn id(text: &str) -> SpiffeId {
    text.parse().expect(text)
}

const ORDERS: &str = "spiffe://mesh.internal/ns/shop/svc/orders";

fn client_of(secrets: &dyn Secrets) -> Arc<ClientConfig> {
    let context = mesh_client_context(&[id(ORDERS)], "http.orders.shop.mesh.internal", &["h2"]);
    client_config(&context, secrets).expect("a client")
}

fn server_of(secrets: &dyn Secrets) -> Arc<ServerConfig> {
    server_config(&mesh_server_context(&["h2", "http/1.1"]), secrets).expect("a server")
}

#[tokio::test]
async fn two_members_meet_over_hybrid_tls_1_3() {
    let ca = TestCa::new("mesh.internal");
    let (web, orders) = (ca.service("shop", "web"), ca.service("shop", "orders"));
    let Ok(agreed) = shake(server_of(&orders), client_of(&web), "orders.shop").await else {
        panic!("refused")
    };
    assert_eq!(agreed.version, ProtocolVersion::TLSv1_3);
    assert_eq!(agreed.group, NamedGroup::X25519MLKEM768);
    assert_eq!(agreed.alpn.as_deref(), Some(&b"h2"[..]));
    let client = agreed.client.expect("a client certificate").spiffe_id().expect("an identity");
    assert_eq!(client, web.svid.id);
}

#[tokio::test]
async fn clients_that_are_no_members_are_refused_with_the_reason() {
    let ca = TestCa::new("mesh.internal");
    let other = TestCa::new("mesh.internal");
    let orders = ca.service("shop", "orders");
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let uris =
        |uris: &[&str]| Leaf { uris: uris.iter().map(|&uri| uri.to_owned()).collect(), ..Leaf::default() };
    let web = "spiffe://mesh.internal/ns/shop/svc/web";
    let cases: Vec<(&str, Box<dyn Secrets>, &str)> = vec![
        (
            "another root",
            Box::new(WithRoots(other.secrets(uris(&[web])), ca.bundle())),
            "not signed by a root that we trust",
        ),
        (
            "another trust domain",
            Box::new(ca.secrets(uris(&["spiffe://other.internal/ns/shop/svc/web"]))),
            "is not in trust domain mesh.internal",
        ),
        ("two identities", Box::new(ca.secrets(uris(&[web, ORDERS]))), "has 2 URI names"),
        ("no identity", Box::new(ca.secrets(uris(&[]))), "has 0 URI names"),
        ("a web address", Box::new(ca.secrets(uris(&["https://mesh.internal/x"]))), "no SPIFFE id"),
        ("no path", Box::new(ca.secrets(uris(&["spiffe://mesh.internal/"]))), "no SPIFFE id"),
        ("an authority", Box::new(ca.secrets(Leaf { ca: true, ..uris(&[web]) })), "certificate authority"),
        (
            "expired",
            Box::new(ca.secrets(Leaf { not_before: now - 2 * hour, not_after: now - hour, ..uris(&[web]) })),
            "certificate expired",
        ),
        (
            "not yet valid",
            Box::new(ca.secrets(Leaf { not_before: now + hour, not_after: now + 2 * hour, ..uris(&[web]) })),
            "becomes valid in",
        ),
        (
            "for servers only",
            Box::new(ca.secrets(Leaf { usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..uris(&[web]) })),
            "no clientAuth key usage",
        ),
    ];
    for (case, secrets, want) in cases {
        let Err((server, client)) = shake(server_of(&orders), client_of(&*secrets), "orders.shop").await
        else {
            panic!("{case}: let in")
        };
        let server = server.unwrap_or_default();
        assert!(server.contains(want), "{case}: server says {server:?}, client says {client:?}");
        assert!(client.is_some(), "{case}: the client must learn that it was refused");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_where_one_is_required() {
    let ca = TestCa::new("mesh.internal");
    let (web, orders) = (ca.service("shop", "web"), ca.service("shop", "orders"));
    let mut context = mesh_client_context(&[id(ORDERS)], "orders.shop", &["h2"]);
    context.certificate = None;
    let client = client_config(&context, &web).expect("a client");
    let Err((server, _)) = shake(server_of(&orders), Arc::clone(&client), "orders.shop").await else {
        panic!("let in")
    };
    assert!(server.as_deref().unwrap_or_default().contains("no certificates"), "{server:?}");
    let optional = DownstreamTls { require_client_certificate: false, ..mesh_server_context(&["h2"]) };
    let server = server_config(&optional, &orders).expect("a server");
    let Ok(agreed) = shake(server, client, "orders.shop").await else { panic!("refused") };
    assert!(agreed.client.is_none());
}

#[tokio::test]
async fn servers_that_are_not_the_one_meant_are_refused_with_the_reason() {
    let ca = TestCa::new("mesh.internal");
    let other = TestCa::new("mesh.internal");
    let web = ca.service("shop", "web");
    let now = SystemTime::now();
    let orders = || Leaf::service("shop", "orders");
    let cases: Vec<(&str, Box<dyn Secrets>, &str)> = vec![
        (
            "another service",
            Box::new(ca.secrets(Leaf::service("shop", "payments"))),
            "want spiffe://mesh.internal/ns/shop/svc/orders",
        ),
        ("another root", Box::new(other.secrets(orders())), "not signed by a root that we trust"),
        ("an authority", Box::new(ca.secrets(Leaf { ca: true, ..orders() })), "certificate authority"),
        (
            "expired",
            Box::new(ca.secrets(Leaf {
                not_before: now - Duration::from_secs(20),
                not_after: now - Duration::from_secs(10),
                ..orders()
            })),
            "certificate expired",
        ),
        (
            "for clients only",
            Box::new(ca.secrets(Leaf { usages: vec![ExtendedKeyUsagePurpose::ClientAuth], ..orders() })),
            "no serverAuth key usage",
        ),
    ];
    for (case, secrets, want) in cases {
        let Err((_, client)) = shake(server_of(&*secrets), client_of(&web), "orders.shop").await else {
            panic!("{case}: trusted")
        };
        let client = client.unwrap_or_default();
        assert!(client.contains(want), "{case}: {client}");
    }
}

#[tokio::test]
async fn first_contact_trusts_only_the_pinned_registry() {
    let ca = TestCa::new("mesh.internal");
    let pin = public_key_sha256(&ca.root()).expect("a certificate");
    let context = DownstreamTls { require_client_certificate: false, ..mesh_server_context(&["h2"]) };
    let serve = |identity: &Identity| server_config(&context, identity).expect("a server");
    assert!(shake(serve(&ca.registry()), pinned_client_config(vec![pin]), "localhost").await.is_ok());

    let mut service = ca.service("shop", "orders");
    service.svid.chain.push(ca.root());
    let service =
        Identity::new(service.svid.chain.clone(), service.svid.key.clone_key(), ca.bundle(), "mesh.internal")
            .expect("sound");
    let stranger = TestCa::new("mesh.internal").registry();
    // A chain that merely contains the pinned root, though signed by another.
    let mut forged = stranger.svid.chain.clone();
    forged.push(ca.root());
    let forged =
        Identity::new(forged, stranger.svid.key.clone_key(), stranger.bundle.clone(), "z").expect("sound");
    for (case, server, want) in [
        ("a service", &service, "want the registry"),
        ("another mesh", &stranger, "is this token of another mesh?"),
        ("a forged chain", &forged, "not signed by a root that we trust"),
    ] {
        let Err((_, client)) = shake(serve(server), pinned_client_config(vec![pin]), "localhost").await
        else {
            panic!("{case}: trusted")
        };
        let client = client.unwrap_or_default();
        assert!(client.contains(want), "{case}: {client}");
    }
}

#[tokio::test]
async fn tls_1_2_is_spoken_only_where_the_context_allows_it() {
    let ca = TestCa::new("mesh.internal");
    let (web, orders) = (ca.service("shop", "web"), ca.service("shop", "orders"));
    let old = UpstreamTls {
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_2,
        ..mesh_client_context(&[id(ORDERS)], "orders.shop", &["h2"])
    };
    let old = client_config(&old, &web).expect("a client");
    assert!(shake(server_of(&orders), Arc::clone(&old), "orders.shop").await.is_err());
    let lenient = DownstreamTls { min_version: TlsVersion::V1_2, ..mesh_server_context(&["h2"]) };
    let lenient = server_config(&lenient, &orders).expect("a server");
    let Ok(agreed) = shake(lenient, old, "orders.shop").await else { panic!("refused") };
    assert_eq!(agreed.version, ProtocolVersion::TLSv1_2);
}

#[tokio::test]
async fn foreign_roots_are_matched_by_name_without_spiffe_rules() {
    let ca = TestCa::new("example.com");
    let (chain, key) = ca.leaf(Leaf { dns: vec!["*.example.com".into()], ..Leaf::default() });
    let pem = |label, der: &[u8]| DataSource::Inline(crate::identity::pem_text(label, der).into_bytes());
    let server = DownstreamTls {
        certificates: vec![Certificate::Given {
            chain: pem("CERTIFICATE", &chain[0]),
            key: pem("PRIVATE KEY", key.secret_der()),
        }],
        validation: None,
        require_client_certificate: false,
        ..mesh_server_context(&[])
    };
    let server = server_config(&server, &NoSecrets).expect("a server");
    let client = |want: &str| UpstreamTls {
        certificate: None,
        validation: Some(Validation {
            roots: RootsSource::Given(pem("CERTIFICATE", &ca.root())),
            names: vec![NameMatcher { kind: NameKind::Dns, matcher: StringMatcher::exact(want) }],
        }),
        ..mesh_client_context(&[], "db.example.com", &[])
    };
    for (want, good) in [("db.example.com", true), ("db.example.org", false)] {
        let config = client_config(&client(want), &NoSecrets).expect("a client");
        assert_eq!(shake(Arc::clone(&server), config, "db.example.com").await.is_ok(), good, "{want}");
    }
}

#[test]
fn contexts_that_cannot_work_name_the_field() {
    let ca = TestCa::new("mesh.internal");
    let web = ca.service("shop", "web");
    let mesh = || mesh_server_context(&["h2"]);
    let file = |name: &str| DataSource::File(name.to_owned());
    let inline = |text: &str| DataSource::Inline(text.as_bytes().to_vec());
    let given = |chain, key| vec![Certificate::Given { chain, key }];
    let other_key = ca.service("shop", "orders").key_pem();
    for (case, context, want) in [
        ("no certificate", DownstreamTls { certificates: vec![], ..mesh() }, "tls_certificates: is empty"),
        (
            "unknown secret",
            DownstreamTls { certificates: vec![Certificate::Secret("x".into())], ..mesh() },
            "tls_certificates[0]: secret `x` is not known yet",
        ),
        (
            "no such file",
            DownstreamTls { certificates: given(file("/nonexistent.pem"), inline("")), ..mesh() },
            "tls_certificates[0].certificate_chain: /nonexistent.pem: ",
        ),
        (
            "another key",
            DownstreamTls { certificates: given(inline(&web.chain_pem()), inline(&other_key)), ..mesh() },
            "tls_certificates[0].private_key: does not fit the certificate",
        ),
        (
            "versions",
            DownstreamTls { max_version: TlsVersion::V1_2, ..mesh() },
            "tls_params: the minimum version is above",
        ),
        (
            "no roots",
            DownstreamTls {
                validation: Some(Validation { roots: RootsSource::Given(inline("")), names: vec![] }),
                ..mesh()
            },
            "validation_context.trusted_ca: holds no PEM certificate",
        ),
    ] {
        let error = server_config(&context, &web).expect_err(case).to_string();
        assert!(error.starts_with(want), "{case}: {error}");
    }
}

#[tokio::test]
async fn live_configurations_follow_the_identity() {
    let ca = TestCa::new("mesh.internal");
    let (publisher, watch) = crate::identity::channel();
    let server = ServerTls::new(mesh_server_context(&["h2"]), watch.clone());
    let client = ClientTls::new(mesh_client_context(&[], "", &["h2"]), watch);
    assert!(matches!(server.current(), Err(TlsError::MissingSecret { .. })));
    publisher.publish(Arc::new(ca.service("shop", "web")));
    let first = server.current().expect("an identity");
    assert!(Arc::ptr_eq(&first, &server.current().expect("an identity")), "made once per identity");
    publisher.publish(Arc::new(ca.service("shop", "web")));
    assert!(!Arc::ptr_eq(&first, &server.current().expect("an identity")), "made anew");
    client.current().expect("an identity");
}

/// Presents one authority's certificate and trusts another's bundle.
struct WithRoots<S>(S, crate::identity::TrustBundle);

impl<S: Secrets> Secrets for WithRoots<S> {
    fn certificate(&self, name: &str) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.0.certificate(name)
    }

    fn roots(&self, _name: &str) -> Option<Arc<Roots>> {
        Some(Arc::new(Roots::mesh(&self.1).expect("a root")))
    }
}

use crate::identity::Identity;
use pillion_model::tls::DataSource;
