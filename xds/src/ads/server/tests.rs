//! The rules of both variants, one by one, on a test clock.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status;
use prost::Message;
use tokio::time::Instant;

use super::fixture::{Shelf, options};
use super::*;
use crate::type_url::{self, CLUSTER, ENDPOINTS, LISTENER, ROUTE, SERVICE};

/// A stream with its view and clock.
struct Harness<M> {
    stream: M,
    view: Shelf,
    now: Instant,
}

impl<M: Machine> Harness<M> {
    fn new(entries: &[(&'static str, &str, &str)]) -> Self {
        Self { stream: M::new(options()), view: Shelf::of(entries), now: Instant::now() }
    }

    fn send(&mut self, request: M::Request) {
        self.stream.on_request(request, &self.view).expect("accepted");
    }

    fn change(&mut self, change: impl FnOnce(&mut Shelf)) {
        change(&mut self.view);
        self.stream.on_view(&self.view);
    }

    fn set(&mut self, url: &'static str, name: &str, text: &str) {
        self.change(|view| view.set(url, name, text.into()));
    }

    fn remove(&mut self, url: &'static str, name: &str) {
        self.change(|view| drop(view.0.remove(&(url, name.to_owned()))));
    }

    fn next(&mut self) -> Option<M::Response> {
        self.stream.next(&self.view, self.now)
    }

    fn quiet(&mut self, why: &str) {
        assert!(self.next().is_none(), "nothing to send: {why}");
    }

    fn status(&self, url: &str) -> TypeStatus {
        self.stream.status().into_iter().find(|status| status.type_url == url).expect("subscribed")
    }
}

fn error(message: &str) -> Option<Status> {
    Some(Status { code: 3, message: message.into(), details: Vec::new() })
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// `name=body` of the resources, then `-name` of what is removed.
fn shown(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let body = |resource: &envoy_types::pb::envoy::service::discovery::v3::Resource| {
        let body = resource.resource.as_ref().map(|body| String::from_utf8_lossy(&body.value).into_owned());
        format!("{}={}", resource.name, body.unwrap_or_default())
    };
    let removed = response.removed_resources.iter().map(|name| format!("-{name}"));
    response.resources.iter().map(body).chain(removed).collect()
}

fn bodies(response: &DiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|body| String::from_utf8_lossy(&body.value).into_owned()).collect()
}

impl Harness<DeltaStream> {
    fn subscribe(&mut self, url: &str, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            type_url: url.into(),
            resource_names_subscribe: texts(names),
            ..DeltaDiscoveryRequest::default()
        });
    }

    fn unsubscribe(&mut self, url: &str, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            type_url: url.into(),
            resource_names_unsubscribe: texts(names),
            ..DeltaDiscoveryRequest::default()
        });
    }

    fn answer(&mut self, response: &DeltaDiscoveryResponse, error_detail: Option<Status>) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        });
    }

    /// Takes one response, checks it and acknowledges it.
    #[track_caller]
    fn gets(&mut self, want: &[&str]) {
        let response = self.next().expect("a response");
        assert_eq!(shown(&response), want);
        self.answer(&response, None);
    }
}

