//! How a cluster's endpoints are chosen.

use pillion_model::cluster::{Cluster, Discovery, LoadBalancing, SlowStart};
use pillion_model::subset::{
    SelectorFallback, SubsetFallback, SubsetLocalityWeights, SubsetSelector, Subsets,
};
use prost::{Message, Name};

use super::metadata::fields;
use super::{Dialect, any, duration, large, number};
use crate::pb;
use pb::cluster::cluster::LbPolicy;
use pb::lb::common::v3::{LocalityLbConfig, SlowStartConfig, locality_lb_config};
use pb::lb::subset::v3::{Subset, subset};

pub(super) fn balancing(
    cluster: &Cluster,
    dialect: Dialect<'_>,
) -> (LbPolicy, Option<pb::cluster::LoadBalancingPolicy>) {
    if matches!(cluster.discovery, Discovery::OriginalDst | Discovery::Aggregate(_)) {
        return (LbPolicy::ClusterProvided, None);
    }
    if matches!(dialect, Dialect::Grpc) {
        return (LbPolicy::RoundRobin, Some(grpc_balancing(&cluster.load_balancing)));
    }
    // Weights of localities count where there are any, as `LocalityEndpoints::weight` says.
    let weighted = locality_lb_config::LocalityWeightedLbConfig {};
    let locality = Some(LocalityLbConfig {
        locality_config_specifier: Some(
            locality_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(weighted),
        ),
    });
    let least_request = |choices| {
        let config = pb::lb::least_request::v3::LeastRequest {
            choice_count: Some(number(choices)),
            slow_start_config: cluster.slow_start.map(slow_start),
            locality_lb_config: locality,
            ..Default::default()
        };
        policy("envoy.load_balancing_policies.least_request", &config)
    };
    let policies = match cluster.load_balancing {
        LoadBalancing::Ewma => {
            let ours = pb::TypedStruct { type_url: pb::EWMA.to_owned(), value: None };
            vec![policy("pillion.load_balancing_policies.ewma", &ours), least_request(2)]
        }
        LoadBalancing::LeastRequest { choices } => vec![least_request(choices)],
        LoadBalancing::RoundRobin => vec![policy(
            "envoy.load_balancing_policies.round_robin",
            &pb::lb::round_robin::v3::RoundRobin {
                slow_start_config: cluster.slow_start.map(slow_start),
                locality_lb_config: locality,
            },
        )],
        LoadBalancing::Random => vec![policy(
            "envoy.load_balancing_policies.random",
            &pb::lb::random::v3::Random { locality_lb_config: locality },
        )],
        LoadBalancing::RingHash { size_min, size_max } => vec![policy(
            "envoy.load_balancing_policies.ring_hash",
            &pb::lb::ring_hash::v3::RingHash {
                minimum_ring_size: Some(large(size_min)),
                maximum_ring_size: Some(large(size_max)),
                locality_weighted_lb_config: Some(weighted),
                ..Default::default()
            },
        )],
        LoadBalancing::Maglev { table_size } => vec![policy(
            "envoy.load_balancing_policies.maglev",
            &pb::lb::maglev::v3::Maglev {
                table_size: Some(large(table_size)),
                locality_weighted_lb_config: Some(weighted),
                ..Default::default()
            },
        )],
    };
    let inner = pb::cluster::LoadBalancingPolicy { policies };
    let policies = match &cluster.subsets {
        Some(subsets) => vec![policy("envoy.load_balancing_policies.subset", &self::subsets(subsets, inner))],
        None => inner.policies,
    };
    (LbPolicy::RoundRobin, Some(pb::cluster::LoadBalancingPolicy { policies }))
}

