//! Where the authority's keys are.

use std::sync::Arc;

use super::files::Given;
use super::seal::Seal;

/// Where the keys of roots are.
#[derive(Clone)]
pub(super) enum Keys {
    /// In the store, as they are.
    Plain,
    /// In the store, sealed.
    Sealed(Arc<Seal>),
    /// In files, which others look after.
    Files(Arc<Given>),
}

impl Keys {
    pub(super) fn seal(&self) -> Option<&Seal> {
        match self {
            Self::Sealed(seal) => Some(seal),
            _ => None,
        }
    }
}
