//! How a cluster's endpoints are chosen.

use std::mem::take;

use pillion_model::cluster::{Discovery, LoadBalancing, SlowStart};
use pillion_model::subset::Subsets;

use super::Context;
use super::context::{ignored, inert, is, type_name};
use super::subset::{extension, subsets};
use crate::pb;
use pb::cluster::cluster::{LbConfig, LbPolicy};

const RING_SIZE_MIN: u64 = 1024;
const RING_SIZE_MAX: u64 = 8 << 20;
const MAGLEV_SIZE: u64 = 65_537;
const SLOW_MIN_PERCENT: f64 = 10.0;

/// What is said of it.
#[derive(Default)]
pub(super) struct Balancing {
    pub(super) policy: LoadBalancing,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) subsets: Option<Subsets>,
}

impl From<LoadBalancing> for Balancing {
    fn from(policy: LoadBalancing) -> Self {
        Self { policy, ..Self::default() }
    }
}

pub(super) fn balancing(cx: &mut Context, m: &mut pb::cluster::Cluster, discovery: &Discovery) -> Balancing {
    let old = take(&mut m.lb_policy);
    let config = m.lb_config.take();
    if matches!(discovery, Discovery::OriginalDst | Discovery::Aggregate(_)) {
        if LbPolicy::try_from(old) != Ok(LbPolicy::ClusterProvided) {
            cx.refuse_at("lb_policy", "want CLUSTER_PROVIDED in an ORIGINAL_DST or aggregate cluster");
        }
        if config.is_some() {
            cx.refuse_at("original_dst_lb_config", "is not supported");
        }
        return Balancing::default();
    }
    let subset_config = m.lb_subset_config.take();
    match m.load_balancing_policy.take() {
        // The older fields beside it say nothing.
        Some(policies) => cx.at("load_balancing_policy", |cx| policy(cx, policies)),
        None => Balancing {
            subsets: cx.some("lb_subset_config", subset_config, subsets).flatten(),
            ..old_balancing(cx, old, config)
        },
    }
}

/// The first policy of the list that is known here.
pub(super) fn policy(cx: &mut Context, list: pb::cluster::LoadBalancingPolicy) -> Balancing {
    for (index, one) in list.policies.into_iter().enumerate() {
        let any = one.typed_extension_config.and_then(|config| config.typed_config).unwrap_or_default();
        let path = format!("policies[{index}].typed_extension_config.typed_config");
        if let Some(policy) = cx.at(path, |cx| known_policy(cx, &any)) {
            return policy;
        }
    }
    cx.refuse_at(
        "policies",
        "has none that is supported; supported: round_robin, least_request, random, ring_hash, maglev, subset",
    );
    Balancing::default()
}

fn known_policy(cx: &mut Context, any: &pb::Any) -> Option<Balancing> {
    if is::<pb::lb::subset::v3::Subset>(any) {
        let config = cx.unpack(any);
        return Some(extension(cx, config));
    }
    if is::<pb::TypedStruct>(any) {
        let message: pb::TypedStruct = cx.unpack(any);
        return (message.type_url == pb::EWMA).then(|| LoadBalancing::Ewma.into());
    }
    if is::<pb::lb::least_request::v3::LeastRequest>(any) {
        let mut config: pb::lb::least_request::v3::LeastRequest = cx.unpack(any);
        let choices = config.choice_count.take().map_or(2, |count| count.value);
        locality(cx, config.locality_lb_config.take());
        let slow_start = cx.some("slow_start_config", config.slow_start_config.take(), slow_start).flatten();
        cx.rest(&config);
        return Some(Balancing { slow_start, ..least_request(cx, choices).into() });
    }
    if is::<pb::lb::round_robin::v3::RoundRobin>(any) {
        let mut config: pb::lb::round_robin::v3::RoundRobin = cx.unpack(any);
        locality(cx, config.locality_lb_config.take());
        let slow_start = cx.some("slow_start_config", config.slow_start_config.take(), slow_start).flatten();
        cx.rest(&config);
        return Some(Balancing { slow_start, ..LoadBalancing::RoundRobin.into() });
    }
    if is::<pb::lb::random::v3::Random>(any) {
        let config: pb::lb::random::v3::Random = cx.unpack(any);
        locality(cx, config.locality_lb_config);
        return Some(LoadBalancing::Random.into());
    }
    if is::<pb::lb::ring_hash::v3::RingHash>(any) {
        let mut config: pb::lb::ring_hash::v3::RingHash = cx.unpack(any);
        inert!(config, hash_function = pb::lb::ring_hash::v3::ring_hash::HashFunction::XxHash as i32);
        config.locality_weighted_lb_config = None;
        let size_min = config.minimum_ring_size.take().map_or(RING_SIZE_MIN, |size| size.value);
        let size_max = config.maximum_ring_size.take().map_or(RING_SIZE_MAX, |size| size.value);
        cx.rest(&config);
        return Some(LoadBalancing::RingHash { size_min, size_max }.into());
    }
    if is::<pb::lb::maglev::v3::Maglev>(any) {
        let mut config: pb::lb::maglev::v3::Maglev = cx.unpack(any);
        config.locality_weighted_lb_config = None;
        let table_size = config.table_size.take().map_or(MAGLEV_SIZE, |size| size.value);
        cx.rest(&config);
        return Some(LoadBalancing::Maglev { table_size }.into());
    }
    if type_name(any).is_empty() {
        cx.missing("@type");
    }
    None
}

