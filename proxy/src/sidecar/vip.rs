//! Virtual addresses: each sidecar claims a /16 of 127.64.0.0/10 for itself and gives every service
//! the address with the service's index in it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};

use pillion_model::name::vip;

/// A claimed slot: 127.(64+slot).0.0/16 belongs to this process while the value lives.
#[derive(Debug)]
pub(super) struct Slot {
    slot: u8,
    /// Held open: the exclusive bind is the claim.
    _claim: TcpListener,
}

/// All slots of this network namespace are taken.
#[derive(Debug, thiserror::Error)]
#[error(
    "no virtual address range is left: all {SLOTS} ranges of 127.64.0.0/10 are claimed by other sidecars \
     in this network namespace (last attempt: {source}); stop one, or reach services through the outbound port"
)]
pub(super) struct NoSlot {
    source: io::Error,
}

impl Slot {
    /// Claims the first free slot.
    ///
    /// # Errors
    ///
    /// [`NoSlot`] when none is left.
    pub(super) fn claim() -> Result<Self, NoSlot> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for slot in 0..SLOTS {
            // An exclusive bind: TcpListener sets SO_REUSEADDR, which does not let two listeners
            // share an address on Linux.
            match TcpListener::bind((claim_address(slot), CLAIM_PORT)) {
                Ok(claim) => return Ok(Self { slot, _claim: claim }),
                Err(error) => last = error,
            }
        }
        Err(NoSlot { source: last })
    }

    /// The virtual address of the service with `index`.
    pub(super) fn address(&self, index: u16) -> Ipv4Addr {
        vip(self.slot, index)
    }

    /// The index that `address` stands for, if it is in this slot.
    pub(super) fn index(&self, address: IpAddr) -> Option<u16> {
        match address {
            IpAddr::V4(address) => {
                let [a, b, hi, lo] = address.octets();
                (a == 127 && b == 64 + self.slot).then(|| u16::from_be_bytes([hi, lo]))
            }
            IpAddr::V6(_) => None,
        }
    }

    /// The range as people write it.
    pub(super) fn range(&self) -> String {
        format!("127.{}.0.0/16", 64 + u16::from(self.slot))
    }
}

fn claim_address(slot: u8) -> Ipv4Addr {
    vip(slot, CLAIM_INDEX)
}

/// Slots in 127.64.0.0/10.
const SLOTS: u8 = 64;
/// The index whose address holds the claim; the registry never gives it to a service.
const CLAIM_INDEX: u16 = 0xfffe;
/// The port of the claim.
const CLAIM_PORT: u16 = 15001;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sidecars_never_share_a_range() {
        let (first, second) = (Slot::claim().expect("a free slot"), Slot::claim().expect("another"));
        assert_ne!(first.slot, second.slot);
        assert_eq!(first.index(first.address(258).into()), Some(258));
        assert_eq!(first.index(second.address(258).into()), None);
        assert_eq!(first.index("127.0.0.1".parse().expect("valid")), None);
    }
}
