//! Random histories: the view changes, the client changes its mind, messages are late, streams
//! break. When everything has arrived, the client holds exactly what it subscribed to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status;
use proptest::prelude::*;
use prost::Message;
use tokio::time::Instant;

use super::fixture::{Shelf, is_listed, options};
use super::{DeltaStream, HOLD, Machine, SotwStream, StreamOptions};
use crate::ads::NodeInfo;
use crate::ads::client::{Client, Decode, Update};
use crate::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE};

const TYPES: [&str; 4] = [CLUSTER, ENDPOINTS, LISTENER, ROUTE];
const NAMES: [&str; 5] = ["a", "b", "c", "hidden-d", "hidden-e"];

#[derive(Clone, Debug)]
enum Step {
    Set {
        kind: usize,
        name: usize,
        version: u8,
    },
    Remove {
        kind: usize,
        name: usize,
    },
    Subscribe {
        kind: usize,
        name: usize,
    },
    Unsubscribe {
        kind: usize,
        name: usize,
    },
    /// The client sends one request that is due.
    ClientSends,
    /// The server reads one request.
    ServerReads,
    /// The server sends one response that is due.
    ServerSends,
    /// The client reads one response.
    ClientReads,
    /// Time for a hold to end.
    Wait,
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let (kind, name) = (0..TYPES.len(), 0..NAMES.len());
    prop_oneof![
        3 => (kind.clone(), name.clone(), 0..4u8).prop_map(|(kind, name, version)| Step::Set { kind, name, version }),
        2 => (kind.clone(), name.clone()).prop_map(|(kind, name)| Step::Remove { kind, name }),
        2 => (kind.clone(), name.clone()).prop_map(|(kind, name)| Step::Subscribe { kind, name }),
        1 => (kind, name).prop_map(|(kind, name)| Step::Unsubscribe { kind, name }),
        3 => Just(Step::ClientSends),
        3 => Just(Step::ServerReads),
        3 => Just(Step::ServerSends),
        3 => Just(Step::ClientReads),
        1 => Just(Step::Wait),
        1 => Just(Step::Reconnect),
    ]
}

/// A client under simulation.
trait Peer {
    type Machine: Machine;

