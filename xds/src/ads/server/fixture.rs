//! A view for tests: types, names and short texts as bodies.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Limits, StreamOptions};
use crate::ads::{Encoded, View};

/// Resources by type and name. Names that start with `hidden` are found, but not part of the
/// wildcard, as another service's clusters are for a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shelf(pub(super) BTreeMap<(&'static str, String), Vec<u8>>);

impl Shelf {
    pub(super) fn of(entries: &[(&'static str, &str, &str)]) -> Self {
        let mut shelf = Self::default();
        entries.iter().for_each(|(url, name, text)| shelf.set(url, name, text.as_bytes().to_vec()));
        shelf
    }

    pub(super) fn set(&mut self, url: &'static str, name: &str, body: Vec<u8>) {
        self.0.insert((url, name.to_owned()), body);
    }

    fn of_type(&self, type_url: &str) -> impl Iterator<Item = (&str, Arc<Encoded>)> {
        self.0.iter().filter(move |((url, _), _)| *url == type_url).map(|((url, name), body)| {
            (name.as_str(), Arc::new(Encoded::new(url, name.clone(), body.clone())))
        })
    }
}

impl View for Shelf {
    fn all(&self, type_url: &str) -> Vec<Arc<Encoded>> {
        self.of_type(type_url).filter(|(name, _)| is_listed(name)).map(|(_, resource)| resource).collect()
    }

    fn find(&self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        self.of_type(type_url).find(|(have, _)| *have == name).map(|(_, resource)| resource)
    }
}

/// Whether the wildcard covers a name.
pub(super) fn is_listed(name: &str) -> bool {
    !name.starts_with("hidden")
}

pub(super) fn options() -> StreamOptions {
    StreamOptions {
        limits: Limits { names: 50, name_bytes: 20, types: 6, response_bytes: 3 << 20 },
        control_plane: "registry-1".into(),
        endpoints_follow_clusters: true,
    }
}
