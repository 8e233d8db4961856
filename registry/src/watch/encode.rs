//! Events as JSON, each encoded once.

use std::sync::Arc;

use bytes::Bytes;
use pillion_model::name::ServiceName;
use serde::Serialize;

use crate::api::InstanceView;
use crate::catalog::CatalogService;

#[derive(Serialize)]
struct Whole<'a> {
    namespace: &'a str,
    service: &'a str,
    revision: u64,
    instances: Vec<InstanceView>,
}

#[derive(Serialize)]
struct Changed<'a> {
    namespace: &'a str,
    service: &'a str,
    /// The revision of the state this change applies to.
    since: u64,
    revision: u64,
    /// New or changed.
    instances: Vec<InstanceView>,
    /// Ids of those that left.
    removed: Vec<&'a str>,
}

#[derive(Serialize)]
struct Removed<'a> {
    namespace: &'a str,
    service: &'a str,
    revision: u64,
}

pub(super) fn whole(name: &ServiceName, service: &CatalogService) -> Bytes {
    json(&Whole {
        namespace: name.namespace(),
        service: name.service(),
        revision: service.revision,
        instances: service.instances.values().map(|instance| InstanceView::from(&**instance)).collect(),
    })
}

pub(super) fn change(name: &ServiceName, since: u64, last: &CatalogService, next: &CatalogService) -> Bytes {
    let is_new = |(id, instance): &(&_, &Arc<_>)| {
        last.instances.get(*id).is_none_or(|last| !Arc::ptr_eq(last, instance))
    };
    let instances = next.instances.iter().filter(is_new);
    let removed = last.instances.keys().filter(|id| !next.instances.contains_key(id));
    json(&Changed {
        namespace: name.namespace(),
        service: name.service(),
        since,
        revision: next.revision,
        instances: instances.map(|(_, instance)| InstanceView::from(&**instance)).collect(),
        removed: removed.map(|id| id.as_str()).collect(),
    })
}

pub(super) fn removed(name: &ServiceName, revision: u64) -> Bytes {
    json(&Removed { namespace: name.namespace(), service: name.service(), revision })
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("only texts, numbers, lists and maps with text keys").into()
}
