use std::sync::Arc;
use std::time::Duration;

use pillion_model::health::{Health, Reported};
use pillion_model::name::{InstanceId, ServiceName};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::store::redb::RedbStore;

struct Fixture {
    directory: tempfile::TempDir,
    catalog: Arc<Catalog>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fixture {
    async fn new() -> Self {
        Self::open(tempfile::tempdir().expect("tempdir")).await
    }

    async fn open(directory: tempfile::TempDir) -> Self {
        let store = Arc::new(RedbStore::open(directory.path()).expect("opens"));
        let catalog = Catalog::open(store).await.expect("loads");
        catalog.adopt();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (following, token) = (Arc::clone(&catalog), stop.clone());
        tasks.spawn(async move { following.follow(token).await });
        Self { directory, catalog, stop, tasks }
    }

    async fn restart(self) -> Self {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        drop(self.catalog);
        Self::open(self.directory).await
    }

    async fn register(&self, body: Value) -> Result<u64, String> {
        let registration = Registration::parse(orders(), id("a"), &body).expect("valid");
        let registered = self.catalog.register(&registration).await.map_err(|error| error.to_string())?;
        Ok(registered.instance.generation)
    }

    fn health(&self) -> Option<Health> {
        let world = self.catalog.world();
        world.catalog.instance(&orders(), &id("a")).map(|instance| Health::combine(instance.health))
    }
}

fn orders() -> ServiceName {
    ServiceName::new("shop", "orders").expect("valid")
}

fn id(text: &str) -> InstanceId {
    InstanceId::parse(text).expect("valid")
}

#[tokio::test]
async fn a_registration_is_seen_at_once_and_survives_a_restart() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.register(json!({"address": "10.0.0.5", "port": 8080})).await, Ok(1));
    assert_eq!(fixture.health(), Some(Health::Serving));
    let before = fixture.catalog.world();
    let fixture = fixture.restart().await;
    let after = fixture.catalog.world();
    assert_eq!((&after.epoch, after.revision), (&before.epoch, before.revision));
    let seen = |world: &World| world.catalog.instance(&orders(), &id("a")).cloned();
    assert_eq!(seen(&after), seen(&before));
    assert_eq!(after.indexes, before.indexes);
    assert!(after.catalog.services[&orders()].ports.contains_key("http"));
}

#[tokio::test]
async fn the_same_registration_again_writes_nothing() {
    let fixture = Fixture::new().await;
    let body = json!({"address": "10.0.0.5", "port": 8080, "labels": {"version": "1"}});
    fixture.register(body.clone()).await.expect("registers");
    let revision = fixture.catalog.world().revision;
    assert_eq!(fixture.register(body).await, Ok(1));
    assert_eq!(fixture.catalog.world().revision, revision);
    let changed = json!({"address": "10.0.0.6", "port": 8080});
    assert_eq!(fixture.register(changed).await, Ok(2), "a change without a generation is a newer one");
}

#[tokio::test]
async fn an_instance_that_is_deleted_without_a_trace_has_left() {
    let fixture = Fixture::new().await;
    fixture.register(json!({"address": "10.0.0.5", "port": 8080})).await.expect("registers");
    let mut transaction = Transaction::default();
    transaction.push(Op::delete(record::instance_key(&orders(), &id("a"))));
    fixture.catalog.commit(transaction).await.expect("commits");
    assert_eq!(fixture.health(), None);
    assert!(fixture.catalog.leases().is_empty());
}

#[tokio::test]
async fn older_generations_are_refused_and_what_left_does_not_return() {
    let fixture = Fixture::new().await;
    let body = |generation: u64| json!({"address": "10.0.0.5", "port": 8080, "generation": generation});
    fixture.register(body(7)).await.expect("registers");
    let error = fixture.register(body(6)).await.expect_err("older");
    assert!(error.contains("generation 6") && error.contains("7, which is registered"), "{error}");
    let older = fixture.catalog.deregister(&orders(), &id("a"), Some(6)).await;
    assert!(matches!(older, Err(ReportError::Older { got: 6, have: 7 })));
    fixture.catalog.deregister(&orders(), &id("a"), Some(7)).await.expect("leaves");
    fixture.catalog.deregister(&orders(), &id("a"), Some(7)).await.expect("leaves twice");
    assert_eq!(fixture.health(), None);

    let fixture = fixture.restart().await;
    let error = fixture.register(body(7)).await.expect_err("left");
    assert!(error.contains("has left"), "{error}");
    assert_eq!(fixture.health(), None);
    assert_eq!(fixture.register(body(8)).await, Ok(8));
}

