//! Port 7071 from outside: joining by token, the registration stream, ADS; and DNS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Client, start};
use pillion_net::bootstrap::{Credential, JoinError, join};
use pillion_net::grpc::{Dialer, Security};
use pillion_net::identity::{Identity, IdentityWatch};
use pillion_net::resolve::{Resolver, Target};
use pillion_net::tls::{ClientTls, mesh_client_context};
use pillion_registry::app::Running;
use pillion_xds::ads::client::{self, Client as AdsClient, Decode, Handler, Link, Update};
use pillion_xds::ads::{NodeInfo, PILLION_USER_AGENT};
use pillion_xds::mesh::registration_client::RegistrationClient;
use pillion_xds::mesh::to_proxy::Message as Answer;
use pillion_xds::mesh::to_registry::Message;
use pillion_xds::mesh::{Beat, Deregister, Instance, Port, Probe, Register, ToProxy, ToRegistry};
use pillion_xds::{decode, type_url};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

fn target(running: &Running) -> Target {
    Target { host: running.mesh_addr.ip().to_string(), port: running.mesh_addr.port() }
}

/// Joins as an instance of `service` with a new token.
async fn joined(running: &Running, client: &Client, service: &str) -> Identity {
    let made = client.post("/v1/tokens", "application/json", "{}").await;
    assert_eq!(made.status, 201, "{}", made.text());
    let token = made.json()["token"].as_str().expect("a token").parse().expect("a join token");
    let node = format!("shop/{service}/{service}-1").parse().expect("a node id");
    join(&[target(running)], &Credential::Token(token), &node, &Resolver::system()).await.expect("joins")
}

async fn channel(running: &Running, identity: &Identity) -> Channel {
    let registry = pillion_model::name::SpiffeId::registry(identity.bundle.trust_domain.clone());
    let context = mesh_client_context(&[registry], "", &["h2"]);
    let tls = ClientTls::new(context, IdentityWatch::fixed(Arc::new(identity.clone())));
    let dialer = Dialer::new(vec![target(running)], Security::Mesh(Arc::new(tls)), Resolver::system());
    dialer.connect().await.expect("connects")
}

/// A registration stream.
struct Stream {
    requests: mpsc::Sender<ToRegistry>,
    answers: tonic::Streaming<ToProxy>,
}

impl Stream {
    async fn open(channel: Channel) -> Self {
        let (requests, queue) = mpsc::channel(8);
        let mut client = RegistrationClient::new(channel);
        let answers = client.connect(ReceiverStream::new(queue)).await.expect("opens").into_inner();
        Self { requests, answers }
    }

    async fn ask(&mut self, message: Message) -> Answer {
        self.requests.send(ToRegistry { message: Some(message) }).await.expect("sends");
        self.next().await
    }

    async fn next(&mut self) -> Answer {
        let next = tokio::time::timeout(Duration::from_secs(10), self.answers.message());
        let answer = next.await.expect("an answer within 10 s").expect("no error").expect("no end");
        answer.message.expect("a message")
    }
}

fn instance(service: &str) -> Instance {
    let port = Port { port: 8080, protocol: "http".into(), app_address: String::new() };
    Instance {
        namespace: "shop".into(),
        service: service.into(),
        id: format!("{service}-1"),
        ports: [("http".to_owned(), port)].into(),
        inbound_port: 15006,
        ttl_ms: 6000,
        generation: 7,
        ..Instance::default()
    }
}

fn register(service: &str) -> Message {
    Message::Register(Register { slot: 1, instance: Some(instance(service)) })
}

const PATH: &str = "/v1/namespaces/shop/services/orders/instances/orders-1";

