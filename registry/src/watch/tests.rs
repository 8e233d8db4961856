use std::time::Duration;

use pillion_model::name::ServiceName;
use serde_json::{Value, json};

use super::*;
use crate::catalog::{CatalogView, Registration};

fn name(service: &str) -> ServiceName {
    ServiceName::new("shop", service).expect("valid")
}

/// Worlds as the catalog would make them, without a store.
struct Sim {
    hub: Arc<Hub>,
    world: World,
    now: Instant,
}

impl Sim {
    fn new() -> Self {
        let world = World { epoch: "e".into(), ..World::default() };
        Self { hub: Hub::new(&world), world, now: Instant::now() }
    }

    /// Sets the address of instance `id`; `None` takes it out.
    fn set(&mut self, service: &str, id: &str, address: Option<&str>) {
        let mut catalog = CatalogView::clone(&self.world.catalog);
        self.world.revision += 1;
        catalog.revision = self.world.revision;
        let mut next = catalog.services.get(&name(service)).map(|s| (**s).clone()).unwrap_or_default();
        next.revision = self.world.revision;
        let id = pillion_model::name::InstanceId::parse(id).expect("valid");
        match address {
            None => drop(next.instances.remove_mut(&id)),
            Some(address) => {
                let body = json!({"address": address, "port": 80});
                let parsed = Registration::parse(name(service), id.clone(), &body).expect("valid");
                let instance = pillion_model::instance::Instance {
                    service: parsed.service,
                    id: parsed.id,
                    address: parsed.address,
                    ports: parsed.ports.into(),
                    inbound_port: None,
                    metrics_port: None,
                    labels: Arc::default(),
                    metadata: Arc::default(),
                    weight: 100,
                    zone: String::new(),
                    ttl: parsed.ttl,
                    generation: 1,
                    health: Default::default(),
                };
                next.instances.insert_mut(id, Arc::new(instance));
            }
        }
        catalog.services.insert_mut(name(service), Arc::new(next));
        self.world.changes.note(name(service));
        self.world.catalog = Arc::new(catalog);
    }

    fn forget(&mut self, service: &str) {
        let mut catalog = CatalogView::clone(&self.world.catalog);
        self.world.revision += 1;
        catalog.services.remove_mut(&name(service));
        self.world.changes.note(name(service));
        self.world.catalog = Arc::new(catalog);
    }

    fn look_after(&mut self, time: Duration) {
        self.now += time;
        self.hub.look(&self.world, self.now);
    }
}

/// Kind, service and revision of each event.
fn told(batch: &Batch) -> Vec<(&'static str, String, u64)> {
    let event = |event: &Event| {
        let data: Value = serde_json::from_slice(&event.data).expect("JSON");
        let service = data["service"].as_str().unwrap_or_default().to_owned();
        (event.kind.as_str(), service, data["revision"].as_u64().unwrap_or_default())
    };
    batch.events.iter().map(event).collect()
}

fn only(services: &[&str]) -> Interest {
    Interest::Services(services.iter().map(|service| name(service)).collect())
}

const FLUSHED: Duration = Duration::from_millis(101);

#[tokio::test]
async fn the_first_batch_is_the_whole_state_and_the_next_only_what_changed() {
    let mut sim = Sim::new();
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.set("web", "a", Some("10.0.0.2"));
    sim.look_after(FLUSHED);
    let mut watch = sim.hub.subscribe(&sim.world, Interest::All, None).expect("room");
    let batch = watch.next().await;
    assert_eq!(told(&batch), [("service", "orders".into(), 1), ("service", "web".into(), 2)]);
    assert_eq!(&*batch.token, "e.2");
    sim.set("orders", "b", Some("10.0.0.3"));
    sim.look_after(FLUSHED);
    let batch = watch.next().await;
    assert_eq!(told(&batch), [("change", "orders".into(), 3)]);
    let data: Value = serde_json::from_slice(&batch.events[0].data).expect("JSON");
    assert_eq!((data["since"].as_u64(), data["instances"][0]["id"].as_str()), (Some(1), Some("b")));
}

