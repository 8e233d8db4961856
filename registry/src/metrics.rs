//! The registry's own metrics, prefix `pillion_`. Gauges are set when they are asked for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use pillion_model::health::Health;
use pillion_model::name::{ServiceName, parse_outbound_cluster};
use pillion_xds::ads::{AdsService, LoadReports, Source};
use prometheus::{
    Counter, Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::catalog::Catalog;
use crate::dns::RegistryZone;
use crate::watch::Hub;

/// Counters and gauges of one registry process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    /// Beats heard, on streams and over HTTP.
    pub heartbeats: IntCounter,
    instances: IntGaugeVec,
    services: IntGauge,
    protected: IntGauge,
    expired: IntCounter,
    braked: IntCounter,
    asleep: Counter,
    streams: IntGauge,
    pushes: IntCounterVec,
    acks: IntCounterVec,
    nacks: IntCounterVec,
    refused: IntGaugeVec,
    pending: IntGaugeVec,
    loads: IntCounterVec,
    forwarded: IntCounter,
    answers: IntCounterVec,
    dns: Dns,
    watchers: IntGauge,
    revision: IntGauge,
    resources: IntGauge,
    brake: IntGaugeVec,
    damped: IntGauge,
    store_up: IntGauge,
    replicas: IntGauge,
    peers_refused: IntCounterVec,
}

/// What the DNS server has met.
struct Dns {
    messages: IntCounterVec,
    malformed: IntCounter,
    limited: IntCounter,
    late: IntCounter,
    connections: IntCounter,
    connections_cut: IntCounter,
    connections_open: IntGauge,
}

impl Dns {
    fn update(&self, stats: &pillion_dns::Stats) {
        raise(&self.messages.with_label_values(&["udp"]), stats.udp_messages.load());
        raise(&self.messages.with_label_values(&["tcp"]), stats.tcp_messages.load());
        raise(&self.malformed, stats.malformed.load());
        raise(&self.limited, stats.limited.load());
        raise(&self.late, stats.late.load());
        raise(&self.connections, stats.connections.load());
        raise(&self.connections_cut, stats.connections_cut.load());
        self.connections_open.set(i64::try_from(stats.connections_open.load()).unwrap_or(i64::MAX));
    }
}

const HEALTHS: [Health; 5] =
    [Health::Serving, Health::Warning, Health::Stale, Health::Draining, Health::Down];

