//! Headers of the PROXY protocol, whole and cut short.

use pillion_net::proxy_protocol::{Parsed, V2_BYTES_MAX, parse};

/// What a header says stays the same whatever follows it, and nothing shorter is one.
pub(crate) fn attempt(input: &[u8]) -> Result<(), String> {
    let parsed = parse(input);
    match parsed {
        Parsed::Header(header) => {
            if header.bytes > input.len() || header.bytes > V2_BYTES_MAX {
                return Err(format!("{} bytes of {}", header.bytes, input.len()));
            }
            let alone = &input[..header.bytes];
            if parse(alone) != parsed || parse(&[alone, b"x"].concat()) != parsed {
                return Err("what follows the header changes it".to_owned());
            }
            if !matches!(parse(&alone[..header.bytes - 1]), Parsed::Partial(_)) {
                return Err("less than the header is not a part of it".to_owned());
            }
            Ok(())
        }
        Parsed::Partial(_) if input.len() >= V2_BYTES_MAX => Err("it never ends".to_owned()),
        Parsed::Partial(_) | Parsed::Absent | Parsed::Wrong(..) => Ok(()),
    }
}