    fn new(wildcard: &[&'static str]) -> Self;
    fn subscribe(&mut self, url: &'static str, name: &str);
    fn unsubscribe(&mut self, url: &'static str, name: &str);
    fn reconnect(&mut self);
    fn next_request(&mut self) -> Option<<Self::Machine as Machine>::Request>;
    fn on_response(&mut self, response: <Self::Machine as Machine>::Response);
    /// What it holds of what it wants.
    fn cache(&self) -> Cache;
    /// Whether it learns that a resource of the type is gone.
    fn learns_removal(url: &str) -> bool;
}

type Cache = BTreeMap<(&'static str, String), String>;

/// A body that is readable as a cluster of type EDS and as an assignment.
#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    kind: i32,
    #[prost(string, tag = "28")]
    text: String,
}

fn body(name: &str, text: &str) -> Vec<u8> {
    Body { name: name.to_owned(), kind: 3, text: text.to_owned() }.encode_to_vec()
}

/// What is refused wherever it comes.
fn is_bad(text: &str) -> bool {
    text == "3"
}

fn typed(url: &str) -> &'static str {
    TYPES.into_iter().find(|have| *have == url).expect("a type asked for")
}

struct World<P: Peer> {
    view: Shelf,
    server: P::Machine,
    client: P,
    now: Instant,
    wildcard: Vec<&'static str>,
    names: BTreeSet<(&'static str, String)>,
    requests: VecDeque<<P::Machine as Machine>::Request>,
    responses: VecDeque<<P::Machine as Machine>::Response>,
}

impl<P: Peer> World<P> {
    fn new(wildcard: Vec<&'static str>) -> Self {
        let mut client = P::new(&wildcard);
        client.reconnect();
        Self {
            view: Shelf::default(),
            server: Self::server(),
            client,
            now: Instant::now(),
            wildcard,
            names: BTreeSet::new(),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
        }
    }

    fn server() -> P::Machine {
        // Small responses, so that pushes are cut.
        let limits = super::Limits { response_bytes: 200, ..options().limits };
        P::Machine::new(StreamOptions { limits, ..options() })
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Set { kind, name, version } => {
                self.view.set(TYPES[*kind], NAMES[*name], body(NAMES[*name], &version.to_string()));
                self.server.on_view(&self.view);
            }
            Step::Remove { kind, name } => {
                self.view.0.remove(&(TYPES[*kind], NAMES[*name].to_owned()));
                self.server.on_view(&self.view);
            }
            Step::Subscribe { kind, name } => {
                self.names.insert((TYPES[*kind], NAMES[*name].to_owned()));
                self.client.subscribe(TYPES[*kind], NAMES[*name]);
            }
            Step::Unsubscribe { kind, name } => {
                if self.names.remove(&(TYPES[*kind], NAMES[*name].to_owned())) {
                    self.client.unsubscribe(TYPES[*kind], NAMES[*name]);
                }
            }
            Step::Wait => self.now += HOLD,
            Step::Reconnect => {
                self.requests.clear();
                self.responses.clear();
                self.server = Self::server();
                self.client.reconnect();
            }
            Step::ClientSends => drop(self.client_sends()),
            Step::ServerReads => drop(self.server_reads()),
            Step::ServerSends => drop(self.server_sends()),
            Step::ClientReads => drop(self.client_reads()),
        }
    }

    fn client_sends(&mut self) -> bool {
        let request = self.client.next_request();
        let sent = request.is_some();
        self.requests.extend(request);
        sent
    }

    fn server_reads(&mut self) -> bool {
        let request = self.requests.pop_front();
        let read = request.is_some();
        request
            .into_iter()
            .for_each(|request| self.server.on_request(request, &self.view).expect("within bounds"));
        read
    }

    fn server_sends(&mut self) -> bool {
        let response = self.server.next(&self.view, self.now);
        let sent = response.is_some();
        self.responses.extend(response);
        sent
    }

    fn client_reads(&mut self) -> bool {
        let response = self.responses.pop_front();
        let read = response.is_some();
        response.into_iter().for_each(|response| self.client.on_response(response));
        read
    }

    /// Until nobody has anything to say. A loop of pushes and refusals would not end.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let moved = [self.client_sends(), self.server_reads(), self.server_sends(), self.client_reads()];
            if !moved.contains(&true) {
                // This client may have a cluster and never ask for its endpoints.
                match self.server.wake_at() {
                    Some(at) => self.now = self.now.max(at),
                    None => return,
                }
            }
        }
        panic!("the two talk without end");
    }

    /// Good resources are held exactly; bad ones at most in an older good version.
    fn check(&self) {
        let cache = self.client.cache();
        for ((url, name), body) in &self.view.0 {
            let text = Body::decode(body.as_slice()).expect("ours").text;
            let wanted = self.names.contains(&(*url, name.clone()))
                || (self.wildcard.contains(url) && is_listed(name));
            let held = cache.get(&(*url, name.clone()));
            if wanted && !is_bad(&text) {
                assert_eq!(held, Some(&text), "{url} {name}");
            }
            assert!(held.is_none() || wanted, "{url} {name} is held and not wanted");
        }
        // A client that refuses a listener or route goes on with the one before, and what that may use.
        let is_refused = self.view.0.iter().any(|((url, _), body)| {
            [LISTENER, ROUTE].contains(url) && is_bad(&Body::decode(body.as_slice()).expect("ours").text)
        });
        for (url, name) in cache.keys() {
            let exists = self.view.0.contains_key(&(*url, name.clone()));
            let is_kept = is_refused && [CLUSTER, ENDPOINTS].contains(url);
            assert!(exists || is_kept || !P::learns_removal(url), "{url} {name} is held and gone");
        }
    }
}

fn simulate<P: Peer>(wildcard: Vec<&'static str>, steps: &[Step]) {
    let mut world = World::<P>::new(wildcard);
    for (index, step) in steps.iter().enumerate() {
        world.run(step);
        if index % 16 == 15 {
            world.settle();
            world.check();
        }
    }
    world.settle();
    world.check();
}

/// Our own incremental client, with a cache beside it.
struct Delta {
    client: Client,
    cache: Cache,
}

fn read(_type_url: &str, _name: &str, body: &[u8]) -> Result<String, String> {
    let text = Body::decode(body).expect("ours").text;
    if is_bad(&text) { Err("bad".to_owned()) } else { Ok(text) }
}

impl Peer for Delta {
    type Machine = DeltaStream;

    fn new(wildcard: &[&'static str]) -> Self {
        let mut client = Client::new(NodeInfo::default());
        wildcard.iter().for_each(|url| client.subscribe_all(url));
        Self { client, cache: BTreeMap::new() }
    }

    fn subscribe(&mut self, url: &'static str, name: &str) {
        self.client.subscribe(url, name);
    }

    fn unsubscribe(&mut self, url: &'static str, name: &str) {
        self.client.unsubscribe(url, name);
        self.cache.remove(&(url, name.to_owned()));
    }

    fn reconnect(&mut self) {
        self.client.connected();
    }

    fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.client.next_request()
    }

    fn on_response(&mut self, response: DeltaDiscoveryResponse) {
        let update: Update<String> = self.client.on_response(response, &(Arc::new(read) as Decode<String>));
        let url = typed(&update.type_url);
        assert!(update.rejected.iter().all(|it| it.reason == "bad"), "{:?}", update.rejected);
        update.changed.into_iter().for_each(|it| drop(self.cache.insert((url, it.name), it.value)));
        update.removed.into_iter().for_each(|name| drop(self.cache.remove(&(url, name))));
    }

