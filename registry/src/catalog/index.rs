//! The index of a service: the lower 16 bits of its virtual address in every sidecar.
//!
//! Stable, unique over all registries on a store, and in quarantine after the service is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use pillion_model::name::ServiceName;

use super::record::{IndexRecord, index_key};
use super::registrar::{RegisterError, unix_seconds};
use super::table::Table;
use crate::store::{Op, Transaction};

/// How long nobody else gets the index of a service that is gone. Longer than programs keep addresses.
const QUARANTINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes an index a service's own, on the condition that nobody else took it meanwhile.
pub(super) fn take_index(transaction: &mut Transaction, table: &Table, index: u16, service: &ServiceName) {
    let key = index_key(index);
    transaction.require(key.clone(), table.quarantined.get(&index).map(|(revision, ..)| *revision));
    transaction.push(Op::put(key, IndexRecord::Of(service.to_string()).encode()));
}

/// What a service that goes leaves of its index: nobody else has it for a while.
pub(super) fn release_index(index: u16, service: &ServiceName) -> Op {
    let until = unix_seconds() + QUARANTINE.as_secs();
    let record = IndexRecord::Quarantined { service: service.to_string(), until };
    Op::put(index_key(index), record.encode())
}

/// A free index: the one the service had last, else where the name hashes to, or the next free place
/// after it. 0 is nobody's, so that no service has a network's own address.
pub(super) fn free_index(
    table: &Table,
    service: &ServiceName,
    taken: &BTreeSet<u16>,
) -> Result<u16, RegisterError> {
    let hash =
        xxhash_rust::xxh3::xxh3_64(format!("{}/{}", service.namespace(), service.service()).as_bytes());
    let own = service.to_string();
    let free = |index: &u16| !table.indexes.contains_key(index) && !taken.contains(index);
    let had = table.quarantined.iter().find(|(index, (_, had_by, _))| *had_by == own && free(index));
    if let Some((index, _)) = had {
        return Ok(*index);
    }
    // Until the keeper ends its quarantine, it tells watchers when its service left.
    let rested = |index: &u16| !table.quarantined.contains_key(index);
    let start = (hash % 0xffff) as u16; // 0 to 65534
    (0..u16::MAX)
        .map(|step| ((u32::from(start) + u32::from(step)) % 0xffff) as u16 + 1)
        .find(|index| free(index) && rested(index))
        .ok_or(RegisterError::Full(
            "all 65535 service indexes are taken, or were until lately; delete services that are not used",
        ))
}
