//! The grammar of names within the zone.
//!
//! `<service>.<namespace>`, `<service>.<namespace>.svc`, and for namespace `default` `<service>`;
//! before each `all`, `<subset>.sub`, `<instance>.inst`, and `_<port>._tcp` before all but instances.
//! A name that has names below it exists even where it has no records of its own (RFC 8020).

use std::collections::BTreeMap;
use std::sync::Arc;

use pillion_model::instance::Instance;
use pillion_model::name::{DEFAULT_NAMESPACE, InstanceId, RESERVED_LABELS, ServiceName, check_label};

use super::NAME_SERVER;
use crate::catalog::{CatalogService, CatalogView, World};

/// What a name stands for.
pub(super) enum Found {
    /// No such name, and none below it.
    Nothing,
    /// There are names below it only.
    Parent,
    /// The zone itself.
    Apex,
    /// This name server.
    NameServer,
    /// One instance.
    Instance(Arc<Instance>),
    /// Instances of a service, or of a subset.
    Set(Target),
    /// The same on a named port.
    Port(Target, String),
}

/// Whose instances are meant.
pub(super) struct Target {
    pub(super) service: ServiceName,
    /// `None`: nothing registered.
    pub(super) catalog: Option<Arc<CatalogService>>,
    /// Labels an instance must have.
    pub(super) subset: Option<BTreeMap<String, String>>,
}

/// Finds what `rest` (the name without the zone, lower case) stands for.
pub(super) fn find(view: &World, rest: &str) -> Found {
    if rest.is_empty() {
        return Found::Apex;
    }
    if rest == NAME_SERVER {
        return Found::NameServer;
    }
    if ["all", "svc"].contains(&rest) {
        return Found::Parent;
    }
    let (mut labels, mut count) = ([""; LABELS_MAX], 0);
    for label in rest.split('.') {
        let Some(place) = labels.get_mut(count) else { return Found::Nothing };
        (*place, count) = (label, count + 1);
    }
    let kubernetes = labels[count - 1] == "svc"; // `rest` is not empty
    match labels[..count - usize::from(kubernetes)] {
        [namespace] if kubernetes => parent_if(namespace_exists(view, namespace)),
        [one] => match ServiceName::new(DEFAULT_NAMESPACE, one).ok().and_then(|name| known(view, name)) {
            Some(target) => Found::Set(target),
            None => parent_if(namespace_exists(view, one)),
        },
        // Names of the default namespace's services, such as `all.web` and `_http._tcp.web`.
        [ref before @ .., middle, service] if !kubernetes && is_prefix(middle) => {
            let mut prefix = before.to_vec();
            prefix.push(middle);
            of_service(view, DEFAULT_NAMESPACE, service, &prefix)
        }
        [ref prefix @ .., service, namespace] => of_service(view, namespace, service, prefix),
        [] => Found::Nothing,
    }
}

/// Labels of the longest name there is: `_port._tcp.<subset>.sub.<service>.<namespace>.svc`.
const LABELS_MAX: usize = 7;

/// Whether a label can stand before a service but can be none.
fn is_prefix(label: &str) -> bool {
    RESERVED_LABELS.contains(&label) || label.starts_with('_')
}

fn of_service(view: &World, namespace: &str, service: &str, prefix: &[&str]) -> Found {
    let Some(target) = ServiceName::new(namespace, service).ok().and_then(|name| known(view, name)) else {
        return Found::Nothing;
    };
    let subsets = |name: &ServiceName| view.resources.set.service(name).map(|service| &service.subsets);
    match *prefix {
        [] | ["all"] => Found::Set(target),
        ["sub"] => parent_if(subsets(&target.service).is_some_and(|subsets| !subsets.is_empty())),
        ["inst"] => parent_if(target.catalog.is_some_and(|catalog| !catalog.instances.is_empty())),
        ["_tcp"] | ["_tcp", "all"] => parent_if(has_ports(view, &target)),
        [id, "inst"] => match instance(&target, id) {
            Some(instance) => Found::Instance(instance),
            None => Found::Nothing,
        },
        [port, "_tcp"] | [port, "_tcp", "all"] => port_of(view, target, port),
        [ref before @ .., subset, "sub"] => {
            let Some(labels) = subsets(&target.service).and_then(|subsets| subsets.get(subset)).cloned()
            else {
                return Found::Nothing;
            };
            let target = Target { subset: Some(labels), ..target };
            match *before {
                [] => Found::Set(target),
                ["_tcp"] => parent_if(has_ports(view, &target)),
                [port, "_tcp"] => port_of(view, target, port),
                _ => Found::Nothing,
            }
        }
        _ => Found::Nothing,
    }
}

/// The service, if it is registered or has a resource.
fn known(view: &World, service: ServiceName) -> Option<Target> {
    let catalog = view.catalog.services.get(&service).cloned();
    if catalog.is_none() && view.resources.set.service(&service).is_none() {
        return None;
    }
    Some(Target { service, catalog, subset: None })
}

fn instance(target: &Target, id: &str) -> Option<Arc<Instance>> {
    target.catalog.as_ref()?.instances.get(&InstanceId::parse(id).ok()?).cloned()
}

fn port_of(view: &World, target: Target, label: &str) -> Found {
    let Some(port) = label.strip_prefix('_') else { return Found::Nothing };
    let registered = target.catalog.as_ref().is_some_and(|catalog| catalog.ports.contains_key(port));
    let written = view
        .resources
        .set
        .service(&target.service)
        .is_some_and(|service| service.ports.iter().any(|written| written.name == port));
    if registered || written { Found::Port(target, port.to_owned()) } else { Found::Nothing }
}

fn has_ports(view: &World, target: &Target) -> bool {
    target.catalog.as_ref().is_some_and(|catalog| !catalog.ports.is_empty())
        || view.resources.set.service(&target.service).is_some_and(|service| !service.ports.is_empty())
}

fn namespace_exists(view: &World, namespace: &str) -> bool {
    if check_label(namespace).is_err() {
        return false;
    }
    // The first name there can be: labels begin with a letter or digit, and `0` sorts first.
    let Ok(first) = ServiceName::new(namespace, "0") else { return false };
    let in_catalog = |catalog: &CatalogView| {
        catalog.services.range(&first..).next().is_some_and(|(name, _)| name.namespace() == namespace)
    };
    let services = view.resources.set.services();
    in_catalog(&view.catalog)
        || services.range(&first..).next().is_some_and(|(name, _)| name.namespace() == namespace)
}

fn parent_if(exists: bool) -> Found {
    if exists { Found::Parent } else { Found::Nothing }
}
