//! Subsets of a cluster's endpoints: a field of old, and the balancing policy that replaces it.

use std::collections::BTreeSet;
use std::mem::take;

use pillion_model::subset::{
    SelectorFallback, SubsetFallback, SubsetLocalityWeights, SubsetSelector, Subsets,
};

use super::Context;
use super::balancing::{Balancing, policy};
use super::metadata::fields;
use crate::pb;
use lb_subset_config::LbSubsetSelector;
use pb::cluster::cluster::{LbSubsetConfig, lb_subset_config};
use pb::lb::subset::v3::Subset;

/// The policy `subset`, which has another one within.
pub(super) fn extension(cx: &mut Context, mut config: Subset) -> Balancing {
    let inner = config.subset_lb_policy.take();
    let inner = cx.some("subset_lb_policy", inner, policy).unwrap_or_else(|| {
        cx.missing("subset_lb_policy");
        Balancing::default()
    });
    if inner.subsets.is_some() {
        cx.refuse_at("subset_lb_policy", "holds subsets itself; want a policy that chooses an endpoint");
    }
    let selector = |one: pb::lb::subset::v3::subset::LbSubsetSelector| LbSubsetSelector {
        keys: one.keys,
        single_host_per_subset: one.single_host_per_subset,
        fallback_policy: one.fallback_policy,
        fallback_keys_subset: one.fallback_keys_subset,
    };
    let same = LbSubsetConfig {
        fallback_policy: config.fallback_policy,
        default_subset: config.default_subset,
        subset_selectors: config.subset_selectors.into_iter().map(selector).collect(),
        locality_weight_aware: config.locality_weight_aware,
        scale_locality_weight: config.scale_locality_weight,
        panic_mode_any: config.panic_mode_any,
        list_as_any: config.list_as_any,
        metadata_fallback_policy: config.metadata_fallback_policy,
    };
    let subsets = subsets(cx, same);
    let redundant = config.allow_redundant_keys;
    Balancing { subsets: subsets.map(|it| Subsets { allow_redundant_keys: redundant, ..it }), ..inner }
}

/// `None` without selectors, as in Envoy.
pub(super) fn subsets(cx: &mut Context, mut m: LbSubsetConfig) -> Option<Subsets> {
    use lb_subset_config::{LbSubsetFallbackPolicy as Fallback, LbSubsetMetadataFallbackPolicy as Metadata};
    let policy = take(&mut m.fallback_policy);
    let fallback = match Fallback::try_from(policy) {
        Ok(Fallback::NoFallback) => SubsetFallback::None,
        Ok(Fallback::AnyEndpoint) => SubsetFallback::Any,
        Ok(Fallback::DefaultSubset) => SubsetFallback::Default,
        Err(_) => {
            cx.refuse_at("fallback_policy", format!("got {policy}, want a known value"));
            SubsetFallback::None
        }
    };
    let (aware, scaled) = (take(&mut m.locality_weight_aware), take(&mut m.scale_locality_weight));
    let metadata = take(&mut m.metadata_fallback_policy);
    let subsets = Subsets {
        selectors: cx.each("subset_selectors", take(&mut m.subset_selectors), selector),
        fallback,
        default: m.default_subset.take().map(fields).unwrap_or_default(),
        list_as_any: take(&mut m.list_as_any),
        locality_weights: match (aware, scaled) {
            (false, _) => SubsetLocalityWeights::Ignored,
            (true, false) => SubsetLocalityWeights::Kept,
            (true, true) => SubsetLocalityWeights::Scaled,
        },
        panic_mode_any: take(&mut m.panic_mode_any),
        allow_redundant_keys: false,
        fallback_list: Metadata::try_from(metadata) == Ok(Metadata::FallbackList),
    };
    cx.rest(&m);
    (!subsets.selectors.is_empty()).then_some(subsets)
}

fn selector(cx: &mut Context, mut m: LbSubsetSelector) -> SubsetSelector {
    use lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Fallback;
    let keys: BTreeSet<String> = take(&mut m.keys).into_iter().collect();
    let kept: BTreeSet<String> = take(&mut m.fallback_keys_subset).into_iter().collect();
    let policy = take(&mut m.fallback_policy);
    let keeps = policy == Fallback::KeysSubset as i32;
    if keeps && (kept.is_empty() || kept == keys || !kept.is_subset(&keys)) {
        cx.refuse_at("fallback_keys_subset", "want some of the selector's keys, but not all");
    } else if !keeps && !kept.is_empty() {
        cx.refuse_at("fallback_keys_subset", "goes with fallback_policy KEYS_SUBSET only");
    }
    let single_host = take(&mut m.single_host_per_subset);
    if single_host && keys.len() != 1 {
        cx.refuse_at("single_host_per_subset", "goes with exactly one key");
    }
    let fallback = match Fallback::try_from(policy) {
        Ok(Fallback::NotDefined) => None,
        Ok(Fallback::NoFallback) => Some(SelectorFallback::Cluster(SubsetFallback::None)),
        Ok(Fallback::AnyEndpoint) => Some(SelectorFallback::Cluster(SubsetFallback::Any)),
        Ok(Fallback::DefaultSubset) => Some(SelectorFallback::Cluster(SubsetFallback::Default)),
        Ok(Fallback::KeysSubset) => Some(SelectorFallback::Keys(kept)),
        Err(_) => {
            cx.refuse_at("fallback_policy", format!("got {policy}, want a known value"));
            None
        }
    };
    cx.rest(&m);
    SubsetSelector { keys, fallback, single_host }
}