#[tokio::test]
async fn a_sidecar_joins_registers_beats_and_leaves() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let identity = joined(&running, &client, "orders").await;
    assert_eq!(identity.svid.id.to_string(), "spiffe://mesh.internal/ns/shop/svc/orders");
    let mut stream = Stream::open(channel(&running, &identity).await).await;

    let Answer::Registered(registered) = stream.ask(register("orders")).await else { panic!("refused") };
    assert_eq!((registered.generation, registered.beat_interval_ms), (7, 2000));
    assert_eq!((registered.address.as_str(), &registered.health_check), ("127.0.0.1", &None));
    let seen = client.get(PATH).await.json();
    assert_eq!((&seen["address"], &seen["inboundPort"]), (&json!("127.0.0.1"), &json!(15006)));

    let beat = Beat { slot: 1, reported: None, probe: Some(Probe::Failing.into()) };
    let Answer::Acknowledged(acknowledged) = stream.ask(Message::Beat(beat)).await else { panic!("refused") };
    assert!(!acknowledged.unknown && acknowledged.beat_interval_ms == 2000);
    assert_eq!(client.get(PATH).await.json()["health"], "down");

    // The service asks for a health check: the sidecar is told.
    let service = "kind: Service\nname: orders\nnamespace: shop\nports: [{name: http, port: 80}]\nhealthCheck: {http: /healthz}\n";
    assert_eq!(client.post("/v1/apply", "application/yaml", service).await.status, 200);
    let Answer::Registered(again) = stream.next().await else { panic!("no news") };
    let check = again.health_check.expect("a check");
    assert_eq!((check.http_path.as_str(), check.port.as_str()), ("/healthz", "http"));

    let left = stream.ask(Message::Deregister(Deregister { slot: 1 })).await;
    assert!(matches!(left, Answer::Deregistered(_)), "{left:?}");
    assert_eq!(client.get(PATH).await.status, 404);
    // What has left does not come back with the same generation: it would have to begin anew.
    let Answer::Acknowledged(late) = stream.ask(register("orders")).await else { panic!("it came back") };
    assert!(late.unknown, "{late:?}");
    assert_eq!(client.get(PATH).await.status, 404);
    running.stop().await;
}

#[tokio::test]
async fn what_a_sidecar_may_not_do_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let web = joined(&running, &client, "web").await;
    let mut stream = Stream::open(channel(&running, &web).await).await;
    let Answer::Refused(refused) = stream.ask(register("orders")).await else { panic!("accepted") };
    assert!(refused.r#final, "{}", refused.reason);
    for part in ["orders.shop", "spiffe://mesh.internal/ns/shop/svc/web"] {
        assert!(refused.reason.contains(part), "{}", refused.reason);
    }
    let bad = Instance { address: "nowhere".into(), ttl_ms: 1, ..instance("web") };
    let bad = Message::Register(Register { slot: 1, instance: Some(bad) });
    let Answer::Refused(refused) = stream.ask(bad).await else { panic!("accepted") };
    assert!(refused.reason.contains("address: ") && refused.reason.contains("ttl: "), "{}", refused.reason);
    assert_eq!(client.get("/v1/services").await.json()["services"], json!([]));

    // A token that was used is no good a second time.
    let made = client.post("/v1/tokens", "application/json", "").await.json();
    let token: pillion_net::bootstrap::JoinToken =
        made["token"].as_str().expect("a token").parse().expect("a join token");
    let node = "shop/web/web-2".parse().expect("a node id");
    let resolver = Resolver::system();
    let credential = Credential::Token(token);
    join(&[target(&running)], &credential, &node, &resolver).await.expect("the first use");
    let error = join(&[target(&running)], &credential, &node, &resolver).await.expect_err("the second use");
    assert!(matches!(&error, JoinError::Refused { reason } if reason.contains("used already")), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn when_the_registry_stops_sidecars_are_asked_to_reconnect() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let identity = joined(&running, &client, "orders").await;
    let mut stream = Stream::open(channel(&running, &identity).await).await;
    stream.ask(register("orders")).await;
    let stopping = tokio::spawn(running.stop());
    let answer = stream.next().await;
    assert!(matches!(answer, Answer::GoAway(_)), "{answer:?}");
    drop(stream);
    tokio::time::timeout(Duration::from_secs(4), stopping).await.expect("stops soon").expect("no panic");
}

/// Keeps what it is told.
struct Sidecar {
    client: AdsClient,
    told: mpsc::UnboundedSender<Told>,
}

enum Told {
    Update(Update<Vec<u8>>),
    Lost(String),
}

impl Handler for Sidecar {
    type Value = Vec<u8>;

    fn client(&mut self) -> &mut AdsClient {
        &mut self.client
    }

    fn decode(&self) -> Decode<Vec<u8>> {
        Arc::new(|_, _, bytes| Ok(bytes.to_vec()))
    }

    fn on_update(&mut self, update: Update<Vec<u8>>) {
        drop(self.told.send(Told::Update(update)));
    }

    fn on_link(&mut self, link: Link) {
        if let Link::Lost { error, .. } = link {
            drop(self.told.send(Told::Lost(error)));
        }
    }

    async fn work(&mut self) {
        std::future::pending::<()>().await;
    }
}

/// What a proxy holds, by type and name.
#[derive(Default)]
struct Held(BTreeMap<(String, String), Vec<u8>>);

impl Held {
    /// Takes in updates until `done`. Fails after ten seconds with what is there.
    async fn until(
        &mut self,
        told: &mut mpsc::UnboundedReceiver<Told>,
        what: &str,
        done: impl Fn(&Self) -> bool,
    ) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !done(self) {
            let next = tokio::time::timeout_at(deadline, told.recv()).await;
            let next = next.unwrap_or_else(|_| panic!("{what}: {:?}", self.0.keys().collect::<Vec<_>>()));
            match next.expect("the client runs") {
                Told::Lost(error) => panic!("{what}: lost: {error}"),
                Told::Update(update) => {
                    for changed in update.changed {
                        self.0.insert((update.type_url.clone(), changed.name), changed.value);
                    }
                    for name in update.removed {
                        self.0.remove(&(update.type_url.clone(), name));
                    }
                }
            }
        }
    }

    fn get(&self, type_url: &str, name: &str) -> Option<&[u8]> {
        self.0.get(&(type_url.to_owned(), name.to_owned())).map(Vec::as_slice)
    }

    fn endpoints(&self, cluster: &str) -> usize {
        let Some(bytes) = self.get(type_url::ENDPOINTS, cluster) else { return 0 };
        let assignment = decode::decode_endpoints(bytes).expect("decodes").value;
        assignment.localities.iter().map(|locality| locality.endpoints.len()).sum()
    }
}