fn delta(entries: &[(&'static str, &str, &str)]) -> Harness<DeltaStream> {
    Harness::new(entries)
}

#[test]
fn delta_answers_every_subscription_and_pushes_only_changes() {
    let mut it = delta(&[(SERVICE, "a", "1"), (SERVICE, "other", "1")]);
    it.subscribe(SERVICE, &["a", "b"]);
    it.gets(&["a=1", "-b"]);
    it.quiet("all told");
    it.set(SERVICE, "other", "2");
    it.quiet("not subscribed to");
    it.set(SERVICE, "b", "1");
    it.gets(&["b=1"]);
    it.subscribe(SERVICE, &["a"]);
    it.gets(&["a=1"]);
    it.remove(SERVICE, "a");
    it.gets(&["-a"]);
    it.set(SERVICE, "a", "1");
    it.gets(&["a=1"]);
    it.unsubscribe(SERVICE, &["a"]);
    it.set(SERVICE, "a", "2");
    it.quiet("no longer subscribed to");
}

#[test]
fn delta_wildcard_is_a_bare_first_request_or_a_star() {
    for (case, url, first, want) in [
        ("bare", CLUSTER, vec![], Some(vec!["x=1"])),
        ("star", CLUSTER, vec!["*"], Some(vec!["x=1"])),
        ("star beside a name", CLUSTER, vec!["*", "hidden"], Some(vec!["hidden=2", "x=1"])),
        ("named only", CLUSTER, vec!["hidden"], Some(vec!["hidden=2"])),
        ("routes have no bare wildcard", ROUTE, vec![], None),
        ("routes have the star", ROUTE, vec!["*"], Some(vec!["x=1"])),
    ] {
        let mut it = delta(&[(CLUSTER, "x", "1"), (CLUSTER, "hidden", "2"), (ROUTE, "x", "1")]);
        it.subscribe(url, &first);
        assert_eq!(it.next().as_ref().map(shown), want.map(|want| texts(&want)), "{case}");
    }
}

#[test]
fn delta_wildcard_survives_names_and_ends_by_its_own_unsubscription() {
    let mut it = delta(&[(CLUSTER, "x", "1"), (CLUSTER, "hidden", "1")]);
    it.subscribe(CLUSTER, &[]);
    it.gets(&["x=1"]);
    it.subscribe(CLUSTER, &["hidden", "x"]);
    it.gets(&["hidden=1", "x=1"]);
    it.unsubscribe(CLUSTER, &["hidden", "x"]);
    it.gets(&["x=1", "-hidden"]);
    it.set(CLUSTER, "x", "2");
    it.gets(&["x=2"]);
    it.subscribe(CLUSTER, &["x"]);
    it.gets(&["x=2"]);
    it.unsubscribe(CLUSTER, &["*"]);
    it.change(|view| {
        view.set(CLUSTER, "x", "3".into());
        view.set(CLUSTER, "y", "1".into());
    });
    it.gets(&["x=3"]);
    it.subscribe(CLUSTER, &["*"]);
    it.gets(&["y=1"]);
    it.subscribe(CLUSTER, &["*"]);
    it.gets(&["y=1"]);
}

#[test]
fn delta_answers_an_empty_wildcard_so_that_clients_can_go_on() {
    let mut it = delta(&[]);
    it.subscribe(LISTENER, &["*"]);
    it.gets(&[]);
    it.quiet("once");
}

#[test]
fn delta_initial_versions_spare_what_is_held_and_tell_what_is_gone() {
    let mut it = delta(&[(SERVICE, "same", "1"), (SERVICE, "changed", "2"), (CLUSTER, "same", "1")]);
    let version = |text: &str| crate::ads::Encoded::new(SERVICE, "", text.into()).version;
    let held = [("same", "1"), ("changed", "1"), ("gone", "1"), ("unwanted", "1")];
    it.send(DeltaDiscoveryRequest {
        type_url: SERVICE.into(),
        resource_names_subscribe: texts(&["same", "changed", "gone", "new"]),
        initial_resource_versions: held
            .iter()
            .map(|(name, text)| ((*name).to_owned(), version(text)))
            .collect(),
        ..DeltaDiscoveryRequest::default()
    });
    it.gets(&["changed=2", "-gone", "-new"]);
    it.quiet("the rest is held");
    it.send(DeltaDiscoveryRequest {
        type_url: CLUSTER.into(),
        initial_resource_versions: [("same".to_owned(), version("1")), ("gone".to_owned(), version("1"))]
            .into(),
        ..DeltaDiscoveryRequest::default()
    });
    it.gets(&[]);
    it.gets(&["-gone"]);
    it.quiet("told");
}

#[test]
fn delta_coalesces_while_an_ack_is_outstanding_but_answers_questions() {
    let mut it = delta(&[(SERVICE, "a", "1"), (SERVICE, "b", "1")]);
    it.subscribe(SERVICE, &["a"]);
    let first = it.next().expect("a");
    for text in ["2", "3", "4"] {
        it.set(SERVICE, "a", text);
        it.quiet("the ACK is outstanding");
    }
    it.subscribe(SERVICE, &["b"]);
    let second = it.next().expect("the answer does not wait");
    assert_eq!(shown(&second), ["b=1"]);
    it.answer(&first, None);
    it.quiet("the second is outstanding");
    it.answer(&second, None);
    it.gets(&["a=4"]);
    assert_eq!(it.status(SERVICE).pushes, 3);
}

#[test]
fn delta_refusals_are_told_by_error_detail_and_never_repeated() {
    let mut it = delta(&[(CLUSTER, "a", "bad")]);
    it.subscribe(CLUSTER, &["*"]);
    let response = it.next().expect("a");
    it.answer(&response, error("a: no"));
    it.quiet("not again");
    it.set(CLUSTER, "b", "1");
    it.gets(&["b=1"]);
    it.set(CLUSTER, "a", "good");
    let response = it.next().expect("changed");
    assert_eq!(it.status(CLUSTER).last_error, None, "an ACK of b came after");
    it.answer(&response, error(""));
    let status = it.status(CLUSTER);
    assert_eq!((status.acks, status.nacks, status.last_error.as_deref()), (1, 2, Some("")));
    it.subscribe(CLUSTER, &["a"]);
    it.gets(&["a=good"]);
}

#[test]
fn delta_outdated_nonces_are_ignored_but_their_subscriptions_count() {
    let mut it = delta(&[(SERVICE, "a", "1"), (SERVICE, "b", "1")]);
    it.subscribe(SERVICE, &["a"]);
    let response = it.next().expect("a");
    it.send(DeltaDiscoveryRequest {
        type_url: SERVICE.into(),
        response_nonce: "77".into(),
        resource_names_subscribe: texts(&["b"]),
        ..DeltaDiscoveryRequest::default()
    });
    let status = it.status(SERVICE);
    assert_eq!((status.acks, status.stale, status.in_flight), (0, 1, true));
    it.gets(&["b=1"]);
    it.answer(&response, None);
    assert_eq!(it.status(SERVICE).stale, 2, "b's ACK covers the response before it");
}

/// An EDS cluster of that name; `mark` makes its content differ.
fn cluster(name: &str, mark: &str) -> Vec<u8> {
    Cluster {
        name: name.into(),
        alt_stat_name: mark.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        ..Cluster::default()
    }
    .encode_to_vec()
}

#[test]
fn endpoints_are_sent_again_after_their_cluster_unless_the_client_keeps_them() {
    for follows in [true, false] {
        let mut it = delta(&[(ENDPOINTS, "a", "e"), (ENDPOINTS, "b", "e")]);
        it.stream = DeltaStream::new(StreamOptions { endpoints_follow_clusters: follows, ..options() });
        it.view.set(CLUSTER, "a", cluster("a", "1"));
        it.view.set(CLUSTER, "b", cluster("b", "1"));
        it.subscribe(CLUSTER, &["*"]);
        let first = it.next().expect("clusters");
        it.answer(&first, None);
        it.subscribe(ENDPOINTS, &["a", "b"]);
        it.gets(&["a=e", "b=e"]);
        it.change(|view| view.set(CLUSTER, "b", cluster("b", "2")));
        let again = it.next().expect("b changed");
        assert_eq!(again.resources.len(), 1);
        it.answer(&again, None);
        if follows {
            it.gets(&["b=e"]);
        }
        it.quiet("done");
    }
}

#[test]
fn a_push_makes_before_it_breaks() {
    let mut it =
        delta(&[(CLUSTER, "old", "1"), (ENDPOINTS, "old", "1"), (LISTENER, "l", "1"), (ROUTE, "r", "old")]);
    for url in [ROUTE, LISTENER, ENDPOINTS, CLUSTER] {
        it.subscribe(url, &["*"]);
    }
    while let Some(response) = it.next() {
        it.answer(&response, None);
    }
    it.change(|view| {
        *view = Shelf::of(&[
            (CLUSTER, "new", "1"),
            (ENDPOINTS, "new", "1"),
            (LISTENER, "l", "2"),
            (ROUTE, "r", "new"),
        ]);
    });
    let mut order = Vec::new();
    while let Some(response) = it.next() {
        order.extend(
            shown(&response)
                .into_iter()
                .map(|what| format!("{} {what}", type_url::label(&response.type_url))),
        );
        it.answer(&response, None);
    }
    let want =
        ["cluster new=1", "endpoints new=1", "listener l=2", "route r=new", "cluster -old", "endpoints -old"];
    assert_eq!(order, want);
}

#[test]
fn routes_wait_for_clusters_in_flight_but_not_for_ever() {
    let mut it = delta(&[(CLUSTER, "a", "1"), (ROUTE, "r", "1")]);
    it.subscribe(CLUSTER, &["*"]);
    it.subscribe(ROUTE, &["r"]);
    let clusters = it.next().expect("clusters");
    it.gets(&["r=1"]);
    it.change(|view| {
        view.set(CLUSTER, "b", "1".into());
        view.set(ROUTE, "r", "b".into());
    });
    it.quiet("cluster b waits for the ACK of a, and the route for b");
    assert_eq!(it.stream.wake_at(), Some(it.now + HOLD));
    it.subscribe(ROUTE, &["r2"]);
    it.gets(&["-r2"]);
    it.now += HOLD;
    it.gets(&["r=b"]);
    it.answer(&clusters, None);
    it.gets(&["b=1"]);
    it.quiet("all told");
    assert_eq!(it.stream.wake_at(), None);
}

#[test]
fn large_pushes_are_cut_and_go_on_after_the_ack() {
    let mut it = delta(&[]);
    it.stream = DeltaStream::new(StreamOptions {
        limits: Limits { response_bytes: 1500, ..options().limits },
        ..options()
    });
    for name in ["a", "b", "c", "d"] {
        it.view.set(CLUSTER, name, vec![b'x'; 1000]);
    }
    it.subscribe(CLUSTER, &["*"]);
    for want in [["a", "b"], ["c", "d"]] {
        let response = it.next().expect("a part");
        assert_eq!(response.resources.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), want);
        it.quiet("until it is answered");
        it.answer(&response, None);
    }
    it.quiet("all sent");
}

#[test]
fn requests_over_a_bound_end_the_stream() {
    let many: Vec<String> = (0..51).map(|n| n.to_string()).collect();
    for (case, url, names, want) in [
        ("names", SERVICE.to_owned(), many, "resource names on one stream: got 51, want at most 50"),
        (
            "length",
            SERVICE.to_owned(),
            vec!["x".repeat(21)],
            "bytes of a resource name: got 21, want at most 20",
        ),
        ("type", String::new(), vec![], "type_url is empty: an aggregated stream needs it in every request"),
    ] {
        let delta = DeltaDiscoveryRequest {
            type_url: url.clone(),
            resource_names_subscribe: names.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        let sotw = DiscoveryRequest { type_url: url, resource_names: names, ..DiscoveryRequest::default() };
        let view = Shelf::default();
        let refused = DeltaStream::new(options()).on_request(delta, &view).expect_err(case);
        assert_eq!(refused.to_string(), want);
        let refused = SotwStream::new(options()).on_request(sotw, &view).expect_err(case);
        assert_eq!(refused.to_string(), want);
    }
    let mut it = delta(&[]);
    (0..6).for_each(|n| it.subscribe(&format!("type{n}"), &["a"]));
    let seventh = DeltaDiscoveryRequest { type_url: "type6".into(), ..DeltaDiscoveryRequest::default() };
    assert!(it.stream.on_request(seventh, &it.view).is_err(), "types are bounded");
}

impl Harness<SotwStream> {
    fn ask(&mut self, url: &str, names: &[&str], last: Option<&DiscoveryResponse>) {
        self.send(DiscoveryRequest {
            type_url: url.into(),
            resource_names: texts(names),
            version_info: last.map(|last| last.version_info.clone()).unwrap_or_default(),
            response_nonce: last.map(|last| last.nonce.clone()).unwrap_or_default(),
            ..DiscoveryRequest::default()
        });
    }

    #[track_caller]
    fn gets(&mut self, want: &[&str]) -> DiscoveryResponse {
        let response = self.next().expect("a response");
        assert_eq!(bodies(&response), want);
        response
    }
}

fn sotw(entries: &[(&'static str, &str, &str)]) -> Harness<SotwStream> {
    Harness::new(entries)
}

#[test]
fn sotw_clusters_are_complete_states_and_routes_are_changes() {
    let mut it = sotw(&[(CLUSTER, "a", "a1"), (CLUSTER, "b", "b1"), (ROUTE, "r", "r1"), (ROUTE, "s", "s1")]);
    it.ask(CLUSTER, &[], None);
    let clusters = it.gets(&["a1", "b1"]);
    assert_eq!(clusters.control_plane.as_ref().expect("named").identifier, "registry-1");
    it.ask(CLUSTER, &[], Some(&clusters));
    it.ask(ROUTE, &["r", "s"], None);
    let routes = it.gets(&["r1", "s1"]);
    it.ask(ROUTE, &["r", "s"], Some(&routes));
    it.quiet("all told");
    it.change(|view| {
        view.set(CLUSTER, "b", "b2".into());
        view.set(ROUTE, "s", "s2".into());
    });
    let second = it.gets(&["a1", "b2"]);
    assert_ne!(second.version_info, clusters.version_info);
    it.gets(&["s2"]);
    it.ask(CLUSTER, &[], Some(&second));
    it.remove(CLUSTER, "a");
    it.gets(&["b2"]);
}

#[test]
fn sotw_state_keeps_what_is_gone_until_routes_have_moved() {
    let mut it = sotw(&[(CLUSTER, "old", "c-old"), (ENDPOINTS, "old", "e-old"), (ROUTE, "r", "to old")]);
    it.ask(CLUSTER, &[], None);
    it.ask(ENDPOINTS, &["old"], None);
    it.ask(ROUTE, &["r"], None);
    let [clusters, endpoints, routes] = [it.gets(&["c-old"]), it.gets(&["e-old"]), it.gets(&["to old"])];
    it.ask(CLUSTER, &[], Some(&clusters));
    it.ask(ENDPOINTS, &["old"], Some(&endpoints));
    it.ask(ROUTE, &["r"], Some(&routes));
    it.change(|view| *view = Shelf::of(&[(CLUSTER, "new", "c-new"), (ROUTE, "r", "to new")]));
    let both = it.gets(&["c-new", "c-old"]);
    it.ask(CLUSTER, &[], Some(&both));
    it.gets(&["to new"]);
    it.gets(&["c-new"]);
    let empty = it.next().expect("no endpoints any more");
    assert_eq!(empty.resources[0].value, [&[0x0a, 3][..], b"old"].concat(), "an empty assignment");
}

#[test]
fn sotw_missing_names_are_remembered_and_missing_endpoints_answered_empty() {
    let mut it = sotw(&[]);
    it.ask(ROUTE, &["r"], None);
    it.quiet("absence means nothing for routes");
    it.ask(LISTENER, &["l"], None);
    let none = it.gets(&[]);
    it.ask(LISTENER, &["l"], Some(&none));
    it.ask(ENDPOINTS, &["e"], None);
    let empty = it.next().expect("answered");
    assert_eq!(empty.resources.len(), 1);
    it.ask(ENDPOINTS, &["e"], Some(&empty));
    it.change(|view| *view = Shelf::of(&[(ROUTE, "r", "r1"), (LISTENER, "l", "l1"), (ENDPOINTS, "e", "e1")]));
    it.gets(&["e1"]);
    it.gets(&["l1"]);
    it.gets(&["r1"]);
}

#[test]
fn sotw_outdated_requests_are_ignored_as_a_whole() {
    let mut it = sotw(&[(ROUTE, "r", "r1"), (ROUTE, "s", "s1")]);
    it.ask(ROUTE, &["r"], None);
    let first = it.gets(&["r1"]);
    it.ask(ROUTE, &["r"], Some(&first));
    it.set(ROUTE, "r", "r2");
    let second = it.gets(&["r2"]);
    it.ask(ROUTE, &["r", "s"], Some(&first));
    it.quiet("crossed with the second response");
    it.ask(ROUTE, &["r", "s"], Some(&second));
    it.gets(&["s1"]);
    let status = it.status(ROUTE);
    assert_eq!((status.acks, status.stale, status.pushes), (2, 1, 3));
}

#[test]
fn sotw_wildcard_is_lost_once_a_name_was_listed() {
    let mut it = sotw(&[(LISTENER, "a", "a1"), (LISTENER, "b", "b1")]);
    it.ask(LISTENER, &[], None);
    let all = it.gets(&["a1", "b1"]);
    it.ask(LISTENER, &["a"], Some(&all));
    let named = it.gets(&["a1"]);
    it.ask(LISTENER, &[], Some(&named));
    it.quiet("an empty list is nothing now");
    it.set(LISTENER, "a", "a2");
    it.quiet("nothing is subscribed to");
    it.ask(LISTENER, &["*"], Some(&named));
    it.gets(&["a2", "b1"]);
}

#[test]
fn sotw_names_asked_for_again_are_answered_again() {
    let mut it = sotw(&[(ENDPOINTS, "a", "a1"), (ENDPOINTS, "b", "b1")]);
    it.ask(ENDPOINTS, &["a", "b"], None);
    let both = it.gets(&["a1", "b1"]);
    it.ask(ENDPOINTS, &["b"], Some(&both));
    it.quiet("less needs no answer");
    it.ask(ENDPOINTS, &["a", "b"], Some(&both));
    it.gets(&["a1"]);
}

#[test]
fn sotw_a_refused_state_is_not_repeated_and_a_known_one_not_sent() {
    let mut it = sotw(&[(CLUSTER, "a", "bad")]);
    it.ask(CLUSTER, &[], None);
    let state = it.gets(&["bad"]);
    it.send(DiscoveryRequest {
        type_url: CLUSTER.into(),
        response_nonce: state.nonce.clone(),
        error_detail: error("a: no"),
        ..DiscoveryRequest::default()
    });
    it.quiet("not again");
    assert_eq!(it.status(CLUSTER).last_error.as_deref(), Some("a: no"));

    let mut again = sotw(&[(CLUSTER, "a", "bad")]);
    let known = DiscoveryRequest {
        type_url: CLUSTER.into(),
        version_info: state.version_info,
        ..DiscoveryRequest::default()
    };
    again.send(known);
    again.quiet("the client has it from an earlier stream");
    again.set(CLUSTER, "a", "good");
    again.gets(&["good"]);
}

#[test]
fn sotw_sends_endpoints_again_after_their_cluster_changed() {
    let mut it = sotw(&[(ENDPOINTS, "a", "ea"), (ENDPOINTS, "b", "eb")]);
    it.view.set(CLUSTER, "a", cluster("a", "1"));
    it.view.set(CLUSTER, "b", cluster("b", "1"));
    it.ask(CLUSTER, &[], None);
    let clusters = it.next().expect("clusters");
    it.ask(CLUSTER, &[], Some(&clusters));
    it.ask(ENDPOINTS, &["a", "b"], None);
    let endpoints = it.gets(&["ea", "eb"]);
    it.ask(ENDPOINTS, &["a", "b"], Some(&endpoints));
    it.change(|view| view.set(CLUSTER, "b", cluster("b", "2")));
    assert_eq!(it.next().expect("complete state").resources.len(), 2);
    it.gets(&["eb"]);
}
