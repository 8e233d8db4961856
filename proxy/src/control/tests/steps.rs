//! The state, fed by hand: which parts wait for which, and what is forgotten when.

use std::collections::BTreeSet;
use std::time::Duration;

use pillion_xds::ads::NodeInfo;
use pillion_xds::ads::client::{Changed, Client, Update};
use pillion_xds::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SERVICE};
use tokio::time::Instant;

use super::fixture;
use crate::control::names::NEGATIVE_TTL;
use crate::control::state::{Answer, ROUTES_WAIT_MAX, SERVICE_WAIT_MAX, State};

struct Harness {
    state: State,
    now: Instant,
}

impl Harness {
    fn new(on_demand_max: usize) -> Self {
        let mut state = State::new(Client::new(NodeInfo::default()), on_demand_max, &[], Vec::new());
        state.client.connected();
        let mut it = Self { state, now: Instant::now() };
        it.asked();
        it
    }

    /// What was asked of the registry since the last time: `+name` and `-name` with the type's
    /// label.
    fn asked(&mut self) -> BTreeSet<String> {
        let mut asked = BTreeSet::new();
        while let Some(request) = self.state.client.next_request() {
            let label = pillion_xds::type_url::label(&request.type_url);
            asked.extend(request.resource_names_subscribe.iter().map(|name| format!("+{label} {name}")));
            asked.extend(request.resource_names_unsubscribe.iter().map(|name| format!("-{label} {name}")));
        }
        asked
    }

    #[track_caller]
    fn asks(&mut self, want: &[&str]) {
        assert_eq!(self.asked(), want.iter().map(|name| (*name).to_owned()).collect());
    }

    fn ask(&mut self, name: &str) -> Answer {
        self.state.ask(name, self.now)
    }

    fn gets(&mut self, url: &str, name: &str, text: &str) {
        let value = fixture::read(url, name, text.as_bytes()).expect("valid");
        let changed =
            Changed { name: name.into(), version: "1".into(), body: text.as_bytes().to_vec().into(), value };
        self.update(Update {
            type_url: url.into(),
            changed: vec![changed],
            removed: vec![],
            rejected: vec![],
        });
    }

    fn loses(&mut self, url: &str, name: &str) -> Vec<String> {
        self.update(Update {
            type_url: url.into(),
            changed: vec![],
            removed: vec![name.into()],
            rejected: vec![],
        })
    }

    fn update(&mut self, update: Update<crate::control::state::Item>) -> Vec<String> {
        self.state.on_update(update, self.now)
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.state.settle(self.now);
    }

    /// All of a service and its parts.
    fn learns(&mut self, name: &str) {
        let (routes, cluster) = (format!("r-{name}"), format!("c-{name}"));
        self.ask(name);
        self.gets(SERVICE, name, &format!("{routes} {cluster}"));
        self.gets(CLUSTER, &cluster, "");
        self.gets(ENDPOINTS, &cluster, "");
        self.gets(ROUTE, &routes, &cluster);
        assert!(self.state.has_service(name), "{name} is complete");
        self.asked();
    }

    /// The names in effect, of clusters, endpoints, routes and services.
    #[track_caller]
    fn shows(&mut self, want: &[&str]) {
        let live = self.state.take();
        let names: Vec<&String> = live
            .clusters
            .keys()
            .chain(live.endpoints.keys())
            .chain(live.routes.keys())
            .chain(live.services.keys())
            .collect();
        assert_eq!(names, want);
    }
}

#[test]
fn a_service_takes_effect_when_its_last_part_has_arrived() {
    let mut it = Harness::new(8);
    assert_eq!(it.ask("web"), Answer::Asked);
    it.asks(&["+service web"]);
    it.gets(SERVICE, "web", "r-web c-web");
    it.asks(&["+route r-web", "+cluster c-web", "+endpoints c-web"]);
    it.gets(CLUSTER, "c-web", "");
    it.gets(ROUTE, "r-web", "c-web");
    it.shows(&["c-web"]);
    it.gets(ENDPOINTS, "c-web", "");
    it.shows(&["c-web", "c-web", "r-web", "web"]);
    assert_eq!(it.ask("web"), Answer::Known);
    it.asks(&[]);
}