fn subscribe(
    running_channel: Channel,
    node: NodeInfo,
    wildcards: &[&str],
    names: &[(&str, &str)],
) -> (mpsc::UnboundedReceiver<Told>, CancellationToken) {
    let mut ads = AdsClient::new(node);
    wildcards.iter().for_each(|type_url| ads.subscribe_all(type_url));
    names.iter().for_each(|(type_url, name)| ads.subscribe(type_url, name));
    let (told, updates) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        let mut sidecar = Sidecar { client: ads, told };
        client::run(&mut sidecar, || std::future::ready(Ok(running_channel.clone())), &token).await;
    });
    (updates, stop)
}

fn node(id: &str, user_agent: &str, metadata: serde_json::Value) -> NodeInfo {
    NodeInfo { id: id.to_owned(), user_agent: user_agent.to_owned(), metadata, ..NodeInfo::default() }
}

#[tokio::test]
async fn a_sidecar_is_told_its_own_side_and_what_it_asks_for() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let identity = joined(&running, &client, "web").await;
    let channel = channel(&running, &identity).await;
    let mut stream = Stream::open(channel.clone()).await;
    stream.ask(register("web")).await;

    let cluster = "outbound|http||orders.shop";
    let (mut told, stop) = subscribe(
        channel,
        node("shop/web/web-1", PILLION_USER_AGENT, json!({})),
        &[type_url::LISTENER, type_url::CLUSTER],
        &[
            (type_url::SERVICE, "orders.shop.mesh.internal"),
            (type_url::CLUSTER, cluster),
            (type_url::ENDPOINTS, cluster),
            (type_url::ROUTE, "http.orders.shop"),
        ],
    );
    let mut held = Held::default();
    held.until(&mut told, "its own side", |held| {
        held.get(type_url::LISTENER, "inbound").is_some()
            && held.get(type_url::CLUSTER, "inbound|http").is_some()
    })
    .await;
    assert!(held.get(type_url::SERVICE, "orders.shop.mesh.internal").is_none());

    // A service that appears is pushed to whoever asked for it before.
    let orders = "/v1/namespaces/shop/services/orders/instances/a";
    let body = json!({"address": "10.0.0.5", "ports": {"http": {"port": 80}}, "inboundPort": 15006});
    assert_eq!(client.put(orders, &body).await.status, 201);
    held.until(&mut told, "orders", |held| {
        held.endpoints(cluster) == 1
            && held.get(type_url::SERVICE, "orders.shop.mesh.internal").is_some()
            && held.get(type_url::CLUSTER, cluster).is_some()
            && held.get(type_url::ROUTE, "http.orders.shop").is_some()
    })
    .await;
    assert_eq!(client.put("/v1/namespaces/shop/services/orders/instances/b", &body).await.status, 201);
    held.until(&mut told, "a second endpoint", |held| held.endpoints(cluster) == 2).await;
    assert_eq!(client.delete(orders).await.status, 204);
    held.until(&mut told, "one that left", |held| held.endpoints(cluster) == 1).await;

    let proxies = client.get("/v1/proxies").await.json();
    assert_eq!(proxies["proxies"][0]["node"], "shop/web/web-1");
    assert_eq!(proxies["proxies"][0]["identity"], "spiffe://mesh.internal/ns/shop/svc/web");
    let metrics = client.get("/metrics").await.text();
    assert!(metrics.contains("pillion_xds_streams 1"), "{metrics}");
    stop.cancel();
    drop(stream);
    running.stop().await;
}

