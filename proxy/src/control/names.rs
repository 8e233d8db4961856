//! Names asked for on demand: how they are spelt, and which are kept when there are too many.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// How long the answer that a name does not exist is given without asking again.
pub(super) const NEGATIVE_TTL: Duration = Duration::from_secs(5);
/// Longest DNS name, as text.
const NAME_BYTES_MAX: usize = 253;
/// Longest label.
const LABEL_BYTES_MAX: usize = 63;

/// The one spelling of a name: lower case, without trailing dot. `None`: never the name of a
/// service (an address, not a host name, or `localhost`).
pub(super) fn normalise(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let is_host = name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label);
    let is_other = name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost");
    (is_host && !is_other).then(|| name.to_ascii_lowercase())
}

/// The names subscribed to, at most `max` beside the pinned ones.
#[derive(Debug)]
pub(super) struct OnDemand {
    entries: HashMap<String, Entry>,
    max: usize,
    /// Grows with every use: a clock for "least recently".
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    last_use: u64,
    is_pinned: bool,
    /// Since when it is known not to exist.
    absent_since: Option<Instant>,
}

impl OnDemand {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), max, uses: 0 }
    }

    /// Marks a name as used. False: it is not kept.
    pub(super) fn touch(&mut self, name: &str) -> bool {
        self.uses += 1;
        let entry = self.entries.get_mut(name);
        entry.map(|entry| entry.last_use = self.uses).is_some()
    }

    /// Keeps a name; gives the one that has to go for it.
    pub(super) fn insert(&mut self, name: &str) -> Option<String> {
        self.uses += 1;
        let entry = Entry { last_use: self.uses, is_pinned: false, absent_since: None };
        self.entries.entry(name.to_owned()).or_insert(entry);
        let evictable = || self.entries.iter().filter(|(have, entry)| !entry.is_pinned && *have != name);
        if evictable().count() < self.max {
            return None;
        }
        // Names that do not exist go first: questions for nonsense displace no service.
        let (victim, _) =
            evictable().min_by_key(|(_, entry)| (entry.absent_since.is_none(), entry.last_use))?;
        let victim = victim.clone();
        self.entries.remove(&victim);
        Some(victim)
    }

    /// Keeps a name for ever.
    pub(super) fn pin(&mut self, name: &str) {
        self.entries.insert(name.to_owned(), Entry { last_use: 0, is_pinned: true, absent_since: None });
    }

    pub(super) fn set_absent(&mut self, name: &str, since: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.absent_since = since;
        }
    }

    /// Since when a name is known not to exist.
    pub(super) fn absent_since(&self, name: &str) -> Option<Instant> {
        self.entries.get(name)?.absent_since
    }

    /// The names that are not pinned, least recently used first.
    pub(super) fn by_use(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.entries.iter().filter(|(_, entry)| !entry.is_pinned).collect();
        names.sort_by_key(|(_, entry)| entry.last_use);
        names.into_iter().map(|(name, _)| name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling_and_addresses_are_none() {
        let long_label = "a".repeat(64);
        let long_name = ["a"; 130].join(".");
        for (name, want) in [
            ("orders.shop.mesh.internal", Some("orders.shop.mesh.internal")),
            ("Orders.Shop.", Some("orders.shop")),
            ("_http._tcp.orders", Some("_http._tcp.orders")),
            ("orders", Some("orders")),
            ("", None),
            (".", None),
            ("a..b", None),
            ("10.0.0.1", None),
            ("::1", None),
            ("LOCALHOST", None),
            ("a b", None),
            ("bücher.de", None),
            (&long_label, None),
            (&long_name, None),
        ] {
            assert_eq!(normalise(name).as_deref(), want, "{name:?}");
        }
    }

    #[test]
    fn the_least_recently_used_goes_but_first_what_does_not_exist() {
        let mut names = OnDemand::new(2);
        names.pin("pinned");
        assert_eq!(names.insert("a"), None);
        assert_eq!(names.insert("b"), None);
        assert!(names.touch("a"));
        assert_eq!(names.insert("c").as_deref(), Some("b"));
        names.set_absent("c", Some(Instant::now()));
        assert_eq!(names.insert("d").as_deref(), Some("c"), "it does not exist");
        assert_eq!(names.by_use(), ["a", "d"]);
        assert!(!names.touch("c") && names.touch("pinned"));
    }
}