#[tokio::test]
async fn the_registry_assigns_generations_above_those_it_knows() {
    let fixture = Fixture::new().await;
    let body = json!({"address": "10.0.0.5", "port": 8080});
    assert_eq!(fixture.register(body.clone()).await, Ok(1));
    fixture.catalog.deregister(&orders(), &id("a"), None).await.expect("leaves");
    assert_eq!(fixture.register(body).await, Ok(2));
}

#[tokio::test]
async fn whoever_was_only_silent_returns_with_the_same_generation() {
    let fixture = Fixture::new().await;
    let body = json!({"address": "10.0.0.5", "port": 8080, "ttl": "3s", "generation": 5});
    fixture.register(body.clone()).await.expect("registers");
    let lease = fixture.catalog.leases().find(&orders(), &id("a")).expect("has a lease");
    for step in 1..=14 {
        fixture.catalog.judge(fixture.catalog.now() + Duration::from_millis(250 * step)).await;
    }
    assert_eq!(fixture.health(), None, "silent for its whole lease");
    assert!(lease.has_ended());
    assert_eq!(fixture.register(body).await, Ok(5));
    assert_eq!(fixture.health(), Some(Health::Serving));
}

#[tokio::test]
async fn reports_change_health_and_beats_write_nothing() {
    let fixture = Fixture::new().await;
    fixture.register(json!({"address": "10.0.0.5", "port": 8080, "health": "starting"})).await.expect("ok");
    assert_eq!(fixture.health(), Some(Health::Down));
    let ready = Changes { reported: Some(Reported::Ready), ..Changes::default() };
    fixture.catalog.report(&orders(), &id("a"), None, ready).await.expect("reports");
    assert_eq!(fixture.health(), Some(Health::Serving));
    let revision = fixture.catalog.world().revision;
    for _ in 0..100 {
        fixture.catalog.report(&orders(), &id("a"), None, ready).await.expect("beats");
    }
    assert_eq!(fixture.catalog.world().revision, revision);
    let unknown = fixture.catalog.report(&orders(), &id("b"), None, ready).await;
    assert!(matches!(unknown, Err(ReportError::Unknown(..))));
}

#[tokio::test]
async fn another_protocol_on_a_known_port_is_refused_while_others_speak_the_first() {
    let fixture = Fixture::new().await;
    let body = |protocol: &str| json!({"address": "10.0.0.5", "ports": {"main": {"port": 80, "protocol": protocol}}});
    fixture.register(body("http")).await.expect("registers");
    let other = Registration::parse(orders(), id("b"), &body("tcp")).expect("valid");
    let error = fixture.catalog.register(&other).await.expect_err("conflict").to_string();
    assert!(error.contains("port `main` of orders.shop is http"), "{error}");
    // Alone, an instance may change what it speaks.
    fixture.register(body("tcp")).await.expect("registers");
    fixture.catalog.register(&other).await.expect("registers");
}

#[tokio::test]
async fn many_registrations_at_once_all_arrive_with_distinct_indexes() {
    let fixture = Fixture::new().await;
    let registrations = (0..200).map(|n| {
        let service = ServiceName::new("shop", &format!("s{}", n % 50)).expect("valid");
        let body = json!({"address": "10.0.0.5", "port": 8080});
        Registration::parse(service, id(&format!("i{n}")), &body).expect("valid")
    });
    let registrations: Vec<_> = registrations.collect();
    let attempts = registrations.iter().map(|registration| fixture.catalog.register(registration));
    for result in futures_util::future::join_all(attempts).await {
        result.expect("registers");
    }
    let world = fixture.catalog.world();
    assert_eq!((world.catalog.instance_count(), world.catalog.services.size()), (200, 50));
    let indexes: std::collections::BTreeSet<u16> = world.indexes.values().copied().collect();
    assert_eq!(indexes.len(), 50);
    assert!(!indexes.contains(&0));
}

