//! Domain names as they are looked up: folded to lower case, labels apart.

use std::fmt;

/// A domain name in lower case, without the final dot.
///
/// Bytes that no host name has (a dot within a label, controls, what is not ASCII) appear as `\ddd`,
/// so that such a name equals no name of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// A name of ours, from text. Upper case is folded; a final dot is dropped.
    pub fn new(text: &str) -> Self {
        Self(text.trim_end_matches('.').to_ascii_lowercase())
    }

    /// The text, empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Labels from left to right; none for the root.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.').filter(|label| !label.is_empty())
    }

    /// What stands before `zone`: `Some("")` for the zone itself, `None` for names outside.
    pub fn within<'a>(&'a self, zone: &str) -> Option<&'a str> {
        let rest = self.0.strip_suffix(zone)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
    }

    /// The address whose reverse name this is: `5.0.0.10.in-addr.arpa`.
    pub fn reverse_address(&self) -> Option<std::net::IpAddr> {
        if let Some(rest) = self.within("in-addr.arpa") {
            let mut octets = [0_u8; 4];
            let mut labels = rest.rsplit('.');
            for octet in &mut octets {
                let label = labels.next()?;
                *octet = label.parse().ok()?;
                if octet.to_string() != label {
                    return None; // "01" or "+1"
                }
            }
            return labels.next().is_none().then(|| octets.into());
        }
        let mut nibbles = self.within("ip6.arpa")?.rsplit('.');
        let mut octets = [0_u8; 16];
        for octet in &mut octets {
            *octet = nibble(nibbles.next()?)? << 4 | nibble(nibbles.next()?)?;
        }
        nibbles.next().is_none().then(|| octets.into())
    }

    pub(crate) fn push_label(&mut self, label: &[u8]) {
        use fmt::Write as _;
        if !self.0.is_empty() {
            self.0.push('.');
        }
        for byte in label {
            match byte.to_ascii_lowercase() {
                plain @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*') => self.0.push(char::from(plain)),
                other => {
                    // Writing to a String does not fail.
                    let _ = write!(self.0, "\\{other:03}");
                }
            }
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.0)
    }
}

fn nibble(label: &str) -> Option<u8> {
    match label.as_bytes() {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [letter @ b'a'..=b'f'] => Some(letter - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_within_zones_at_label_borders() {
        for (name, zone, want) in [
            ("Orders.Shop.Mesh.Internal.", "mesh.internal", Some("orders.shop")),
            ("mesh.internal", "mesh.internal", Some("")),
            ("othermesh.internal", "mesh.internal", None),
            ("internal", "mesh.internal", None),
            ("", "mesh.internal", None),
        ] {
            assert_eq!(Name::new(name).within(zone), want, "{name}");
        }
    }

    #[test]
    fn reverse_names_are_read_exactly() {
        for (name, want) in [
            ("5.0.0.10.in-addr.arpa", Some("10.0.0.5")),
            ("05.0.0.10.in-addr.arpa", None),
            ("0.0.10.in-addr.arpa", None),
            ("1.5.0.0.10.in-addr.arpa", None),
            ("300.0.0.10.in-addr.arpa", None),
            ("in-addr.arpa", None),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", Some("2001:db8::1")),
            ("1.0.ip6.arpa", None),
            ("g.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", None),
        ] {
            let found = Name::new(name).reverse_address();
            assert_eq!(found.map(|address| address.to_string()).as_deref(), want, "{name}");
        }
    }
}
