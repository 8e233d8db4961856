//! The incremental variant.

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

use super::*;
use crate::type_url::{self, CLUSTER, ENDPOINTS, LISTENER, ROUTE};

/// `name=body` of the resources, then `-name` of what is removed.
fn shown(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let body = |resource: &Resource| {
        let body = resource.resource.as_ref().map(|body| String::from_utf8_lossy(&body.value).into_owned());
        format!("{}={}", resource.name, body.unwrap_or_default())
    };
    let removed = response.removed_resources.iter().map(|name| format!("-{name}"));
    response.resources.iter().map(body).chain(removed).collect()
}

impl Harness<DeltaStream> {
    pub(super) fn subscribe(&mut self, url: &str, names: &[&str]) {
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
fn delta_tells_the_wildcard_again_to_a_client_that_gave_up_a_name_before_asking_for_it() {
    let mut it = delta(&[(CLUSTER, "x", "1"), (CLUSTER, "hidden", "1")]);
    it.subscribe(CLUSTER, &["*"]);
    it.gets(&["x=1"]);
    it.unsubscribe(CLUSTER, &["x", "hidden", "nothing"]);
    it.gets(&["x=1"]);
    it.quiet("the rest was never told");
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

/// A client that runs a cluster, its endpoints and a route to it.
fn running() -> Harness<DeltaStream> {
    let mut it = delta(&[(ENDPOINTS, "old", "e"), (ROUTE, "r", "old")]);
    it.view.set(CLUSTER, "old", cluster("old", ""));
    it.subscribe(CLUSTER, &["*"]);
    it.subscribe(ENDPOINTS, &["old"]);
    it.subscribe(ROUTE, &["r"]);
    while let Some(response) = it.next() {
        it.answer(&response, None);
    }
    it
}

#[test]
fn a_cluster_renamed_in_one_change_is_in_use_until_the_new_one_is_warm() {
    // Envoy acknowledges clusters when they are warm, others at once.
    for warms_first in [true, false] {
        let mut it = running();
        it.change(|view| {
            *view = Shelf::of(&[(ENDPOINTS, "new", "e"), (ROUTE, "r", "new")]);
            view.set(CLUSTER, "new", cluster("new", ""));
        });
        let added = it.next().expect("the new cluster");
        assert_eq!((added.resources.len(), added.removed_resources.len()), (1, 0));
        it.quiet("nothing moves before the new cluster is there");
        if !warms_first {
            it.answer(&added, None);
            it.quiet("nobody has asked for its endpoints yet");
        }
        it.subscribe(ENDPOINTS, &["new"]);
        it.gets(&["new=e"]);
        if warms_first {
            it.quiet("it warms");
            it.answer(&added, None);
        }
        let moved = it.next().expect("the route");
        assert_eq!(shown(&moved), ["r=new"]);
        it.quiet("the old cluster is in use");
        it.answer(&moved, None);
        let gone = it.next().expect("clusters");
        assert_eq!(shown(&gone), ["-old"]);
        it.quiet("endpoints stay as long as their cluster");
        it.answer(&gone, None);
        it.gets(&["-old"]);
        it.quiet("done");
        assert_eq!(it.stream.wake_at(), None);
    }
}

#[test]
fn a_client_that_never_warms_gets_the_route_in_the_end() {
    let mut it = running();
    it.change(|view| {
        view.set(CLUSTER, "new", cluster("new", ""));
        view.set(ROUTE, "r", "new".into());
    });
    let added = it.next().expect("the new cluster");
    it.answer(&added, None);
    it.quiet("its endpoints are not asked for");
    assert_eq!(it.stream.wake_at(), Some(it.now + HOLD));
    it.now += HOLD;
    it.gets(&["r=new"]);
    it.quiet("all told");
    it.set(ROUTE, "r", "newer");
    it.gets(&["r=newer"]);
}

#[test]
fn what_is_refused_delays_nothing_that_needs_only_what_is_good() {
    let mut it = running();
    it.change(|view| {
        view.set(CLUSTER, "bad", cluster("bad", ""));
        view.set(CLUSTER, "good", cluster("good", ""));
        view.set(ENDPOINTS, "good", "e".into());
        view.set(ROUTE, "r", "good".into());
    });
    let both = it.next().expect("two clusters");
    assert_eq!(both.resources.len(), 2);
    it.subscribe(ENDPOINTS, &["good"]);
    it.gets(&["good=e"]);
    it.answer(&both, error("Error adding/updating cluster(s) bad: no such thing"));
    it.gets(&["r=good"]);
    it.quiet("what was refused is not sent again");
    let bad = |it: &Harness<DeltaStream>| {
        let refused = |one: &ResourceStatus| matches!(one.state, ResourceState::Refused(_));
        let names = it.stream.resources().into_iter().filter(refused).map(|one| one.name);
        (names.collect::<Vec<_>>(), it.status(CLUSTER).refused)
    };
    assert_eq!(bad(&it), (texts(&["bad"]), 1));
    it.change(|view| view.set(CLUSTER, "bad", cluster("bad", "better")));
    let better = it.next().expect("what changed");
    assert_eq!(better.resources.len(), 1);
    it.answer(&better, None);
    assert_eq!(bad(&it), (Vec::new(), 0));
}

#[test]
fn a_refusal_that_names_nobody_is_tried_one_by_one_and_once() {
    let mut it = running();
    it.change(|view| {
        view.set(CLUSTER, "bad", cluster("bad", ""));
        view.set(CLUSTER, "good", cluster("good", ""));
    });
    let both = it.next().expect("two clusters");
    it.answer(&both, error("Invalid duration"));
    for (name, refusal) in [("bad", error("Invalid duration")), ("good", None)] {
        let alone = it.next().expect(name);
        assert_eq!(alone.resources.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), [name]);
        it.answer(&alone, refusal);
    }
    it.quiet("once");
    assert_eq!(it.status(CLUSTER).refused, 1);
}

#[test]
fn nothing_is_taken_from_a_client_that_refused_to_move_on() {
    let mut it = running();
    it.change(|view| {
        *view = Shelf::of(&[(ENDPOINTS, "new", "e"), (ROUTE, "r", "bad")]);
        view.set(CLUSTER, "new", cluster("new", ""));
    });
    let added = it.next().expect("the new cluster");
    it.subscribe(ENDPOINTS, &["new"]);
    it.gets(&["new=e"]);
    it.answer(&added, None);
    let moved = it.next().expect("the route");
    it.answer(&moved, error("r: no"));
    it.now += HOLD;
    it.quiet("the route before is in force, and needs the old cluster");
    it.set(ROUTE, "r", "new");
    it.gets(&["r=new"]);
    it.gets(&["-old"]);
}

#[test]
fn a_message_names_a_resource_as_a_whole() {
    for (message, named) in [
        ("Error adding/updating cluster(s) app: x", true),
        ("app: connect_timeout: got -1s", true),
        ("refused app.", true),
        ("`app`", true),
        ("app-2: no", false),
        ("my-app, web.app, app.shop", false),
        ("", false),
    ] {
        assert_eq!(crate::ads::server::track::names(message, "app"), named, "{message}");
    }
}