#[tokio::test]
async fn old_traces_and_empty_services_are_forgotten() {
    let fixture = Fixture::new().await;
    fixture.register(json!({"address": "10.0.0.5", "port": 8080, "generation": 5})).await.expect("ok");
    assert!(!fixture.catalog.forget_service(&orders()).await.expect("asks"), "not while it has instances");
    fixture.catalog.deregister(&orders(), &id("a"), None).await.expect("leaves");
    let left_at = fixture.catalog.world().revision;
    assert!(fixture.catalog.world().catalog.services.contains_key(&orders()), "its name stays");
    fixture.catalog.forget(registrar::unix_seconds() + 3600).await;
    assert_eq!(fixture.catalog.world().revision, left_at, "an hour is not enough");
    fixture.catalog.forget(registrar::unix_seconds() + 25 * 3600).await;
    assert_eq!(fixture.catalog.world().floor, left_at);
    assert!(fixture.catalog.forget_service(&orders()).await.expect("forgets"));
    let world = fixture.catalog.world();
    assert!(world.catalog.services.is_empty() && world.indexes.is_empty());
    assert_eq!(world.floor, left_at, "positions of others go on");
    let forgotten_at = world.revision;
    assert_eq!(world.departed.get(&orders()), Some(&forgotten_at));
    let fixture = fixture.restart().await;
    assert_eq!(fixture.catalog.world().departed.get(&orders()), Some(&forgotten_at), "also after a restart");
    fixture.catalog.forget(registrar::unix_seconds() + 25 * 3600).await;
    let world = fixture.catalog.world();
    assert!(world.departed.is_empty() && world.floor == forgotten_at);
    let mut generation = fixture.register(json!({"address": "10.0.0.5", "port": 8080})).await;
    assert_eq!(generation, Ok(1));
    generation = fixture.register(json!({"address": "10.0.0.5", "port": 8080, "generation": 9})).await;
    assert_eq!(generation, Ok(9));
}

#[tokio::test]
async fn the_index_of_a_service_that_is_gone_is_nobody_elses_and_comes_back_to_it() {
    let fixture = Fixture::new().await;
    let body = json!({"address": "10.0.0.5", "port": 8080});
    fixture.register(body.clone()).await.expect("registers");
    let index = fixture.catalog.world().indexes[&orders()];
    fixture.catalog.deregister(&orders(), &id("a"), None).await.expect("leaves");
    assert!(fixture.catalog.forget_service(&orders()).await.expect("forgets"));
    // Another whose name hashes to the same place would get it, were it free.
    let hash = |name: &str| xxhash_rust::xxh3::xxh3_64(format!("shop/{name}").as_bytes()) % 0xffff;
    let twin = (0u64..).map(|n| format!("s{n}")).find(|name| hash(name) == hash("orders")).expect("one");
    let twin = ServiceName::new("shop", &twin).expect("valid");
    let registration = Registration::parse(twin.clone(), id("b"), &body).expect("valid");
    fixture.catalog.register(&registration).await.expect("registers");
    assert_ne!(fixture.catalog.world().indexes[&twin], index, "still in quarantine");
    let fixture = fixture.restart().await;
    fixture.register(body).await.expect("registers");
    assert_eq!(fixture.catalog.world().indexes[&orders()], index, "its own again");
}

#[tokio::test]
async fn an_instance_that_comes_and_goes_is_held_back() {
    let fixture = Fixture::new().await;
    fixture.register(json!({"address": "10.0.0.5", "port": 8080})).await.expect("registers");
    for _ in 0..5 {
        for reported in [Reported::NotReady, Reported::Ready] {
            let changes = Changes { reported: Some(reported), ..Changes::default() };
            fixture.catalog.report(&orders(), &id("a"), None, changes).await.expect("reports");
        }
    }
    assert_eq!(fixture.health(), Some(Health::Down));
    let now = fixture.catalog.now();
    let damped = fixture.catalog.damping().held(now);
    assert_eq!(damped.len(), 1, "{damped:?}");
    assert!(fixture.catalog.leases().find(&orders(), &id("a")).expect("there").is_held_back());
}

