//! Instances as the store has them, read: one after the other, or all of a store on all processors.

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use pillion_model::instance::Instance;
use pillion_model::name::{InstanceId, ServiceName};

use super::record::{Stored, parse_instance};
use super::table::Known;
use crate::store::{Entry, Key, StoreError};

/// What stands under an instance's key.
pub(super) struct ReadInstance {
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    pub(super) known: Known,
    /// The replica that hears it; empty: nobody does.
    pub(super) holder: String,
}

impl ReadInstance {
    /// Reads a value. What is the same in `alike` is shared with it.
    ///
    /// # Errors
    ///
    /// What is not understood.
    pub(super) fn new(
        service: ServiceName,
        id: InstanceId,
        value: &[u8],
        alike: Option<&Instance>,
    ) -> Result<Self, String> {
        let stored: Stored = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        Ok(match stored {
            Stored::Instance(mut record) => {
                let holder = std::mem::take(&mut record.holder);
                let mut instance = record.instance(service, id);
                if let Some(alike) = alike {
                    instance.share_with(alike);
                }
                let (service, id) = (instance.service.clone(), instance.id.clone());
                Self { service, id, known: Known::Present(Arc::new(instance)), holder }
            }
            Stored::Gone(gone) => {
                Self { service, id, known: Known::Gone(Box::new(gone)), holder: String::new() }
            }
        })
    }
}

/// Each with the revision that wrote it, in the order of their keys; or the first that is not understood.
type Part = Result<Vec<(u64, ReadInstance)>, StoreError>;

/// Reads all instances of a store, in parts of their order.
pub(super) fn read_instances(entries: Vec<(Key, Entry)>) -> Vec<Part> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = entries.len().div_ceil(threads).max(1);
    let mut entries = entries.into_iter();
    thread::scope(|scope| {
        let mut reading = Vec::new();
        while entries.len() > 0 {
            let part: Vec<_> = entries.by_ref().take(share).collect();
            reading.push(scope.spawn(|| read_part(part)));
        }
        reading.into_iter().map(|part| part.join().expect("reading does not panic")).collect()
    })
}

fn read_part(entries: Vec<(Key, Entry)>) -> Part {
    let mut alike: Option<Arc<Instance>> = None;
    let mut read = Vec::with_capacity(entries.len());
    for (key, Entry { revision, value }) in entries {
        let one = match parse_instance(&key.name) {
            Some((service, id)) => ReadInstance::new(service, id, &value, alike.as_deref()),
            None => Err(format!("`{}` is not a name", key.name)),
        };
        let one = one.map_err(|detail| StoreError::Unreadable { key, detail })?;
        if let Known::Present(instance) = &one.known {
            alike = Some(Arc::clone(instance));
        }
        read.push((revision, one));
    }
    Ok(read)
}