/// gRPC takes the first policy that it has: which ones differs by language. Localities count by their
/// weight; a ring spans them.
fn grpc_balancing(balancing: &LoadBalancing) -> pb::cluster::LoadBalancingPolicy {
    let round_robin = || {
        let config = pb::lb::round_robin::v3::RoundRobin::default();
        policy("envoy.load_balancing_policies.round_robin", &config)
    };
    let within = match balancing {
        LoadBalancing::Ewma | LoadBalancing::LeastRequest { .. } => {
            let config = pb::lb::least_request::v3::LeastRequest::default();
            vec![policy("envoy.load_balancing_policies.least_request", &config), round_robin()]
        }
        LoadBalancing::RoundRobin | LoadBalancing::Random => vec![round_robin()],
        LoadBalancing::RingHash { .. } | LoadBalancing::Maglev { .. } => {
            let config = pb::lb::ring_hash::v3::RingHash::default();
            let ring = policy("envoy.load_balancing_policies.ring_hash", &config);
            return pb::cluster::LoadBalancingPolicy { policies: vec![ring] };
        }
    };
    let config = pb::lb::wrr_locality::v3::WrrLocality {
        endpoint_picking_policy: Some(pb::cluster::LoadBalancingPolicy { policies: within }),
    };
    let policies = vec![policy("envoy.load_balancing_policies.wrr_locality", &config)];
    pb::cluster::LoadBalancingPolicy { policies }
}

fn policy<M: Message + Name>(name: &str, config: &M) -> pb::cluster::load_balancing_policy::Policy {
    pb::cluster::load_balancing_policy::Policy {
        typed_extension_config: Some(pb::core::TypedExtensionConfig {
            name: name.to_owned(),
            typed_config: Some(any(config)),
        }),
    }
}

fn slow_start(slow: SlowStart) -> SlowStartConfig {
    let aggression = pb::core::RuntimeDouble { default_value: slow.aggression, runtime_key: String::new() };
    SlowStartConfig {
        slow_start_window: Some(duration(slow.window)),
        aggression: Some(aggression),
        min_weight_percent: Some(pb::types::Percent { value: slow.min_percent }),
    }
}

fn subsets(subsets: &Subsets, inner: pb::cluster::LoadBalancingPolicy) -> Subset {
    let fallback = match subsets.fallback {
        SubsetFallback::None => subset::LbSubsetFallbackPolicy::NoFallback,
        SubsetFallback::Any => subset::LbSubsetFallbackPolicy::AnyEndpoint,
        SubsetFallback::Default => subset::LbSubsetFallbackPolicy::DefaultSubset,
    };
    let metadata = if subsets.fallback_list {
        subset::LbSubsetMetadataFallbackPolicy::FallbackList
    } else {
        subset::LbSubsetMetadataFallbackPolicy::MetadataNoFallback
    };
    Subset {
        fallback_policy: fallback.into(),
        default_subset: (!subsets.default.is_empty()).then(|| fields(&subsets.default)),
        subset_selectors: subsets.selectors.iter().map(selector).collect(),
        allow_redundant_keys: subsets.allow_redundant_keys,
        locality_weight_aware: subsets.locality_weights != SubsetLocalityWeights::Ignored,
        scale_locality_weight: subsets.locality_weights == SubsetLocalityWeights::Scaled,
        panic_mode_any: subsets.panic_mode_any,
        list_as_any: subsets.list_as_any,
        metadata_fallback_policy: metadata.into(),
        subset_lb_policy: Some(inner),
    }
}

fn selector(selector: &SubsetSelector) -> subset::LbSubsetSelector {
    use subset::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Fallback;
    let (fallback, kept) = match &selector.fallback {
        None => (Fallback::NotDefined, Vec::new()),
        Some(SelectorFallback::Cluster(SubsetFallback::None)) => (Fallback::NoFallback, Vec::new()),
        Some(SelectorFallback::Cluster(SubsetFallback::Any)) => (Fallback::AnyEndpoint, Vec::new()),
        Some(SelectorFallback::Cluster(SubsetFallback::Default)) => (Fallback::DefaultSubset, Vec::new()),
        Some(SelectorFallback::Keys(keys)) => (Fallback::KeysSubset, keys.iter().cloned().collect()),
    };
    subset::LbSubsetSelector {
        keys: selector.keys.iter().cloned().collect(),
        single_host_per_subset: selector.single_host,
        fallback_policy: fallback.into(),
        fallback_keys_subset: kept,
    }
}
