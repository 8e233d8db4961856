//! The rules of both variants, one by one, on a test clock.

mod delta;
mod sotw;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;
use prost::Message;
use tokio::time::Instant;

use super::fixture::{Shelf, options};
use super::*;
use crate::type_url::SERVICE;

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
    let mut it = Harness::<DeltaStream>::new(&[]);
    (0..6).for_each(|n| it.subscribe(&format!("type{n}"), &["a"]));
    let seventh = DeltaDiscoveryRequest { type_url: "type6".into(), ..DeltaDiscoveryRequest::default() };
    assert!(it.stream.on_request(seventh, &it.view).is_err(), "types are bounded");
}