    fn cache(&self) -> Cache {
        self.cache.clone()
    }

    fn learns_removal(_url: &str) -> bool {
        true
    }
}

/// A state-of-the-world client as the protocol describes it, which applies the good resources of
/// a response that it refuses.
struct Sotw {
    wildcard: Vec<&'static str>,
    names: BTreeMap<&'static str, BTreeSet<String>>,
    versions: BTreeMap<&'static str, String>,
    nonces: BTreeMap<&'static str, String>,
    due: VecDeque<(&'static str, Option<Answer>)>,
    cache: Cache,
}

struct Answer {
    nonce: String,
    error: Option<Status>,
}

impl Sotw {
    fn wants(&self, url: &'static str, name: &str) -> bool {
        let named = self.names.get(url).is_some_and(|names| names.contains(name));
        named || (self.wildcard.contains(&url) && is_listed(name))
    }
}

impl Peer for Sotw {
    type Machine = SotwStream;

    fn new(wildcard: &[&'static str]) -> Self {
        Self {
            wildcard: wildcard.to_vec(),
            names: BTreeMap::new(),
            versions: BTreeMap::new(),
            nonces: BTreeMap::new(),
            due: VecDeque::new(),
            cache: BTreeMap::new(),
        }
    }

    fn subscribe(&mut self, url: &'static str, name: &str) {
        self.names.entry(url).or_default().insert(name.to_owned());
        self.due.push_back((url, None));
    }

    fn unsubscribe(&mut self, url: &'static str, name: &str) {
        self.names.entry(url).or_default().remove(name);
        self.due.push_back((url, None));
    }

    fn reconnect(&mut self) {
        self.nonces.clear();
        let known = self.names.iter().filter(|(_, names)| !names.is_empty()).map(|(url, _)| *url);
        let types: BTreeSet<&'static str> = known.chain(self.wildcard.iter().copied()).collect();
        self.due = types.into_iter().map(|url| (url, None)).collect();
    }

    fn next_request(&mut self) -> Option<DiscoveryRequest> {
        let (url, answer) = self.due.pop_front()?;
        let star = self.wildcard.contains(&url).then(|| "*".to_owned());
        let (response_nonce, error_detail) = match answer {
            Some(answer) => (answer.nonce, answer.error),
            None => (self.nonces.get(url).cloned().unwrap_or_default(), None),
        };
        Some(DiscoveryRequest {
            type_url: url.to_owned(),
            resource_names: self.names.get(url).into_iter().flatten().cloned().chain(star).collect(),
            version_info: self.versions.get(url).cloned().unwrap_or_default(),
            response_nonce,
            error_detail,
            ..DiscoveryRequest::default()
        })
    }

    fn on_response(&mut self, response: DiscoveryResponse) {
        let url = typed(&response.type_url);
        let bodies: Vec<Body> =
            response.resources.iter().map(|it| Body::decode(it.value.as_slice()).expect("ours")).collect();
        let names: BTreeSet<&str> = bodies.iter().map(|body| body.name.as_str()).collect();
        assert_eq!(names.len(), bodies.len(), "a name is twice in one response");
        if [CLUSTER, LISTENER].contains(&url) {
            self.cache.retain(|(have, name), _| *have != url || names.contains(name.as_str()));
        }
        for body in &bodies {
            if body.text.is_empty() {
                self.cache.remove(&(url, body.name.clone()));
            } else if !is_bad(&body.text) {
                self.cache.insert((url, body.name.clone()), body.text.clone());
            }
        }
        let is_refused = bodies.iter().any(|body| is_bad(&body.text));
        let error = is_refused.then(|| Status { code: 3, message: "bad".to_owned(), details: Vec::new() });
        if error.is_none() {
            self.versions.insert(url, response.version_info);
        }
        self.nonces.insert(url, response.nonce.clone());
        self.due.push_back((url, Some(Answer { nonce: response.nonce, error })));
    }

    fn cache(&self) -> Cache {
        let wanted = self.cache.iter().filter(|((url, name), _)| self.wants(url, name));
        wanted.map(|(key, text)| (key.clone(), text.clone())).collect()
    }

    fn learns_removal(url: &str) -> bool {
        url != ROUTE
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn an_incremental_client_converges_to_the_view(
        steps in prop::collection::vec(step(), 0..120),
        wildcard in prop::sample::select(vec![vec![], vec![CLUSTER, LISTENER], TYPES.to_vec()]),
    ) {
        simulate::<Delta>(wildcard, &steps);
    }

    #[test]
    fn a_state_of_the_world_client_converges_to_the_view(
        steps in prop::collection::vec(step(), 0..120),
        wildcard in prop::sample::select(vec![vec![], vec![CLUSTER, LISTENER]]),
    ) {
        simulate::<Sotw>(wildcard, &steps);
    }
}
