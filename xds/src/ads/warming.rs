//! Which endpoints a cluster waits for before it is used.

use prost::Message;

/// The two fields of `envoy.config.cluster.v3.Cluster` that name the endpoints; the rest of a
/// cluster is skipped, not decoded.
#[derive(Clone, PartialEq, Message)]
struct ClusterNames {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    kind: i32,
    #[prost(message, optional, tag = "3")]
    eds: Option<EdsNames>,
}

#[derive(Clone, PartialEq, Message)]
struct EdsNames {
    #[prost(string, tag = "2")]
    service_name: String,
}

/// Value of `Cluster.DiscoveryType.EDS`.
const EDS: i32 = 3;

/// Name of the `ClusterLoadAssignment` that an encoded cluster of type EDS asks for.
pub(super) fn endpoints_of(cluster: &[u8]) -> Option<String> {
    let names = ClusterNames::decode(cluster).ok().filter(|names| names.kind == EDS)?;
    Some(names.eds.map(|eds| eds.service_name).filter(|name| !name.is_empty()).unwrap_or(names.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::cluster::v3::cluster::{
        ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
    };

    #[test]
    fn only_eds_clusters_wait_and_a_service_name_wins_over_the_cluster_name() {
        let cluster = |kind: DiscoveryType, service_name: &str| Cluster {
            name: "a".into(),
            alt_stat_name: "skipped".into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
            eds_cluster_config: Some(EdsClusterConfig {
                eds_config: None,
                service_name: service_name.into(),
            }),
            ..Cluster::default()
        };
        for (kind, service_name, want) in [
            (DiscoveryType::Eds, "", Some("a")),
            (DiscoveryType::Eds, "b", Some("b")),
            (DiscoveryType::Static, "b", None),
        ] {
            let bytes = cluster(kind, service_name).encode_to_vec();
            assert_eq!(endpoints_of(&bytes).as_deref(), want, "{kind:?} {service_name:?}");
        }
        assert_eq!(endpoints_of(&[0xff]), None, "not a cluster");
    }
}