#[tokio::test]
async fn only_those_interested_are_woken() {
    let mut sim = Sim::new();
    let mut orders = sim.hub.subscribe(&sim.world, only(&["orders"]), Some(0)).expect("room");
    let web = sim.hub.subscribe(&sim.world, only(&["web"]), Some(0)).expect("room");
    let shop = sim.hub.subscribe(&sim.world, Interest::Namespace("shop".into()), Some(0)).expect("room");
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.look_after(FLUSHED);
    assert_eq!(told(&orders.next().await), [("service", "orders".into(), 1)]);
    assert!(!web.is_behind() && shop.is_behind());
}

#[tokio::test]
async fn changes_in_quick_succession_are_told_together() {
    let mut sim = Sim::new();
    let mut watch = sim.hub.subscribe(&sim.world, Interest::All, Some(0)).expect("room");
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.look_after(FLUSHED);
    assert_eq!(told(&watch.next().await), [("service", "orders".into(), 1)], "the first at once");
    for n in 2..50 {
        sim.set("orders", "a", Some(&format!("10.0.0.{n}")));
        sim.look_after(Duration::from_millis(1));
    }
    assert!(!watch.is_behind());
    assert_eq!(&*watch.progress().token, "e.1", "nobody may resume behind what is not told");
    sim.look_after(FLUSHED);
    assert_eq!(told(&watch.next().await), [("change", "orders".into(), 49)]);
    assert_eq!(&*watch.progress().token, "e.49");
}

#[tokio::test]
async fn whoever_resumes_hears_what_changed_since_and_nothing_else() {
    let mut sim = Sim::new();
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.set("web", "a", Some("10.0.0.2"));
    sim.look_after(FLUSHED);
    for (after, want) in [(2, vec![]), (1, vec!["web"]), (0, vec!["orders", "web"])] {
        let mut watch = sim.hub.subscribe(&sim.world, Interest::All, Some(after)).expect("room");
        let services: Vec<_> = told(&watch.progress()).into_iter().map(|(_, service, _)| service).collect();
        assert_eq!(services, want, "after {after}");
    }
}

#[tokio::test]
async fn a_departed_service_is_told_and_one_too_far_behind_begins_again() {
    let mut sim = Sim::new();
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.set("web", "a", Some("10.0.0.1"));
    sim.look_after(FLUSHED);
    let mut watch = sim.hub.subscribe(&sim.world, Interest::All, Some(2)).expect("room");
    sim.forget("orders");
    sim.look_after(FLUSHED);
    assert_eq!(told(&watch.next().await), [("removed", "orders".into(), 3)]);
    let mut resumed = sim.hub.subscribe(&sim.world, Interest::All, Some(2)).expect("room");
    assert_eq!(told(&resumed.next().await), [("removed", "orders".into(), 3)]);
    // Once the trace is gone, whoever did not hear of it is told everything.
    sim.world.floor = 3;
    sim.world.revision += 1;
    sim.look_after(FLUSHED);
    let mut late = sim.hub.subscribe(&sim.world, Interest::All, Some(2)).expect("room");
    assert_eq!(told(&late.next().await), [("resync", String::new(), 0), ("service", "web".into(), 2)]);
}

#[tokio::test]
async fn a_service_that_leaves_without_a_trace_is_told() {
    let mut sim = Sim::new();
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.look_after(FLUSHED);
    let mut watch = sim.hub.subscribe(&sim.world, Interest::All, Some(1)).expect("room");
    sim.forget("orders");
    sim.world.floor = sim.world.revision;
    sim.look_after(FLUSHED);
    assert_eq!(told(&watch.next().await), [("removed", "orders".into(), 2)]);
}

#[tokio::test]
async fn a_departure_from_before_the_start_is_told_to_whoever_resumes() {
    let mut sim = Sim::new();
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.set("web", "a", Some("10.0.0.2"));
    sim.forget("orders");
    sim.world.departed.insert_mut(name("orders"), sim.world.revision);
    sim.set("web", "a", Some("10.0.0.3"));
    let hub = Hub::new(&sim.world);
    for (after, want) in [
        (Some(2), vec![("removed", "orders".into(), 3), ("service", "web".into(), 4)]),
        (Some(3), vec![("service", "web".into(), 4)]),
        (Some(4), vec![]),
        (None, vec![("service", "web".into(), 4)]),
    ] {
        let mut watch = hub.subscribe(&sim.world, Interest::All, after).expect("room");
        assert_eq!(told(&watch.progress()), want, "after {after:?}");
    }
}

