//! Subsets: the endpoints of a cluster that have the labels a route asks for. Envoy:
//! `LbSubsetConfig`.
//!
//! Which endpoints a route's criteria lead to depends on configuration only, so it is a plan made
//! once: sets of endpoints, tried in order until one gives an endpoint.

use std::collections::BTreeSet;

use crate::endpoint::Endpoint;
use crate::metadata::{Fields, Value};

/// How a cluster's endpoints are divided. Without selectors there are no subsets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subsets {
    /// Sets of keys that criteria may have.
    pub selectors: Vec<SubsetSelector>,
    /// Where criteria lead for which there is no subset.
    pub fallback: SubsetFallback,
    /// The labels of the default subset; empty: every endpoint.
    pub default: Fields,
    /// A label with a list of values counts as each of them.
    pub list_as_any: bool,
    /// What the weights of localities mean within a subset.
    pub locality_weights: SubsetLocalityWeights,
    /// Where the fallback gives no endpoint, all of them are chosen from.
    pub panic_mode_any: bool,
    /// Criteria may have keys beside those of a selector.
    pub allow_redundant_keys: bool,
    /// Criteria may name further ones under [`FALLBACK_LIST`], tried in order instead.
    pub fallback_list: bool,
}

/// Keys of criteria for which there are subsets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubsetSelector {
    /// The keys.
    pub keys: BTreeSet<String>,
    /// Where criteria with these keys lead for which there is no subset; `None`: as the cluster says.
    pub fallback: Option<SelectorFallback>,
    /// Only one endpoint of each subset is used.
    pub single_host: bool,
}

/// Where criteria lead for which there is no subset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubsetFallback {
    /// Nowhere: 503.
    #[default]
    None,
    /// To all endpoints.
    Any,
    /// To the default subset.
    Default,
}

/// Where criteria with a selector's keys lead for which there is no subset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorFallback {
    /// As if it were the cluster's.
    Cluster(SubsetFallback),
    /// Where the criteria with only these keys lead.
    Keys(BTreeSet<String>),
}

/// What the weights of localities mean within a subset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubsetLocalityWeights {
    /// Nothing.
    #[default]
    Ignored,
    /// What they mean among all endpoints.
    Kept,
    /// In proportion to how many of the locality's endpoints are in the subset.
    Scaled,
}

/// One of the sets of endpoints that are tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The endpoints with all of these labels.
    pub labels: Fields,
    /// Only the first of them.
    pub single_host: bool,
    /// Why it is tried.
    pub reason: Reason,
}

/// Why a set of endpoints is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is the subset asked for.
    Selected,
    /// There is no such subset.
    Fallback,
    /// There is no such subset, and its selector says so.
    SelectorFallback,
    /// The fallback gave no endpoint.
    Panic,
}

/// The key under which criteria name others. Envoy: `fallback_list`.
pub const FALLBACK_LIST: &str = "fallback_list";

impl Subsets {
    /// Where `criteria` lead. `exists` tells whether any endpoint has these labels.
    pub fn plan(&self, criteria: &Fields, exists: &dyn Fn(&Fields) -> bool) -> Vec<Step> {
        let mut criteria = criteria.clone();
        let others = match self.fallback_list.then(|| criteria.remove(FALLBACK_LIST)).flatten() {
            Some(Value::List(others)) if !others.is_empty() => others,
            _ => return self.plan_one(&criteria, exists),
        };
        let with = |other: Value| {
            let mut with = criteria.clone();
            if let Value::Struct(other) = other {
                with.extend(other);
            }
            self.plan_one(&with, exists)
        };
        others.into_iter().flat_map(with).collect()
    }