impl Metrics {
    /// Fresh metrics.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help));
        let counter = |name: &str, help: &str| registered(&registry, IntCounter::new(name, help));
        let requests = counters(
            "pillion_registry_api_requests_total",
            "Requests to the HTTP API.",
            &["method", "path", "code"],
        );
        let heartbeats =
            registered(&registry, IntCounter::new("pillion_registry_heartbeats_total", "Heartbeats heard."));
        let by_health = Opts::new("pillion_registry_instances", "Registered instances by health.");
        let instances = registered(&registry, IntGaugeVec::new(by_health, &["health"]));
        let asleep = Opts::new(
            "pillion_registry_asleep_seconds_total",
            "Time this process slept through, which counts against nobody.",
        );
        Self {
            requests,
            heartbeats,
            instances,
            services: gauge("pillion_registry_services", "Services that instances have registered."),
            protected: gauge(
                "pillion_registry_protected_instances",
                "Silent instances held by the brake on mass expiry.",
            ),
            expired: counter("pillion_registry_expired_total", "Instances that left for silence alone."),
            braked: counter("pillion_registry_braked_total", "Times the brake held an instance."),
            streams: gauge("pillion_xds_streams", "Open ADS streams."),
            pushes: counters("pillion_xds_pushes_total", "ADS responses sent.", &["type"]),
            acks: counters("pillion_xds_acks_total", "ADS responses that clients accepted.", &["type"]),
            nacks: counters("pillion_xds_nacks_total", "ADS responses that clients refused.", &["type"]),
            refused: gauges(
                "pillion_xds_refused_resources",
                "Resources that connected clients refuse.",
                &["type"],
            ),
            pending: gauges(
                "pillion_xds_pending_streams",
                "ADS streams on which a response waits for its answer.",
                &["type"],
            ),
            loads: counters(
                "pillion_xds_load_requests_total",
                "Requests that clients of load reporting (LRS) say they made.",
                &["cluster", "outcome"],
            ),
            forwarded: counter("pillion_dns_forwarded_total", "DNS questions passed on to other resolvers."),
            answers: counters("pillion_dns_answers_total", "DNS answers by response code.", &["code"]),
            dns: Dns {
                messages: counters("pillion_dns_messages_total", "DNS messages received.", &["transport"]),
                malformed: counter("pillion_dns_malformed_total", "DNS messages that were no question."),
                limited: counter(
                    "pillion_dns_limited_total",
                    "DNS answers withheld from networks over the limit, which were told to use TCP.",
                ),
                late: counter("pillion_dns_late_total", "DNS answers that took too long or found no room."),
                connections: counter("pillion_dns_connections_total", "DNS connections accepted."),
                connections_cut: counter(
                    "pillion_dns_connections_cut_total",
                    "DNS connections closed to make room for others.",
                ),
                connections_open: gauge("pillion_dns_connections", "Open DNS connections."),
            },
            asleep: registered(&registry, Counter::with_opts(asleep)),
            watchers: gauge("pillion_registry_watchers", "Subscribers to changes of services."),
            revision: gauge("pillion_registry_revision", "Revision of the state that is served."),
            resources: gauge("pillion_registry_resources", "Resources in force."),
            brake: registered(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "pillion_registry_brake_instances",
                        "Instances the brake on mass expiry counts, over all services: departed for silence in \
                         the last minute, the budget of that, and protected.",
                    ),
                    &["what"],
                ),
            ),
            damped: gauge("pillion_registry_damped_instances", "Instances held back for coming and going."),
            store_up: gauge(
                "pillion_registry_store_up",
                "1 while the store can be written to, as far as known.",
            ),
            replicas: gauge(
                "pillion_registry_replicas",
                "Registries that share the store; 0 if it is not shared.",
            ),
            peers_refused: counters(
                "pillion_peer_refused_total",
                "Certificates of peers that were refused, by reason.",
                &["reason"],
            ),
            registry,
        }
    }

    /// The registry of these metrics, for parts that add their own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts a request to the API; `path` is the route's pattern, so that there are few.
    pub fn api_request(&self, method: &Method, path: &str, status: StatusCode) {
        let method = match *method {
            Method::GET => "GET",
            Method::PUT => "PUT",
            Method::POST => "POST",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        self.requests.with_label_values(&[method, path, status.as_str()]).inc();
    }

    /// Everything, as Prometheus reads it.
    pub fn text<S: Source>(
        &self,
        catalog: &Catalog,
        hub: &Hub,
        ads: &AdsService<S>,
        loads: &LoadReports,
        zone: &RegistryZone,
    ) -> String {
        let world = catalog.world();
        let mut by_health = [0; HEALTHS.len()];
        for instance in world.catalog.services.values().flat_map(|service| service.instances.values()) {
            let health = Health::combine(instance.health);
            if let Some(at) = HEALTHS.iter().position(|known| *known == health) {
                by_health[at] += 1;
            }
        }
        for (health, count) in HEALTHS.iter().zip(by_health) {
            self.instances.with_label_values(&[health.as_str()]).set(count);
        }
        let stats = catalog.stats();
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.services, world.catalog.services.size() as u64);
        set(&self.resources, world.resources.entries.len() as u64);
        set(&self.protected, catalog.leases().protected() as u64);
        raise(&self.expired, stats.expired.load(Ordering::Relaxed));
        raise(&self.braked, stats.protected.load(Ordering::Relaxed));
        let asleep = Duration::from_millis(stats.asleep_ms.load(Ordering::Relaxed)).as_secs_f64();
        self.asleep.inc_by((asleep - self.asleep.get()).max(0.0));
        set(&self.streams, ads.streams() as u64);
        for (code, sum) in zone.answers_total() {
            raise(&self.answers.with_label_values(&[code]), sum);
        }
        raise(&self.forwarded, zone.forwarded_total());
        self.dns.update(zone.stats());
        for (kind, totals) in ads.totals() {
            raise(&self.pushes.with_label_values(&[kind]), totals.pushes);
            raise(&self.acks.with_label_values(&[kind]), totals.acks);
            raise(&self.nacks.with_label_values(&[kind]), totals.nacks);
            set(&self.refused.with_label_values(&[kind]), totals.refused);
            set(&self.pending.with_label_values(&[kind]), totals.pending);
        }
        for (cluster, load) in loads.sums() {
            // Only what the mesh has: a client may say any name.
            let service = parse_outbound_cluster(&cluster).map(|(_, _, service)| service);
            let is_known = |service: &ServiceName| {
                world.resources.set.service(service).is_some() || world.catalog.services.contains_key(service)
            };
            if !service.as_ref().is_some_and(is_known) {
                continue;
            }
            for (outcome, sum) in
                [("success", load.successes), ("error", load.errors), ("dropped", load.dropped)]
            {
                raise(&self.loads.with_label_values(&[&*cluster, outcome]), sum);
            }
        }
        set(&self.watchers, hub.subscribers() as u64);
        set(&self.revision, world.revision);
        let now = catalog.now();
        let brake = catalog.leases().brake(now).0;
        for (what, count) in
            [("departed", brake.departed), ("budget", brake.budget), ("protected", brake.protected)]
        {
            set(&self.brake.with_label_values(&[what]), count as u64);
        }
        set(&self.damped, catalog.damping().held(now).len() as u64);
        set(&self.store_up, u64::from(catalog.store().trouble().is_none()));
        set(&self.replicas, world.replicas.len() as u64);
        for (reason, count) in pillion_net::tls::refused() {
            raise(&self.peers_refused.with_label_values(&[reason]), count);
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Brings a counter up to a sum that is kept elsewhere.
fn raise(counter: &IntCounter, sum: u64) {
    counter.inc_by(sum.saturating_sub(counter.get()));
}

fn registered<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("a valid name and help");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}
