//! Who has what a bootstrap does not hold itself.

use std::collections::BTreeMap;
use std::mem::take;

use crate::ads::Variant;
use crate::decode::{ConfigSource, Context, Reference, Secret, Source, ignored, messages};
use crate::pb;
use crate::type_url::label;
use pb::core::api_config_source::ApiType;
use pb::core::grpc_service::TargetSpecifier;

/// Envoy: `dynamic_resources`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dynamic {
    /// The aggregated discovery service.
    pub ads: Option<Ads>,
    /// Who has clusters.
    pub clusters: Option<ConfigSource>,
    /// Who has listeners.
    pub listeners: Option<ConfigSource>,
}

/// An aggregated discovery service.
#[derive(Clone, Debug, PartialEq)]
pub struct Ads {
    /// The static cluster that serves it.
    pub cluster: String,
    /// `:authority` of the stream; empty: the cluster's name.
    pub authority: String,
    /// What is spoken.
    pub variant: Variant,
}

pub(super) fn dynamic(cx: &mut Context, mut m: pb::bootstrap::bootstrap::DynamicResources) -> Dynamic {
    let ads = cx.some("ads_config", m.ads_config.take(), ads);
    let clusters = cx.some("cds_config", m.cds_config.take(), messages::source);
    let listeners = cx.some("lds_config", m.lds_config.take(), messages::source);
    cx.rest(&m);
    let dynamic = Dynamic { ads, clusters, listeners };
    for (field, source) in [("cds_config", &dynamic.clusters), ("lds_config", &dynamic.listeners)] {
        match source.as_ref().map(|source| &source.source) {
            Some(Source::Ads) if dynamic.ads.is_none() => {
                cx.refuse_at(field, "`ads` needs ads_config beside it");
            }
            Some(Source::Same) => {
                cx.refuse_at(field, "`self` is nobody here; want ads or path_config_source")
            }
            _ => {}
        }
    }
    dynamic
}

fn ads(cx: &mut Context, mut m: pb::core::ApiConfigSource) -> Ads {
    ignored!(cx, m, rate_limit_settings, request_timeout);
    // It is said once a stream in any case.
    m.set_node_on_first_message_only = false;
    let variant = match ApiType::try_from(take(&mut m.api_type)) {
        Ok(ApiType::Grpc) => Variant::Sotw,
        Ok(ApiType::DeltaGrpc) => Variant::Delta,
        _ => {
            cx.refuse_at("api_type", "is not supported; supported: GRPC, DELTA_GRPC");
            Variant::Delta
        }
    };
    if take(&mut m.transport_api_version) != pb::core::ApiVersion::V3 as i32 {
        cx.refuse_at("transport_api_version", "want V3");
    }
    let services = take(&mut m.grpc_services);
    if services.len() != 1 {
        cx.refuse_at("grpc_services", format!("has {} services, want one", services.len()));
    }
    let mut services = cx.each("grpc_services", services, service);
    cx.rest(&m);
    let (cluster, authority) = if services.is_empty() { Default::default() } else { services.swap_remove(0) };
    Ads { cluster, authority, variant }
}

/// Name of the cluster, and authority.
fn service(cx: &mut Context, mut m: pb::core::GrpcService) -> (String, String) {
    ignored!(cx, m, timeout, retry_policy);
    let named = match m.target_specifier.take() {
        Some(TargetSpecifier::EnvoyGrpc(mut envoy)) => cx.at("envoy_grpc", |cx| {
            ignored!(cx, envoy, retry_policy, max_receive_message_length);
            let named = (take(&mut envoy.cluster_name), take(&mut envoy.authority));
            if named.0.is_empty() {
                cx.missing("cluster_name");
            }
            cx.rest(&envoy);
            named
        }),
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            cx.refuse_at("google_grpc", "is not supported; supported: envoy_grpc");
            Default::default()
        }
        None => {
            cx.missing("envoy_grpc");
            Default::default()
        }
    };
    cx.rest(&m);
    named
}

/// Takes what has just been read names; refuses what nobody has.
pub(super) fn check_references(
    cx: &mut Context,
    dynamic: &Dynamic,
    secrets: &BTreeMap<String, Secret>,
) -> Vec<Reference> {
    let references = cx.take_references();
    for reference in &references {
        let (name, what) = (&reference.name, label(reference.type_url));
        match reference.from.as_ref().map(|from| &from.source) {
            Some(Source::Ads) if dynamic.ads.is_none() => {
                cx.refuse(format!("{what} `{name}` comes by ads, which needs dynamic_resources.ads_config"));
            }
            Some(Source::Same) => {
                cx.refuse(format!("{what} `{name}` comes by `self`, which is nobody in a file"));
            }
            None if !secrets.contains_key(name) => {
                cx.refuse(format!("{what} `{name}` is none of static_resources.secrets"));
            }
            _ => {}
        }
    }
    references
}
