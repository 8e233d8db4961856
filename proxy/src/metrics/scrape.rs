//! Sums the workers' numbers and writes them in Prometheus text form.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, Registry, TextEncoder};

use super::{BUCKETS, Family, Labels, Series, Shard, Symbol, Symbols, lock};
use crate::access_log::Writers;

/// The workers' numbers as a Prometheus collector, and whatever else is registered beside it.
#[derive(Clone)]
pub(crate) struct Scrape {
    registry: Registry,
    shards: Arc<[Arc<Shard>]>,
}

struct Workers {
    shards: Vec<Arc<Shard>>,
    symbols: Arc<Symbols>,
    writers: Arc<Writers>,
}

#[derive(Clone, Default)]
struct Sum {
    count: u64,
    request_bytes: u64,
    response_bytes: u64,
    duration_micros: u64,
    buckets: [u64; BUCKETS.len()],
}

impl Scrape {
    /// Over all workers' shards.
    pub(crate) fn new(shards: Vec<Arc<Shard>>, symbols: Arc<Symbols>, writers: Arc<Writers>) -> Self {
        let registry = Registry::new();
        let all: Arc<[Arc<Shard>]> = shards.clone().into();
        registry
            .register(Box::new(Workers { shards, symbols, writers }))
            .expect("the first collector of a new registry");
        Self { registry, shards: all }
    }

    /// The registry, for further collectors.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Requests finished, by their labels.
    pub(crate) fn requests(&self) -> Vec<(Labels, u64)> {
        let all = self.shards.iter().map(|shard| &shard.requests);
        all.flat_map(|requests| lock(requests).clone())
            .map(|(labels, series)| (labels, series.count.load(Relaxed)))
            .collect()
    }

    /// The sum of a family's counters whose labels are wanted.
    pub(crate) fn counted(&self, family: Family, wanted: impl Fn(&[Symbol; 3]) -> bool) -> u64 {
        let of_shard = |shard: &Arc<Shard>| {
            let counters = lock(&shard.counters);
            let fitting = counters.iter().filter(|((of, labels), _)| *of == family && wanted(labels));
            fitting.map(|(_, value)| value.load(Relaxed)).sum::<i64>()
        };
        u64::try_from(self.shards.iter().map(of_shard).sum::<i64>()).unwrap_or(0)
    }

    /// The text form.
    pub(crate) fn text(&self) -> String {
        let mut out = Vec::new();
        if TextEncoder::new().encode(&self.registry.gather(), &mut out).is_err() {
            out.clear();
        }
        String::from_utf8(out).unwrap_or_default()
    }
}

impl Collector for Workers {
    /// None: families appear with their first use, names are checked by the table below.
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        self.collect_requests(&mut families);
        self.collect_tcp(&mut families);
        self.collect_counters(&mut families);
        let active = self.shards.iter().map(|shard| shard.requests_active.load(Relaxed)).sum::<i64>();
        families.push(family(
            "pillion_requests_active",
            "Requests in flight.",
            MetricType::GAUGE,
            vec![gauge(Vec::new(), as_f64(active.unsigned_abs()))],
        ));
        families.push(family(
            "pillion_access_log_lines_dropped_total",
            "Access log lines dropped because the writer fell behind.",
            MetricType::COUNTER,
            vec![counter(Vec::new(), as_f64(self.writers.dropped()))],
        ));
        let refused = pillion_net::tls::refused().filter(|(_, count)| *count > 0);
        let refused: Vec<_> = refused
            .map(|(reason, count)| counter(vec![pair("reason", reason.to_owned())], as_f64(count)))
            .collect();
        if !refused.is_empty() {
            families.push(family(
                "pillion_peer_refused_total",
                "Certificates of peers that were refused, by reason.",
                MetricType::COUNTER,
                refused,
            ));
        }
        families
    }
}

impl Workers {
    fn collect_requests(&self, families: &mut Vec<MetricFamily>) {
        let sums = sum(self.shards.iter().map(|shard| &shard.requests));
        if sums.is_empty() {
            return;
        }
        let (mut totals, mut received, mut sent, mut durations) = (vec![], vec![], vec![], vec![]);
        for (labels, sum) in &sums {
            let labels = self.labels(labels);
            totals.push(counter(labels.clone(), as_f64(sum.count)));
            received.push(counter(labels.clone(), as_f64(sum.request_bytes)));
            sent.push(counter(labels.clone(), as_f64(sum.response_bytes)));
            durations.push(histogram(labels, sum));
        }
        use MetricType::{COUNTER, HISTOGRAM};
        families.extend([
            family("pillion_requests_total", "Requests finished.", COUNTER, totals),
            family("pillion_request_duration_seconds", "Time from first to last byte.", HISTOGRAM, durations),
            family("pillion_request_bytes_total", "Bytes of request bodies.", COUNTER, received),
            family("pillion_response_bytes_total", "Bytes of response bodies.", COUNTER, sent),
        ]);
    }

    fn collect_tcp(&self, families: &mut Vec<MetricFamily>) {
        let sums = sum(self.shards.iter().map(|shard| &shard.tcp));
        if sums.is_empty() {
            return;
        }
        let (mut totals, mut received, mut sent) = (vec![], vec![], vec![]);
        for (labels, sum) in &sums {
            let labels: Vec<_> = self
                .labels(labels)
                .into_iter()
                .filter(|pair| !matches!(pair.name(), "code" | "route"))
                .collect();
            totals.push(counter(labels.clone(), as_f64(sum.count)));
            received.push(counter(labels.clone(), as_f64(sum.request_bytes)));
            sent.push(counter(labels, as_f64(sum.response_bytes)));
        }
        use MetricType::COUNTER;
        families.extend([
            family("pillion_tcp_connections_total", "TCP connections carried to their end.", COUNTER, totals),
            family("pillion_tcp_received_bytes_total", "Bytes received from clients.", COUNTER, received),
            family("pillion_tcp_sent_bytes_total", "Bytes sent to clients.", COUNTER, sent),
        ]);
    }

