//! One table per rule: requests and responses in order.

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use envoy_types::pb::google::protobuf::Any;

use super::*;
use crate::type_url::{CLUSTER, SERVICE};

fn client() -> Client {
    Client::new(NodeInfo { id: "shop/orders/a".into(), ..NodeInfo::default() })
}

fn resource(type_url: &str, name: &str, version: &str) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any { type_url: type_url.into(), value: version.into() }),
        ..Resource::default()
    }
}

fn response(
    type_url: &str,
    nonce: &str,
    resources: Vec<Resource>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// Reads text; what contains "bad" is refused.
fn read_text(_type_url: &str, _name: &str, body: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(body).into_owned();
    if text.contains("bad") { Err("connect_timeout: got -1s, want more than 0".into()) } else { Ok(text) }
}

fn reader() -> Decode<String> {
    Arc::new(read_text)
}

fn only(client: &mut Client) -> DeltaDiscoveryRequest {
    let request = client.next_request().expect("a request is due");
    assert_eq!(client.next_request(), None, "one request, not two");
    request
}

#[test]
fn the_first_request_names_the_node_and_later_ones_only_changes() {
    let mut client = client();
    assert!(!client.has_request(), "nothing subscribed to");
    client.subscribe(SERVICE, "orders.shop");
    client.connected();
    let first = only(&mut client);
    assert_eq!(first.node.expect("node").id, "shop/orders/a");
    assert_eq!(first.resource_names_subscribe, ["orders.shop"]);

    client.subscribe(SERVICE, "web.shop");
    client.unsubscribe(SERVICE, "orders.shop");
    let second = only(&mut client);
    assert_eq!(second.node, None);
    assert_eq!(second.resource_names_subscribe, ["web.shop"]);
    assert_eq!(second.resource_names_unsubscribe, ["orders.shop"]);
    assert!(!client.has_request());
}

#[test]
fn types_are_asked_for_in_push_order() {
    let mut client = client();
    client.subscribe(SERVICE, "a");
    client.subscribe_all(CLUSTER);
    client.connected();
    let order: Vec<_> =
        std::iter::from_fn(|| client.next_request()).map(|request| request.type_url).collect();
    assert_eq!(order, [CLUSTER, SERVICE]);
}

#[test]
fn every_response_is_answered_once_with_its_nonce() {
    let mut client = client();
    client.subscribe_all(CLUSTER);
    client.connected();
    only(&mut client);
    for nonce in ["n1", "n2"] {
        let update =
            client.on_response(response(CLUSTER, nonce, vec![resource(CLUSTER, "a", nonce)], &[]), &reader());
        assert_eq!(update.changed[0].value, nonce);
    }
    for nonce in ["n1", "n2"] {
        let ack = client.next_request().expect(nonce);
        assert_eq!((ack.response_nonce.as_str(), ack.error_detail), (nonce, None));
    }
    assert!(!client.has_request());
}

#[test]
fn good_resources_apply_and_the_nack_lists_the_bad_ones() {
    let mut client = client();
    client.subscribe_all(CLUSTER);
    client.connected();
    only(&mut client);
    client.on_response(response(CLUSTER, "1", vec![resource(CLUSTER, "b", "b1")], &[]), &reader());
    only(&mut client);

    let other = Resource { name: "c".into(), ..resource(SERVICE, "c", "c1") };
    let push = vec![resource(CLUSTER, "a", "a2"), resource(CLUSTER, "b", "bad"), other];
    let update = client.on_response(response(CLUSTER, "2", push, &[]), &reader());
    assert_eq!(update.changed.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let error = only(&mut client).error_detail.expect("refused");
    assert_eq!(error.code, INVALID_ARGUMENT);
    assert!(error.message.starts_with("b: connect_timeout: got -1s"), "{}", error.message);
    assert!(error.message.contains("; c: the body is of type"), "{}", error.message);

    client.connected();
    let again = only(&mut client);
    let held = [("a".to_owned(), "a2".to_owned()), ("b".to_owned(), "b1".to_owned())];
    assert_eq!(again.initial_resource_versions, held.into(), "the last good version of b");
}

#[test]
fn what_breaks_the_protocol_is_refused_as_a_whole() {
    for (case, resources, removed) in [
        ("twice", vec![resource(CLUSTER, "a", "1"), resource(CLUSTER, "a", "2")], vec![]),
        ("there and gone", vec![resource(CLUSTER, "a", "1")], vec!["a"]),
    ] {
        let mut client = client();
        client.subscribe_all(CLUSTER);
        client.connected();
        only(&mut client);
        let update = client.on_response(response(CLUSTER, "1", resources, &removed), &reader());
        assert!(update.changed.is_empty() && update.removed.is_empty(), "{case}");
        let error = only(&mut client).error_detail.expect(case);
        assert!(error.message.contains("\"a\" is twice"), "{case}: {}", error.message);
    }
    let mut client = client();
    client.subscribe_all(CLUSTER);
    client.connected();
    only(&mut client);
    client.on_response(response(SERVICE, "1", vec![], &[]), &reader());
    let nack = only(&mut client);
    assert_eq!((nack.type_url.as_str(), nack.response_nonce.as_str()), (SERVICE, "1"));
    assert!(nack.error_detail.expect("refused").message.contains("not asked for"));
}

#[test]
fn removal_and_unsubscription_forget_and_heartbeats_change_nothing() {
    let mut client = client();
    client.subscribe(SERVICE, "a");
    client.subscribe(SERVICE, "b");
    client.connected();
    only(&mut client);
    let push =
        vec![resource(SERVICE, "a", "1"), resource(SERVICE, "b", "1"), resource(SERVICE, "stray", "1")];
    let update = client.on_response(response(SERVICE, "1", push, &[]), &reader());
    assert_eq!(update.changed.len(), 2, "what was not asked for is left out");

    let beat = Resource { resource: None, ..resource(SERVICE, "a", "1") };
    let update = client.on_response(response(SERVICE, "2", vec![beat], &[]), &reader());
    assert!(update.changed.is_empty() && update.rejected.is_empty());
    let empty = Resource { resource: None, ..resource(SERVICE, "a", "2") };
    let update = client.on_response(response(SERVICE, "3", vec![empty], &[]), &reader());
    assert_eq!(update.rejected[0].reason, "the resource has no body");

    let update = client.on_response(response(SERVICE, "4", vec![], &["a", "other"]), &reader());
    assert_eq!(update.removed, ["a"]);
    client.unsubscribe(SERVICE, "b");
    client.connected();
    let again = only(&mut client);
    assert_eq!(again.resource_names_subscribe, ["a"]);
    assert!(again.initial_resource_versions.is_empty());
}

#[test]
fn restored_resources_are_named_only_while_they_are_wanted() {
    let mut client = client();
    client.restore(SERVICE, "a", "7");
    client.restore(SERVICE, "dropped", "7");
    client.subscribe(SERVICE, "a");
    client.connected();
    let first = only(&mut client);
    assert_eq!(first.initial_resource_versions, [("a".to_owned(), "7".to_owned())].into());
    client.subscribe(SERVICE, "a");
    assert_eq!(only(&mut client).resource_names_subscribe, ["a"], "asked again");
}

#[test]
fn a_long_nack_is_cut_at_a_character() {
    let rejected = vec![Rejected { name: "ü".repeat(300), reason: "é".repeat(4000) }];
    let update = Update::<()> { rejected, ..Update::new(CLUSTER.into()) };
    let message = update.nack().expect("refused").message;
    assert!(message.len() <= NACK_BYTES_MAX + " …".len() && message.ends_with('…'));
}