    fn plan_one(&self, criteria: &Fields, exists: &dyn Fn(&Fields) -> bool) -> Vec<Step> {
        let asked = self.asked(criteria);
        let selector = self.selectors.iter().find(|it| it.keys.iter().eq(asked.keys()));
        if let Some(selector) = selector.filter(|_| !asked.is_empty() && exists(&asked)) {
            let single_host = selector.single_host;
            return vec![Step { labels: asked, single_host, reason: Reason::Selected }];
        }
        let mut own = self.selectors.iter().filter(|it| it.keys.iter().eq(criteria.keys()));
        match own.find_map(|selector| selector.fallback.as_ref()).filter(|_| !criteria.is_empty()) {
            Some(SelectorFallback::Cluster(fallback)) => {
                self.fallback(*fallback, Reason::SelectorFallback).into_iter().collect()
            }
            Some(SelectorFallback::Keys(keys)) => {
                let kept = criteria.iter().filter(|(key, _)| keys.contains(*key));
                self.plan_one(&kept.map(|(key, value)| (key.clone(), value.clone())).collect(), exists)
            }
            None => {
                let fallback = self.fallback(self.fallback, Reason::Fallback);
                let panic = fallback.as_ref().filter(|_| self.panic_mode_any).map(|_| any(Reason::Panic));
                fallback.into_iter().chain(panic).collect()
            }
        }
    }

    /// The criteria that count: where others are allowed, those of the selector with the most keys.
    fn asked(&self, criteria: &Fields) -> Fields {
        if !self.allow_redundant_keys {
            return criteria.clone();
        }
        let fits = |it: &&SubsetSelector| it.keys.iter().all(|key| criteria.contains_key(key));
        // The first of equals; `max_by_key` gives the last.
        let selector = self.selectors.iter().rev().filter(fits).max_by_key(|it| it.keys.len());
        let keys = selector.map(|it| &it.keys);
        let kept = criteria.iter().filter(|(key, _)| keys.is_none_or(|keys| keys.contains(*key)));
        kept.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn fallback(&self, to: SubsetFallback, reason: Reason) -> Option<Step> {
        match to {
            SubsetFallback::None => None,
            SubsetFallback::Any => Some(any(reason)),
            SubsetFallback::Default => Some(Step { labels: self.default.clone(), ..any(reason) }),
        }
    }

    /// Whether an endpoint has all of these labels.
    pub fn has(&self, endpoint: &Endpoint, labels: &Fields) -> bool {
        labels.iter().all(|(key, value)| self.has_label(endpoint, key, value))
    }

    fn has_label(&self, endpoint: &Endpoint, key: &str, value: &Value) -> bool {
        match (endpoint.labels.get(key), endpoint.other_labels.get(key)) {
            (Some(text), _) => matches!(value, Value::Text(want) if want == text),
            (None, Some(Value::List(values))) if self.list_as_any => values.contains(value),
            (None, Some(other)) => other == value,
            (None, None) => false,
        }
    }

    /// The labels of every subset that `endpoint` is in.
    pub fn of(&self, endpoint: &Endpoint) -> Vec<Fields> {
        self.selectors.iter().flat_map(|selector| self.of_selector(endpoint, selector)).collect()
    }

    fn of_selector(&self, endpoint: &Endpoint, selector: &SubsetSelector) -> Vec<Fields> {
        let mut all = vec![Fields::new()];
        for key in &selector.keys {
            let values = match (endpoint.labels.get(key), endpoint.other_labels.get(key)) {
                (Some(text), _) => vec![Value::Text(text.clone())],
                (None, Some(Value::List(values))) if self.list_as_any => values.clone(),
                (None, Some(other)) => vec![other.clone()],
                (None, None) => Vec::new(),
            };
            let with = |labels: &Fields, value: Value| {
                labels.clone().into_iter().chain([(key.clone(), value)]).collect()
            };
            all = all.iter().flat_map(|it| values.iter().map(move |value| with(it, value.clone()))).collect();
        }
        all
    }
}

fn any(reason: Reason) -> Step {
    Step { labels: Fields::new(), single_host: false, reason }
}
