//! Counters that workers own alone and a scrape sums up.
//!
//! A request adds to memory of its own worker only: one hash lookup by small integers, no lock, no
//! text. Label values are [`Symbol`]s made when configuration is compiled or a connection accepted.
//! The number of series is bounded; what comes after is counted under `other`.

mod scrape;
mod symbols;

use std::cell::RefCell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use pillion_model::listener::Direction;

pub(crate) use scrape::Scrape;
pub(crate) use symbols::{Symbol, Symbols};

use crate::flags::Flags;

/// Labels of the golden signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Labels {
    pub(crate) direction: Direction,
    /// Prefix of the connection manager's statistics.
    pub(crate) manager: Symbol,
    pub(crate) source: Symbol,
    pub(crate) service: Symbol,
    pub(crate) subset: Symbol,
    pub(crate) route: Symbol,
    /// 0: no response.
    pub(crate) status: u16,
    pub(crate) flags: Flags,
}

/// Upper bounds of the duration histogram, in seconds.
pub(crate) const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Series per worker and kind.
const SERIES_MAX: usize = 4096;

/// One worker's numbers for one set of golden labels.
#[derive(Default)]
pub(crate) struct Series {
    count: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    duration_micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len()],
}

/// Other counted things, by up to three labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    /// Labels: direction.
    Connections,
    /// Labels: direction.
    ConnectionsTotal,
    /// Labels: direction, reason.
    ConnectionFailures,
    /// Labels: service, subset, outcome.
    Retries,
    /// Labels: direction, outcome, mode.
    Authorization,
    /// Labels: service, outcome.
    Mirrors,
    /// Labels: manager, service, outcome.
    Redirects,
}

/// A counter of a [`Family`]: gauges go down too.
pub(crate) type Key = (Family, [Symbol; 3]);

/// What a scrape reads of one worker.
#[derive(Default)]
pub(crate) struct Shard {
    requests: Mutex<Vec<(Labels, Arc<Series>)>>,
    tcp: Mutex<Vec<(Labels, Arc<Series>)>>,
    counters: Mutex<Vec<(Key, Arc<AtomicI64>)>>,
    requests_active: AtomicI64,
}

/// One worker's metrics.
pub(crate) struct WorkerMetrics {
    shard: Arc<Shard>,
    pub(crate) symbols: Arc<Symbols>,
    requests: RefCell<HashMap<Labels, Arc<Series>>>,
    tcp: RefCell<HashMap<Labels, Arc<Series>>>,
    counters: RefCell<HashMap<Key, Arc<AtomicI64>>>,
}

impl WorkerMetrics {
    /// Adds to `shard`.
    pub(crate) fn new(shard: Arc<Shard>, symbols: Arc<Symbols>) -> Self {
        Self {
            shard,
            symbols,
            requests: RefCell::default(),
            tcp: RefCell::default(),
            counters: RefCell::default(),
        }
    }

    /// One more or less request in flight.
    pub(crate) fn requests_active(&self, change: i64) {
        self.shard.requests_active.fetch_add(change, Relaxed);
    }

    /// A finished request.
    pub(crate) fn request(&self, labels: Labels, took: Duration, received: u64, sent: u64) {
        let mut map = self.requests.borrow_mut();
        let series = series(&mut map, &self.shard.requests, labels);
        series.record(took, received, sent);
    }

    /// A finished TCP connection.
    pub(crate) fn tcp(&self, labels: Labels, received: u64, sent: u64) {
        let mut map = self.tcp.borrow_mut();
        let series = series(&mut map, &self.shard.tcp, labels);
        series.record(Duration::ZERO, received, sent);
    }

    /// Adds to a counter.
    pub(crate) fn add(&self, family: Family, labels: [Symbol; 3], change: i64) {
        self.counter(family, labels).fetch_add(change, Relaxed);
    }

    fn counter(&self, family: Family, labels: [Symbol; 3]) -> Arc<AtomicI64> {
        let mut map = self.counters.borrow_mut();
        let mut key = (family, labels);
        if let Some(counter) = map.get(&key) {
            return Arc::clone(counter);
        }
        if map.len() >= SERIES_MAX {
            key.1 = labels.map(|_| Symbol::OTHER);
            if let Some(counter) = map.get(&key) {
                return Arc::clone(counter);
            }
        }
        let counter = Arc::new(AtomicI64::new(0));
        map.insert(key, Arc::clone(&counter));
        lock(&self.shard.counters).push((key, Arc::clone(&counter)));
        counter
    }
}

fn series<'a>(
    map: &'a mut HashMap<Labels, Arc<Series>>,
    shared: &Mutex<Vec<(Labels, Arc<Series>)>>,
    labels: Labels,
) -> &'a Series {
    let labels = if map.len() >= SERIES_MAX && !map.contains_key(&labels) {
        Labels {
            source: Symbol::OTHER,
            service: Symbol::OTHER,
            subset: Symbol::OTHER,
            route: Symbol::OTHER,
            ..labels
        }
    } else {
        labels
    };
    map.entry(labels).or_insert_with(|| {
        let series = Arc::new(Series::default());
        lock(shared).push((labels, Arc::clone(&series)));
        series
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Series {
    /// Only the owning worker writes, so plain loads and stores suffice.
    fn record(&self, took: Duration, received: u64, sent: u64) {
        let add = |cell: &AtomicU64, more: u64| cell.store(cell.load(Relaxed) + more, Relaxed);
        add(&self.count, 1);
        add(&self.request_bytes, received);
        add(&self.response_bytes, sent);
        add(&self.duration_micros, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            add(&self.buckets[bucket], 1);
        }
    }
}
