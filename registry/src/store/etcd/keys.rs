//! Our keys as etcd's.

use bytes::Bytes;

use super::{Key, epoch_key};
use crate::store::UnknownSpace;

/// Everything under one prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let slash = if prefix.ends_with('/') { "" } else { "/" };
        Self { prefix: format!("{prefix}{slash}") }
    }

    /// With a slash at its end.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn encode(&self, key: &Key) -> Bytes {
        format!("{}{key}", self.prefix).into()
    }

    /// The key that names the history.
    pub(super) fn epoch(&self) -> Bytes {
        self.encode(&epoch_key())
    }

    /// The keys that name the histories of meshes whose prefix is the beginning of ours.
    pub(super) fn epochs_above(&self) -> impl Iterator<Item = (&str, Bytes)> {
        let slashes = self.prefix.match_indices('/').map(|(at, _)| &self.prefix[..=at]);
        let above = slashes.filter(|above| above.len() < self.prefix.len());
        above.map(|above| (above, format!("{above}{}", epoch_key()).into()))
    }

    /// From the first key of the prefix to the first after it.
    pub(super) fn all(&self) -> (Bytes, Bytes) {
        let mut end = self.prefix.clone().into_bytes();
        // A prefix ends with a slash, and what follows a slash is a zero.
        end.pop();
        end.push(b'/' + 1);
        (self.prefix.clone().into(), end.into())
    }

    /// `None`: the key that names the history.
    pub(super) fn decode(&self, key: &[u8]) -> Result<Option<Key>, UnknownSpace> {
        let text = String::from_utf8_lossy(key);
        let key: Key = text.strip_prefix(&self.prefix).unwrap_or(&text).parse()?;
        Ok(Some(key).filter(|key| *key != epoch_key()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Space;

    #[test]
    fn a_prefix_may_be_within_another() {
        let above = |prefix: &str| {
            Keys::new(prefix).epochs_above().map(|(above, _)| above.to_owned()).collect::<Vec<_>>()
        };
        assert!(above("pillion/").is_empty());
        assert_eq!(above("pillion/staging/"), ["pillion/"]);
        assert_eq!(above("/a/b/"), ["/", "/a/"]);
        let keys = Keys::new("/a/b/");
        assert_eq!(keys.epochs_above().last().expect("two").1, "/a/meta/epoch");
    }

    #[test]
    fn keys_are_under_the_prefix_and_come_back() {
        for prefix in ["/pillion/", "/pillion", "mesh-a/"] {
            let keys = Keys::new(prefix);
            let key = Key::new(Space::Instance, "shop/orders/i-1");
            let encoded = keys.encode(&key);
            let (first, end) = keys.all();
            assert!(first <= encoded && encoded < end && encoded.starts_with(prefix.as_bytes()), "{prefix}");
            assert_eq!(keys.decode(&encoded).expect("ours"), Some(key));
            assert_eq!(keys.decode(&keys.epoch()).expect("ours"), None);
            assert!(keys.decode(format!("{}new/x", keys.prefix).as_bytes()).is_err());
        }
    }
}