#[tokio::test]
async fn a_changed_endpoint_is_one_resource_to_those_who_use_it_and_nothing_to_others() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let identity = joined(&running, &client, "web").await;
    let path = |service: &str, id: &str| format!("/v1/namespaces/shop/services/{service}/instances/{id}");
    let body = json!({"address": "10.0.0.5", "ports": {"http": {"port": 80}}, "inboundPort": 15006});
    let mut sidecars = Vec::new();
    for (instance, service) in [("web-1", "orders"), ("web-2", "payments")] {
        assert_eq!(client.put(&path(service, "a"), &body).await.status, 201);
        let cluster = format!("outbound|http||{service}.shop");
        let route = format!("http.{service}.shop");
        let names = [
            (type_url::SERVICE, format!("{service}.shop.mesh.internal")),
            (type_url::CLUSTER, cluster.clone()),
            (type_url::ENDPOINTS, cluster.clone()),
            (type_url::ROUTE, route.clone()),
        ];
        let names: Vec<_> = names.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
        let node = node(&format!("shop/web/{instance}"), PILLION_USER_AGENT, json!({}));
        let (mut told, stop) = subscribe(channel(&running, &identity).await, node, &[], &names);
        let mut held = Held::default();
        held.until(&mut told, service, |held| held.0.len() == 4).await;
        sidecars.push((service, cluster, told, stop));
    }
    for (changed, id) in [("orders", "b"), ("payments", "b"), ("orders", "c")] {
        let other = json!({"address": "10.0.0.6", "ports": {"http": {"port": 80}}, "inboundPort": 15006});
        assert_eq!(client.put(&path(changed, id), &other).await.status, 201);
        let (_, cluster, told, _) =
            sidecars.iter_mut().find(|(service, ..)| *service == changed).expect("one");
        let next = tokio::time::timeout(Duration::from_secs(10), told.recv()).await.expect("in time");
        let Some(Told::Update(update)) = next else { panic!("{changed}: the stream ended") };
        let names: Vec<_> = update.changed.iter().map(|one| &one.name).collect();
        assert_eq!((update.type_url.as_str(), names), (type_url::ENDPOINTS, vec![&*cluster]), "{changed}");
    }
    // Whatever one of them had been told beside would stand before what it was told of its own change.
    for (service, _, mut told, stop) in sidecars {
        assert!(told.try_recv().is_err(), "{service} was told more");
        stop.cancel();
    }
    running.stop().await;
}