#[test]
fn parts_that_do_not_exist_or_are_late_hold_nothing_for_good() {
    let mut it = Harness::new(8);
    it.ask("web");
    it.gets(SERVICE, "web", "r-web c-web c-gone");
    it.loses(CLUSTER, "c-gone");
    it.gets(CLUSTER, "c-web", "");
    it.gets(ROUTE, "r-web", "c-web c-gone");
    it.loses(ENDPOINTS, "c-web");
    it.shows(&["c-web", "r-web", "web"]);

    let mut it = Harness::new(8);
    it.ask("web");
    it.gets(SERVICE, "web", "r-web c-web");
    assert_eq!(it.state.settle_at(), Some(it.now + SERVICE_WAIT_MAX));
    it.wait(SERVICE_WAIT_MAX);
    it.shows(&["web"]);
    it.gets(ROUTE, "r-web", "c-web");
    it.shows(&["web"]);
    it.wait(ROUTES_WAIT_MAX);
    it.shows(&["r-web", "web"]);
}

#[test]
fn routes_move_when_the_new_cluster_is_complete_and_only_then_the_old_one_goes() {
    let mut it = Harness::new(8);
    it.learns("web");
    it.gets(ROUTE, "r-web", "c-new");
    it.gets(SERVICE, "web", "r-web c-new");
    it.asks(&["+cluster c-new", "+endpoints c-new"]);
    it.gets(CLUSTER, "c-new", "");
    let live = it.state.take();
    assert_eq!(live.routes["r-web"], fixture::routes("r-web", &["c-web"]), "still the old cluster");
    it.gets(ENDPOINTS, "c-new", "");
    it.shows(&["c-new", "c-new", "r-web", "web"]);
    it.asks(&["-cluster c-web", "-endpoints c-web"]);
}

#[test]
fn that_a_name_does_not_exist_is_known_for_a_while_and_its_creation_at_once() {
    let mut it = Harness::new(8);
    it.ask("web");
    it.asked();
    assert_eq!(it.loses(SERVICE, "web"), ["web"], "those who wait are told");
    assert_eq!(it.ask("web"), Answer::Absent);
    it.asks(&[]);
    it.now += NEGATIVE_TTL;
    assert_eq!(it.ask("web"), Answer::Asked);
    it.asks(&["+service web"]);
    it.loses(SERVICE, "web");
    it.learns("web");
    assert_eq!(it.ask("web"), Answer::Known);
    it.loses(SERVICE, "web");
    it.shows(&[]);
    it.asks(&["-route r-web", "-cluster c-web", "-endpoints c-web"]);
    assert_eq!(it.ask("web"), Answer::Absent);
}

#[test]
fn the_service_used_longest_ago_goes_with_all_its_parts() {
    let mut it = Harness::new(2);
    it.learns("a");
    it.learns("b");
    it.ask("a");
    assert_eq!(it.ask("c"), Answer::Asked);
    it.shows(&["c-a", "c-a", "r-a", "a"]);
    it.asks(&["+service c", "-service b", "-route r-b", "-cluster c-b", "-endpoints c-b"]);
}

#[test]
fn pinned_routes_are_asked_for_at_once_and_kept_without_any_service() {
    let routes = vec!["egress".to_owned()];
    let mut state = State::new(Client::new(NodeInfo::default()), 8, &[], routes);
    state.client.connected();
    let mut it = Harness { state, now: Instant::now() };
    assert!(it.asked().contains("+route egress"));
    it.gets(ROUTE, "egress", "");
    it.learns("web");
    it.loses(SERVICE, "web");
    assert_eq!(it.state.take().routes.keys().collect::<Vec<_>>(), ["egress"]);
}

#[test]
fn own_configuration_needs_no_service_and_decides_when_the_proxy_is_complete() {
    let mut it = Harness::new(2);
    it.gets(CLUSTER, "inbound|http", "");
    assert!(!it.state.is_synced());
    it.gets(LISTENER, "inbound", "");
    assert!(it.state.is_synced());
    it.asks(&[]);
    let live = it.state.take();
    assert_eq!(live.listeners.keys().collect::<Vec<_>>(), ["inbound"]);
    assert!(!it.state.is_changed(), "taken");
    it.gets(CLUSTER, "inbound|http", "");
    assert!(it.state.is_changed());
}