#[tokio::test]
async fn a_closed_hub_tells_nothing_more_and_says_so() {
    let mut sim = Sim::new();
    let mut watch = sim.hub.subscribe(&sim.world, Interest::All, Some(0)).expect("room");
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.look_after(FLUSHED);
    sim.hub.close();
    let mut late = sim.hub.subscribe(&sim.world, Interest::All, Some(0)).expect("room");
    for watch in [&mut watch, &mut late] {
        assert!(std::future::poll_fn(|context| watch.poll_next(context)).await.is_none());
    }
}

#[tokio::test]
async fn changes_of_two_services_and_two_of_one_are_told_to_whoever_is_behind() {
    let mut sim = Sim::new();
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.set("web", "a", Some("10.0.0.2"));
    sim.look_after(FLUSHED);
    let mut watch = sim.hub.subscribe(&sim.world, Interest::All, None).expect("room");
    watch.next().await;
    sim.set("orders", "a", Some("10.0.0.3"));
    sim.look_after(FLUSHED);
    sim.set("web", "a", Some("10.0.0.4"));
    sim.look_after(FLUSHED);
    sim.set("orders", "a", Some("10.0.0.5"));
    sim.look_after(FLUSHED);
    let batch = watch.next().await;
    let want = [("change", "orders".into(), 3), ("change", "orders".into(), 5), ("change", "web".into(), 4)];
    assert_eq!((told(&batch), &*batch.token), (want.to_vec(), "e.5"));
    sim.set("web", "a", Some("10.0.0.6"));
    sim.look_after(FLUSHED);
    let batch = watch.next().await;
    assert_eq!((told(&batch), &*batch.token), (vec![("change", "web".into(), 6)], "e.6"));
    assert!(!watch.is_behind());
}

#[tokio::test]
async fn a_slow_subscriber_gets_the_current_state_once() {
    let mut sim = Sim::new();
    let mut watch = sim.hub.subscribe(&sim.world, Interest::All, None).expect("room");
    assert_eq!(told(&watch.next().await), []);
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.look_after(FLUSHED);
    watch.next().await;
    for n in 0..(CHANGES_KEPT + 5) {
        sim.set("orders", "a", Some(&format!("10.0.1.{n}")));
        sim.look_after(FLUSHED);
    }
    let revision = sim.world.revision;
    assert_eq!(told(&watch.next().await), [("service", "orders".into(), revision)]);
    assert!(!watch.is_behind());
}

#[tokio::test]
async fn a_subscription_ends_with_its_owner() {
    let sim = Sim::new();
    let watch = sim.hub.subscribe(&sim.world, only(&["orders"]), None).expect("room");
    assert_eq!(sim.hub.subscribers(), 1);
    drop(watch);
    assert_eq!(sim.hub.subscribers(), 0);
    assert!(sim.hub.lock().by_service.is_empty());
}

#[tokio::test]
async fn another_history_is_told_as_a_resync_although_its_revision_is_lower() {
    let mut sim = Sim::new();
    for n in 1..=9 {
        sim.set("orders", "a", Some(&format!("10.0.0.{n}")));
    }
    sim.set("gone", "a", Some("10.0.0.2"));
    sim.look_after(FLUSHED);
    let mut watch = sim.hub.subscribe(&sim.world, Interest::All, None).expect("room");
    assert_eq!(&*watch.next().await.token, "e.10");
    // A backup was restored: fewer changes, and one service is not there.
    sim.world = World { epoch: "f".into(), ..World::default() };
    sim.set("orders", "a", Some("10.0.0.1"));
    sim.look_after(FLUSHED);
    let batch = watch.next().await;
    assert_eq!(told(&batch), [("resync", String::new(), 0), ("service", "orders".into(), 1)]);
    assert_eq!(&*batch.token, "f.1");
}