#[tokio::test]
async fn a_foreign_envoy_is_told_everything_and_registered_while_it_is_there() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let identity = joined(&running, &client, "web").await;
    let orders = "/v1/namespaces/shop/services/orders/instances/a";
    let body = json!({"address": "10.0.0.5", "ports": {"http": {"port": 80}}, "inboundPort": 15006});
    client.put(orders, body).await;
    let envoy = pillion_registry::control::EnvoyNode {
        envoy: pillion_xds::encode::EnvoyOptions {
            secrets: pillion_xds::encode::EnvoySecrets::Pem {
                certificate: "/certs/cert.pem".into(),
                key: "/certs/key.pem".into(),
                roots: "/certs/roots.pem".into(),
            },
        },
        outbound: ([127, 0, 0, 1], 15001).into(),
        vip_slot: None,
    };
    let announced = json!({"address": "10.0.0.9", "ports": {"http": {"port": 8080}}, "inboundPort": 15006});
    let (mut told, stop) = subscribe(
        channel(&running, &identity).await,
        node("shop/web/web-1", "envoy", envoy.to_metadata(Some(&announced))),
        &[type_url::LISTENER, type_url::CLUSTER],
        &[(type_url::ENDPOINTS, "outbound|http||orders.shop"), (type_url::ROUTE, "outbound")],
    );
    let mut held = Held::default();
    held.until(&mut told, "everything", |held| {
        ["inbound", "outbound"].iter().all(|name| held.get(type_url::LISTENER, name).is_some())
            && held.get(type_url::CLUSTER, "outbound|http||orders.shop").is_some()
            && held.get(type_url::ROUTE, "outbound").is_some()
            && held.endpoints("outbound|http||orders.shop") == 1
    })
    .await;
    let cluster = held.get(type_url::CLUSTER, "outbound|http||orders.shop").expect("held");
    assert!(String::from_utf8_lossy(cluster).contains("/certs/key.pem"), "its own files are named");
    assert_eq!(
        client.get("/v1/namespaces/shop/services/web/instances/web-1").await.json()["address"],
        "10.0.0.9"
    );
    stop.cancel();
    running.stop().await;
}

#[tokio::test]
async fn whoever_is_not_who_it_says_gets_no_configuration() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let identity = joined(&running, &client, "web").await;
    for (id, user_agent, want) in [
        ("shop/orders/orders-1", PILLION_USER_AGENT, "may speak only for its own service"),
        ("web-1", PILLION_USER_AGENT, "<namespace>/<service>/<instance-id>"),
        ("shop/web/web-1", "envoy", "node.metadata.pillion.secrets"),
    ] {
        let channel = channel(&running, &identity).await;
        let (mut told, stop) = subscribe(channel, node(id, user_agent, json!({})), &[type_url::CLUSTER], &[]);
        let next = tokio::time::timeout(Duration::from_secs(10), told.recv()).await.expect("an answer");
        let Some(Told::Lost(error)) = next else { panic!("{id}: accepted") };
        assert!(error.contains(want), "{id}: {error}");
        stop.cancel();
    }
    running.stop().await;
}

#[tokio::test]
async fn dns_answers_what_is_registered() {
    use hickory_proto::op::{Message, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    client.put(PATH, json!({"address": "10.0.0.5", "port": 8080})).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    for (name, kind, code, answers) in [
        ("orders.shop.mesh.internal.", RecordType::A, ResponseCode::NoError, 1),
        ("orders.shop.mesh.internal.", RecordType::AAAA, ResponseCode::NoError, 0),
        ("_http._tcp.orders.shop.mesh.internal.", RecordType::SRV, ResponseCode::NoError, 1),
        ("nobody.shop.mesh.internal.", RecordType::A, ResponseCode::NXDomain, 0),
    ] {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        let bytes = question.to_vec().expect("encodes");
        socket.send_to(&bytes, running.dns_addr).await.expect("sends");
        let mut buffer = [0; 1500];
        let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer));
        let len = received.await.expect("an answer").expect("received");
        let answer = Message::from_vec(&buffer[..len]).expect("decodes");
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, answers), "{name} {kind}");
    }
    assert!(client.get("/metrics").await.text().contains("pillion_dns_answers_total{code=\"noerror\"} 3"));
    running.stop().await;
}
