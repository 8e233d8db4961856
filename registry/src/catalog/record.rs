//! Instances and services as the store keeps them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pillion_model::health::{Administrative, HealthInputs, Lease, Probe, Reported};
use pillion_model::instance::{Instance, InstancePort, Protocol};
use pillion_model::name::{InstanceId, ServiceName};
use serde::{Deserialize, Serialize};

use super::view::ServicePort;
use crate::store::{Key, Space};

/// What the store holds under an instance's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Stored {
    /// It is registered.
    Instance(InstanceRecord),
    /// It has left. Kept for a while, so that late messages do not bring it back.
    Gone(GoneRecord),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GoneRecord {
    pub(super) generation: u64,
    /// It said so, or an operator did: the same generation does not return. Otherwise it was only
    /// silent, and may.
    pub(super) deregistered: bool,
    /// Unix seconds.
    pub(super) at: u64,
    /// The replica that judged its silence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) by: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InstanceRecord {
    pub(super) address: IpAddr,
    pub(super) ports: BTreeMap<String, PortRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) inbound_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metrics_port: Option<u16>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) weight: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) zone: String,
    pub(super) ttl_ms: u64,
    pub(super) generation: u64,
    #[serde(default)]
    pub(super) health: HealthRecord,
    /// The replica that hears it; empty on an engine without replicas.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) holder: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortRecord {
    pub(super) port: u16,
    pub(super) protocol: ProtocolRecord,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) app_address: Option<SocketAddr>,
}

/// Protocols by the words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProtocolRecord(pub(super) Protocol);

impl Serialize for ProtocolRecord {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for ProtocolRecord {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let unknown = || serde::de::Error::custom(format!("`{word}` is not a protocol"));
        Protocol::parse(&word).map(Self).ok_or_else(unknown)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct HealthRecord {
    #[serde(skip_serializing_if = "is_default")]
    pub(super) lease: LeaseWord,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) reported: ReportedWord,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) probe: ProbeWord,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) maintenance: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An enum of the model and its words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $model:ident: $($variant:ident),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) enum $name { #[default] $($variant),+ }

        impl From<$model> for $name {
            fn from(value: $model) -> Self {
                match value { $($model::$variant => Self::$variant),+ }
            }
        }

        impl From<$name> for $model {
            fn from(word: $name) -> Self {
                match word { $($name::$variant => Self::$variant),+ }
            }
        }
    };
}

words!(LeaseWord, Lease: Heard, Late, Silent, Protected);
words!(ReportedWord, Reported: Ready, Starting, NotReady, Draining);
words!(ProbeWord, Probe: Unknown, Passing, Failing);

impl From<HealthInputs> for HealthRecord {
    fn from(inputs: HealthInputs) -> Self {
        Self {
            lease: inputs.lease.into(),
            reported: inputs.reported.into(),
            probe: inputs.probe.into(),
            maintenance: inputs.administrative == Administrative::Maintenance,
        }
    }
}

impl From<HealthRecord> for HealthInputs {
    fn from(record: HealthRecord) -> Self {
        let administrative =
            if record.maintenance { Administrative::Maintenance } else { Administrative::Enabled };
        Self {
            lease: record.lease.into(),
            reported: record.reported.into(),
            probe: record.probe.into(),
            administrative,
        }
    }
}

impl InstanceRecord {
    pub(super) fn new(instance: &Instance, holder: &str) -> Self {
        let port = |port: &InstancePort| PortRecord {
            port: port.port,
            protocol: ProtocolRecord(port.protocol),
            app_address: port.app_address,
        };
        Self {
            address: instance.address,
            ports: instance.ports.iter().map(|(name, p)| (name.clone(), port(p))).collect(),
            inbound_port: instance.inbound_port,
            metrics_port: instance.metrics_port,
            labels: BTreeMap::clone(&instance.labels),
            metadata: BTreeMap::clone(&instance.metadata),
            weight: instance.weight,
            zone: instance.zone.clone(),
            ttl_ms: u64::try_from(instance.ttl.as_millis()).unwrap_or(u64::MAX),
            generation: instance.generation,
            health: instance.health.into(),
            holder: holder.to_owned(),
        }
    }

    pub(super) fn instance(self, service: ServiceName, id: InstanceId) -> Instance {
        let port = |port: PortRecord| InstancePort {
            port: port.port,
            protocol: port.protocol.0,
            app_address: port.app_address,
        };
        Instance {
            service,
            id,
            address: self.address,
            ports: Arc::new(self.ports.into_iter().map(|(name, p)| (name, port(p))).collect()),
            inbound_port: self.inbound_port,
            metrics_port: self.metrics_port,
            labels: self.labels.into(),
            metadata: self.metadata.into(),
            weight: self.weight,
            zone: self.zone,
            ttl: Duration::from_millis(self.ttl_ms),
            generation: self.generation,
            health: self.health.into(),
        }
    }
}

/// What the store holds under a service's key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceRecord {
    /// Stable: the lower 16 bits of the service's virtual address in every sidecar.
    pub(super) index: u16,
    /// Instances have registered it; otherwise only a Service resource names it.
    #[serde(default)]
    pub(super) registered: bool,
    /// As instances declared them.
    #[serde(default)]
    pub(super) ports: BTreeMap<String, PortOfService>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortOfService {
    pub(super) port: u16,
    pub(super) protocol: ProtocolRecord,
}

impl From<PortOfService> for ServicePort {
    fn from(port: PortOfService) -> Self {
        Self { port: port.port, protocol: port.protocol.0 }
    }
}

pub(super) fn instance_key(service: &ServiceName, id: &InstanceId) -> Key {
    Key::new(Space::Instance, format!("{}/{}/{id}", service.namespace(), service.service()))
}

pub(super) fn service_key(service: &ServiceName) -> Key {
    Key::new(Space::Service, format!("{}/{}", service.namespace(), service.service()))
}

/// What the store holds under an index's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IndexRecord {
    /// A service has it.
    Of(String),
    /// A service had it: others get it only later, so that nobody who still remembers its address
    /// reaches another service.
    Quarantined {
        /// Who had it, and may have it again at once.
        service: String,
        /// Unix seconds.
        until: u64,
    },
}

impl IndexRecord {
    pub(super) fn encode(&self) -> String {
        match self {
            Self::Of(service) => service.clone(),
            Self::Quarantined { service, until } => format!("{service} until {until}"),
        }
    }

    pub(super) fn parse(text: &str) -> Self {
        let quarantined = text.split_once(" until ");
        match quarantined.and_then(|(service, until)| Some((service.to_owned(), until.parse().ok()?))) {
            Some((service, until)) => Self::Quarantined { service, until },
            None => Self::Of(text.to_owned()),
        }
    }
}

pub(super) fn index_key(index: u16) -> Key {
    Key::new(Space::Index, index.to_string())
}

pub(super) fn parse_service(name: &str) -> Option<ServiceName> {
    let (namespace, service) = name.split_once('/')?;
    ServiceName::new(namespace, service).ok()
}

pub(super) fn parse_instance(name: &str) -> Option<(ServiceName, InstanceId)> {
    let (service, id) = name.rsplit_once('/')?;
    Some((parse_service(service)?, InstanceId::parse(id).ok()?))
}

pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have text keys and no failing serializers")
}