    fn collect_counters(&self, families: &mut Vec<MetricFamily>) {
        let mut sums: BTreeMap<(usize, [Symbol; 3]), i64> = BTreeMap::new();
        for shard in &self.shards {
            for ((family, labels), value) in lock(&shard.counters).iter() {
                // What a family does not show is not told apart.
                let mut labels = *labels;
                labels[FAMILIES[*family as usize].labels.len()..].fill(Symbol::EMPTY);
                *sums.entry((*family as usize, labels)).or_default() += value.load(Relaxed);
            }
        }
        for (index, described) in FAMILIES.iter().enumerate() {
            let metrics: Vec<Metric> = sums
                .range((index, [Symbol::EMPTY; 3])..(index + 1, [Symbol::EMPTY; 3]))
                .map(|((_, labels), value)| {
                    let pairs = described
                        .labels
                        .iter()
                        .zip(labels)
                        .map(|(name, symbol)| pair(name, self.symbols.text(*symbol)))
                        .collect();
                    let value = as_f64(u64::try_from(*value).unwrap_or(0));
                    match described.kind {
                        MetricType::GAUGE => gauge(pairs, value),
                        _ => counter(pairs, value),
                    }
                })
                .collect();
            if !metrics.is_empty() {
                families.push(family(described.name, described.help, described.kind, metrics));
            }
        }
    }

    fn labels(&self, labels: &Labels) -> Vec<LabelPair> {
        let code = match labels.status / 100 {
            0 => "0".to_owned(),
            class => format!("{class}xx"),
        };
        let text = |symbol| self.symbols.text(symbol);
        vec![
            pair("code", code),
            pair("direction", labels.direction.as_str().to_owned()),
            pair("flags", labels.flags.text().into_owned()),
            pair("route", text(labels.route)),
            pair("service", text(labels.service)),
            pair("source", text(labels.source)),
            pair("subset", text(labels.subset)),
        ]
    }
}

struct Described {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
}

/// In the order of [`Family`].
static FAMILIES: [Described; 7] = [
    Described {
        name: "pillion_connections",
        help: "Open downstream connections.",
        kind: MetricType::GAUGE,
        labels: &["direction"],
    },
    Described {
        name: "pillion_connections_total",
        help: "Downstream connections accepted.",
        kind: MetricType::COUNTER,
        labels: &["direction"],
    },
    Described {
        name: "pillion_connection_failures_total",
        help: "Downstream connections that were refused or failed before they carried anything.",
        kind: MetricType::COUNTER,
        labels: &["direction", "reason"],
    },
    Described {
        name: "pillion_retries_total",
        help: "Tries after the first, and what ended retrying.",
        kind: MetricType::COUNTER,
        labels: &["service", "subset", "outcome"],
    },
    Described {
        name: "pillion_authorization_total",
        help: "Authorization decisions.",
        kind: MetricType::COUNTER,
        labels: &["direction", "outcome", "mode"],
    },
    Described {
        name: "pillion_mirrors_total",
        help: "Requests mirrored.",
        kind: MetricType::COUNTER,
        labels: &["service", "outcome"],
    },
    Described {
        name: "pillion_redirects_total",
        help: "Redirects of upstreams that routes follow, and what came of them.",
        kind: MetricType::COUNTER,
        labels: &["manager", "service", "outcome"],
    },
];

const _: () = assert!(Family::Redirects as usize + 1 == FAMILIES_LEN);
const FAMILIES_LEN: usize = 7;

fn sum<'a>(
    shards: impl Iterator<Item = &'a std::sync::Mutex<Vec<(Labels, Arc<Series>)>>>,
) -> Vec<(Labels, Sum)> {
    let mut sums: hashbrown::HashMap<Labels, Sum> = hashbrown::HashMap::new();
    for shard in shards {
        for (labels, series) in lock(shard).iter() {
            // Of a status Prometheus is told the class.
            let status = labels.status / 100 * 100;
            let sum = sums.entry(Labels { manager: Symbol::EMPTY, status, ..*labels }).or_default();
            sum.count += series.count.load(Relaxed);
            sum.request_bytes += series.request_bytes.load(Relaxed);
            sum.response_bytes += series.response_bytes.load(Relaxed);
            sum.duration_micros += series.duration_micros.load(Relaxed);
            for (into, from) in sum.buckets.iter_mut().zip(&series.buckets) {
                *into += from.load(Relaxed);
            }
        }
    }
    sums.into_iter().collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

fn pair(name: &str, value: String) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value);
    pair
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn counter(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(labels);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(labels);
    metric.set_gauge(gauge);
    metric
}

fn histogram(labels: Vec<LabelPair>, sum: &Sum) -> Metric {
    let mut total = 0;
    let buckets = BUCKETS
        .iter()
        .zip(sum.buckets)
        .map(|(bound, count)| {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(total);
            bucket
        })
        .collect();
    let mut histogram = Histogram::default();
    histogram.set_sample_count(sum.count);
    histogram.set_sample_sum(as_f64(sum.duration_micros) / 1e6);
    histogram.set_bucket(buckets);
    let mut metric = Metric::from_label(labels);
    metric.set_histogram(histogram);
    metric
}
