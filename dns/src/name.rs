//! Names as they are looked up: lower-case text, labels apart.

use std::fmt;
use std::net::IpAddr;

use hickory_proto::rr::Name;

/// A name asked for, in lower case, without the final dot.
///
/// Bytes that no host name has (a dot within a label, controls, what is not ASCII) appear as `\ddd`,
/// so that such a name equals no name of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AskedName {
    text: String,
    wire: Name,
}

impl AskedName {
    /// The text, empty for the root.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands before `zone`: `Some("")` for the zone itself, `None` for names outside.
    pub fn within<'a>(&'a self, zone: &str) -> Option<&'a str> {
        let rest = self.text.strip_suffix(zone)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
    }

    /// The address whose reverse name this is: `5.0.0.10.in-addr.arpa`. Only the one way to write it
    /// counts: not `05`, and not a part of an address.
    pub fn reverse_address(&self) -> Option<IpAddr> {
        let net = self.wire.parse_arpa_name().ok()?;
        (net.prefix_len() == net.max_prefix_len() && Name::from(net.addr()) == self.wire).then(|| net.addr())
    }

    /// The name in the case asked.
    pub fn as_asked(&self) -> &Name {
        &self.wire
    }
}

impl From<&Name> for AskedName {
    fn from(name: &Name) -> Self {
        let mut text = String::with_capacity(name.len());
        for label in name {
            push_label(&mut text, label);
        }
        Self { text, wire: name.clone() }
    }
}

impl fmt::Display for AskedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.text)
    }
}

/// A name of ours for a record, from text with or without the final dot; `None` where DNS has no
/// room for it (63 bytes a label, 255 in all).
pub fn wire_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn push_label(text: &mut String, label: &[u8]) {
    use fmt::Write as _;
    if !text.is_empty() {
        text.push('.');
    }
    for byte in label {
        match byte.to_ascii_lowercase() {
            plain @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*') => text.push(char::from(plain)),
            other => {
                // Writing to a String does not fail.
                let _ = write!(text, "\\{other:03}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> AskedName {
        AskedName::from(&wire_name(text).expect("a name"))
    }

    #[test]
    fn names_are_within_zones_at_label_borders() {
        for (name, zone, want) in [
            ("Orders.Shop.Mesh.Internal.", "mesh.internal", Some("orders.shop")),
            ("mesh.internal", "mesh.internal", Some("")),
            ("othermesh.internal", "mesh.internal", None),
            ("internal", "mesh.internal", None),
            (".", "mesh.internal", None),
        ] {
            assert_eq!(asked(name).within(zone), want, "{name}");
        }
    }

    #[test]
    fn bytes_of_no_host_name_are_told_apart() {
        let name = Name::from_labels([&b"a.b"[..], b"\xffX"]).expect("a name");
        assert_eq!(AskedName::from(&name).as_str(), "a\\046b.\\255x");
    }

    #[test]
    fn reverse_names_are_read_exactly() {
        for (name, want) in [
            ("5.0.0.10.in-addr.arpa", Some("10.0.0.5")),
            ("5.0.0.10.IN-ADDR.ARPA", Some("10.0.0.5")),
            ("05.0.0.10.in-addr.arpa", None),
            ("0.0.10.in-addr.arpa", None),
            ("1.5.0.0.10.in-addr.arpa", None),
            ("300.0.0.10.in-addr.arpa", None),
            ("in-addr.arpa", None),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", Some("2001:db8::1")),
            ("1.0.ip6.arpa", None),
            ("g.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", None),
        ] {
            let found = asked(name).reverse_address();
            assert_eq!(found.map(|address| address.to_string()).as_deref(), want, "{name}");
        }
    }
}