/// A message about one instance, as it may arrive late, twice or out of order.
#[derive(Clone, Copy, Debug)]
enum Sent {
    Register(u64),
    Deregister(u64),
}

fn sent() -> impl proptest::strategy::Strategy<Value = Vec<Sent>> {
    use proptest::prelude::*;
    let one = prop_oneof![(1..5u64).prop_map(Sent::Register), (1..5u64).prop_map(Sent::Deregister)];
    proptest::collection::vec(one, 1..20)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_the_order_generations_only_rise_and_what_left_stays_away(messages in sent()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let fixture = Fixture::new().await;
            // The highest generation seen, and the highest that was acknowledged as gone.
            let (mut highest, mut gone) = (0, 0);
            for message in messages {
                match message {
                    Sent::Register(generation) => {
                        let body = json!({"address": "10.0.0.5", "port": 80, "generation": generation});
                        let accepted = fixture.register(body).await.is_ok();
                        assert_eq!(accepted, generation >= highest && generation > gone, "{message:?}");
                        highest = highest.max(if accepted { generation } else { 0 });
                    }
                    Sent::Deregister(generation) => {
                        let known = highest > 0;
                        let left = fixture.catalog.deregister(&orders(), &id("a"), Some(generation)).await.is_ok();
                        assert_eq!(left, known && generation >= highest.max(gone), "{message:?}");
                        gone = gone.max(if left { generation } else { 0 });
                        highest = highest.max(gone);
                    }
                }
                let world = fixture.catalog.world();
                let present = world.catalog.instance(&orders(), &id("a")).map(|instance| instance.generation);
                assert_eq!(present, (highest > gone).then_some(highest));
            }
            fixture.stop.cancel();
        });
    }
}

#[tokio::test]
async fn many_registrations_are_one_write_and_have_an_outcome_each() {
    let fixture = Fixture::new().await;
    let read = |service: &str, name: &str, body: Value| {
        let service = ServiceName::new("shop", service).expect("valid");
        Registration::parse(service, id(name), &body).expect("valid")
    };
    let plain = json!({"address": "10.0.0.5", "port": 8080});
    let tcp = json!({"address": "10.0.0.6", "ports": {"http": {"port": 80, "protocol": "tcp"}}});
    let before = fixture.catalog.world().revision;
    let outcomes = fixture
        .catalog
        .register_many(&[
            read("orders", "a", plain.clone()),
            read("orders", "b", plain.clone()),
            read("orders", "c", tcp),
            read("orders", "a", json!({"address": "10.0.0.7", "port": 8080})),
            read("carts", "a", plain.clone()),
        ])
        .await;
    let told: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(registered) => registered.instance.generation.to_string(),
            Err(error) => error.to_string(),
        })
        .collect();
    assert_eq!([told[0].as_str(), &told[1], &told[3], &told[4]], ["1", "1", "2", "1"]);
    assert!(told[2].contains("by its other instances"), "{}", told[2]);
    let world = fixture.catalog.world();
    assert_eq!(world.revision, before + 1, "together");
    assert_eq!(world.catalog.instance_count(), 3);
    assert_eq!(world.indexes.size(), 2);
    let a = world.catalog.instance(&orders(), &id("a")).expect("registered");
    assert_eq!((a.address.to_string().as_str(), a.generation), ("10.0.0.7", 2), "the last one stands");

    let again = [read("orders", "b", plain.clone()), read("carts", "a", plain)];
    assert!(fixture.catalog.register_many(&again).await.iter().all(Result::is_ok));
    assert_eq!(fixture.catalog.world().revision, before + 1, "what is known costs no write");
}

#[tokio::test]
async fn more_than_the_store_takes_at_once_is_registered_in_parts() {
    let fixture = Fixture::new().await;
    let body = json!({"address": "10.0.0.5", "port": 8080});
    let read = |n: usize| Registration::parse(orders(), id(&format!("i{n}")), &body).expect("valid");
    let all: Vec<_> = (0..2500).map(read).collect();
    let outcomes = fixture.catalog.register_many(&all).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(fixture.catalog.world().catalog.instance_count(), 2500);
    assert_eq!(fixture.catalog.leases().len(), 2500);
}