fn least_request(cx: &mut Context, choices: u32) -> LoadBalancing {
    if choices < 2 {
        cx.refuse_at("choice_count", format!("got {choices}, want at least 2"));
    }
    LoadBalancing::LeastRequest { choices }
}

/// Weights of localities count where there are any; zones need a local cluster, which there is not.
fn locality(cx: &mut Context, config: Option<pb::lb::common::v3::LocalityLbConfig>) {
    use pb::lb::common::v3::locality_lb_config::LocalityConfigSpecifier as Specifier;
    if let Some(Specifier::ZoneAwareLbConfig(_)) = config.and_then(|config| config.locality_config_specifier)
    {
        cx.ignore("locality_lb_config.zone_aware_lb_config");
    }
}

fn old_balancing(cx: &mut Context, policy: i32, config: Option<LbConfig>) -> Balancing {
    let mut slow = None;
    let policy = match (LbPolicy::try_from(policy), config) {
        (Ok(LbPolicy::RoundRobin), None) => LoadBalancing::RoundRobin,
        (Ok(LbPolicy::RoundRobin), Some(LbConfig::RoundRobinLbConfig(mut config))) => {
            cx.at("round_robin_lb_config", |cx| {
                slow = old_slow_start(cx, config.slow_start_config.take());
                cx.rest(&config);
            });
            LoadBalancing::RoundRobin
        }
        (Ok(LbPolicy::Random), None) => LoadBalancing::Random,
        (Ok(LbPolicy::LeastRequest), None) => LoadBalancing::LeastRequest { choices: 2 },
        (Ok(LbPolicy::LeastRequest), Some(LbConfig::LeastRequestLbConfig(mut config))) => {
            cx.at("least_request_lb_config", |cx| {
                let choices = config.choice_count.take().map_or(2, |count| count.value);
                slow = old_slow_start(cx, config.slow_start_config.take());
                cx.rest(&config);
                least_request(cx, choices)
            })
        }
        (Ok(LbPolicy::RingHash), None) => {
            LoadBalancing::RingHash { size_min: RING_SIZE_MIN, size_max: RING_SIZE_MAX }
        }
        (Ok(LbPolicy::RingHash), Some(LbConfig::RingHashLbConfig(mut config))) => {
            cx.at("ring_hash_lb_config", |cx| {
                let size_min = config.minimum_ring_size.take().map_or(RING_SIZE_MIN, |size| size.value);
                let size_max = config.maximum_ring_size.take().map_or(RING_SIZE_MAX, |size| size.value);
                cx.rest(&config);
                LoadBalancing::RingHash { size_min, size_max }
            })
        }
        (Ok(LbPolicy::Maglev), None) => LoadBalancing::Maglev { table_size: MAGLEV_SIZE },
        (Ok(LbPolicy::Maglev), Some(LbConfig::MaglevLbConfig(config))) => {
            LoadBalancing::Maglev { table_size: config.table_size.map_or(MAGLEV_SIZE, |size| size.value) }
        }
        (Ok(_), Some(_)) => {
            cx.refuse_at("lb_policy", "does not go with the lb_config given");
            LoadBalancing::default()
        }
        _ => {
            cx.refuse_at(
                "lb_policy",
                "is not supported; supported: ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH, MAGLEV",
            );
            LoadBalancing::default()
        }
    };
    Balancing { slow_start: slow, ..policy.into() }
}

/// The same message under another name.
fn old_slow_start(
    cx: &mut Context,
    config: Option<pb::cluster::cluster::SlowStartConfig>,
) -> Option<SlowStart> {
    let same = config.map(|old| pb::lb::common::v3::SlowStartConfig {
        slow_start_window: old.slow_start_window,
        aggression: old.aggression,
        min_weight_percent: old.min_weight_percent,
    });
    cx.some("slow_start_config", same, slow_start).flatten()
}

/// `None` without a window.
fn slow_start(cx: &mut Context, mut m: pb::lb::common::v3::SlowStartConfig) -> Option<SlowStart> {
    let window = cx.duration("slow_start_window", m.slow_start_window.take()).unwrap_or_default();
    let aggression = cx.some("aggression", m.aggression.take(), |cx, mut aggression| {
        ignored!(cx, aggression, runtime_key);
        aggression.default_value
    });
    let slow = SlowStart {
        window,
        aggression: aggression.unwrap_or(1.0),
        min_percent: m.min_weight_percent.take().map_or(SLOW_MIN_PERCENT, |share| share.value),
    };
    if slow.aggression.is_nan() || slow.aggression <= 0.0 {
        cx.refuse_at("aggression.default_value", format!("got {}, want more than 0", slow.aggression));
    }
    if !(0.0..=100.0).contains(&slow.min_percent) {
        cx.refuse_at("min_weight_percent", format!("got {}, want 0 to 100", slow.min_percent));
    }
    cx.rest(&m);
    (!window.is_zero()).then_some(slow)
}
