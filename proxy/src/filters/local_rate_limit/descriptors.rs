//! Limits by description: those whose values are written down, and those that have a bucket for
//! every value that comes.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use pillion_model::rate_limit::{DescriptorLimit, LocalRateLimit, TokenBucket};

use super::bucket::{Bucket, now};

/// A key and a value.
pub(super) type Entry<'a> = (Cow<'a, str>, Cow<'a, str>);

/// A limit of its own.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) bucket: Arc<Bucket>,
    /// It refuses nothing.
    pub(super) shadow: bool,
}

/// All of a filter's.
pub(super) struct Descriptors {
    written: HashMap<Vec<Entry<'static>>, Arc<Rule>>,
    dynamic: Vec<Dynamic>,
}

/// A limit for each value.
struct Dynamic {
    /// An empty value stands for any.
    entries: Vec<(String, String)>,
    bucket: TokenBucket,
    shadow: bool,
    /// Values that have a bucket at once.
    max: usize,
    met: Mutex<Met>,
}

/// The values met, with the moment of the last request of each.
#[derive(Default)]
struct Met {
    rules: HashMap<Vec<Entry<'static>>, (Arc<Rule>, Cell<u64>)>,
    requests: u64,
}

impl Descriptors {
    /// `None`: there are none.
    pub(super) fn compile(settings: &LocalRateLimit) -> Option<Self> {
        if settings.descriptors.is_empty() {
            return None;
        }
        let is_written = |limit: &&DescriptorLimit| limit.entries.iter().all(|(_, value)| !value.is_empty());
        let (written, dynamic): (Vec<_>, Vec<_>) = settings.descriptors.iter().partition(is_written);
        let max = usize::try_from(settings.dynamic_max).unwrap_or(usize::MAX);
        Some(Self {
            written: written
                .into_iter()
                .map(|limit| {
                    let entry = |(key, value): &(String, String)| (key.clone().into(), value.clone().into());
                    let entries = limit.entries.iter().map(entry).collect();
                    (entries, Arc::new(Rule::new(limit.bucket, limit.shadow, now())))
                })
                .collect(),
            dynamic: dynamic.into_iter().map(|limit| Dynamic::new(limit, max)).collect(),
        })
    }

    /// The limits of a request with these descriptions, at most one for each.
    pub(super) fn find(&self, descriptions: &[Vec<Entry<'_>>], now: f64) -> Vec<Arc<Rule>> {
        let find = |entries: &Vec<Entry<'_>>| {
            let written = self.written.get(entries.as_slice()).map(Arc::clone);
            written.or_else(|| {
                self.dynamic.iter().find(|limit| limit.is_for(entries)).map(|limit| limit.rule(entries, now))
            })
        };
        descriptions.iter().filter_map(find).collect()
    }
}

impl Rule {
    fn new(bucket: TokenBucket, shadow: bool, now: f64) -> Self {
        Self { bucket: Arc::new(Bucket::full(bucket, now)), shadow }
    }
}

impl Dynamic {
    fn new(limit: &DescriptorLimit, max: usize) -> Self {
        Self {
            entries: limit.entries.clone(),
            bucket: limit.bucket,
            shadow: limit.shadow,
            max,
            met: Mutex::default(),
        }
    }

    fn is_for(&self, entries: &[Entry<'_>]) -> bool {
        let matches = |((key, value), have): (&(String, String), &Entry<'_>)| {
            *key == have.0 && (value.is_empty() || *value == have.1)
        };
        self.entries.len() == entries.len() && self.entries.iter().zip(entries).all(matches)
    }

    /// The bucket of these values; the one that was longest without a request makes room for a new one.
    fn rule(&self, entries: &[Entry<'_>], now: f64) -> Arc<Rule> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let Met { rules, requests } = &mut *met;
        *requests += 1;
        if let Some((rule, last)) = HashMap::get(rules, entries) {
            last.set(*requests);
            return Arc::clone(rule);
        }
        if rules.len() >= self.max {
            let oldest =
                rules.iter().min_by_key(|(_, (_, last))| last.get()).map(|(entries, _)| entries.clone());
            oldest.map(|oldest| rules.remove(&oldest));
        }
        let rule = Arc::new(Rule::new(self.bucket, self.shadow, now));
        let own = |(key, value): &Entry<'_>| (key.to_string().into(), value.to_string().into());
        rules.insert(entries.iter().map(own).collect(), (Arc::clone(&rule), Cell::new(*requests)));
        rule
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn dynamic(value: &str) -> Dynamic {
        let bucket =
            TokenBucket { max_tokens: 1, tokens_per_fill: 1, fill_interval: Duration::from_secs(3600) };
        let entries = vec![("a".to_owned(), value.to_owned())];
        Dynamic::new(&DescriptorLimit { entries, bucket, shadow: false }, 2)
    }

    #[test]
    fn an_empty_value_stands_for_any() {
        for (value, key, have, want) in
            [("", "a", "x", true), ("", "b", "x", false), ("x", "a", "x", true), ("x", "a", "y", false)]
        {
            assert_eq!(dynamic(value).is_for(&[(key.into(), have.into())]), want, "{value} {key}={have}");
        }
    }

    #[test]
    fn whoever_was_longest_away_makes_room() {
        let limit = dynamic("");
        let takes = |value: &'static str| limit.rule(&[("a".into(), value.into())], 0.0).bucket.take(0.0);
        for (value, want) in [("x", true), ("y", true), ("x", false), ("z", true), ("x", false), ("y", true)]
        {
            assert_eq!(takes(value), want, "{value}");
        }
    }
}
