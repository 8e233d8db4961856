//! The state-of-the-world variant.

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;

use super::*;
use crate::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE};

fn bodies(response: &DiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|body| String::from_utf8_lossy(&body.value).into_owned()).collect()
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
    it.quiet("the route waits for the clusters");
    it.ask(CLUSTER, &[], Some(&second));
    let routes = it.gets(&["s2"]);
    it.ask(ROUTE, &["r", "s"], Some(&routes));
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
    let moved = it.gets(&["to new"]);
    it.quiet("the old cluster is in use until the route is acknowledged");
    assert_eq!(it.stream.wake_at(), Some(it.now + HOLD));
    it.ask(ROUTE, &["r"], Some(&moved));
    let left = it.gets(&["c-new"]);
    it.quiet("endpoints stay as long as their clusters");
    it.ask(CLUSTER, &[], Some(&left));
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
    let endpoints = it.gets(&["e1"]);
    it.ask(ENDPOINTS, &["e"], Some(&endpoints));
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

#[test]
fn sotw_a_cluster_renamed_in_one_change_is_in_use_until_the_new_one_is_warm() {
    let mut it = sotw(&[(ENDPOINTS, "old", "e-old"), (ROUTE, "r", "to old")]);
    it.view.set(CLUSTER, "old", cluster("old", ""));
    it.ask(CLUSTER, &[], None);
    let clusters = it.next().expect("clusters");
    it.ask(CLUSTER, &[], Some(&clusters));
    it.ask(ENDPOINTS, &["old"], None);
    let endpoints = it.gets(&["e-old"]);
    it.ask(ENDPOINTS, &["old"], Some(&endpoints));
    it.ask(ROUTE, &["r"], None);
    let routes = it.gets(&["to old"]);
    it.ask(ROUTE, &["r"], Some(&routes));
    it.change(|view| {
        *view = Shelf::of(&[(ENDPOINTS, "new", "e-new"), (ROUTE, "r", "to new")]);
        view.set(CLUSTER, "new", cluster("new", ""));
    });
    let both = it.next().expect("clusters");
    assert_eq!(both.resources.len(), 2);
    it.quiet("nothing moves before the new cluster is there");
    it.ask(ENDPOINTS, &["new", "old"], Some(&endpoints));
    let warm = it.gets(&["e-new"]);
    it.quiet("it warms");
    it.ask(ENDPOINTS, &["new", "old"], Some(&warm));
    it.quiet("clusters are acknowledged when they are warm");
    it.ask(CLUSTER, &[], Some(&both));
    let moved = it.gets(&["to new"]);
    it.quiet("the old cluster is in use");
    it.ask(ROUTE, &["r"], Some(&moved));
    assert_eq!(it.next().expect("clusters").resources.len(), 1);
}
