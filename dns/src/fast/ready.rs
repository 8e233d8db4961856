//! Answers as bytes, made when the data change.

use hickory_proto::ProtoError;
use hickory_proto::rr::{Name, RData};
use hickory_proto::serialize::binary::BinEncoder;

use crate::answer::Soa;
use crate::encode::{answer, name_in_full};
use crate::note::Note;
use crate::sample::Weights;

/// The records of a name, each as it stands in messages behind a pointer to the question.
#[derive(Debug)]
pub struct Records {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// The shortest piece, in bytes.
    shortest: usize,
    /// How they are drawn; `None`: all, as they come.
    pub(super) weights: Option<Weights>,
}

/// One record and, with a service location, the address of its target.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    address: u32,
    end: u32,
}

impl Records {
    /// Encodes records, each good for `ttl` seconds. With service locations, the second is the content
    /// of an address record of the target. Weights of another number than records count as none.
    ///
    /// # Errors
    ///
    /// If one has no form in messages.
    pub fn new(
        ttl: u32,
        records: impl IntoIterator<Item = (RData, Option<RData>)>,
        weights: Option<Weights>,
    ) -> Result<Self, ProtoError> {
        let (mut bytes, mut pieces) = (Vec::new(), Vec::new());
        for (record, target) in records {
            let start = position(&bytes);
            // An encoder of its own for each: nothing is to point into another record.
            bytes.extend(encoded(|encoder| answer(&record, ttl, encoder))?);
            let address = position(&bytes);
            if let Some(target) = target {
                // The pointer is to the question; another one is written over it.
                bytes.extend(encoded(|encoder| answer(&target, ttl, encoder))?);
            }
            pieces.push(Piece { start, address, end: position(&bytes) });
        }
        let shortest = pieces.iter().map(|piece| piece.address - piece.start).min().unwrap_or_default();
        let weights = weights.filter(|weights| weights.len() == pieces.len());
        Ok(Self { bytes, pieces, shortest: shortest as usize, weights })
    }

    /// About how much memory this takes.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.pieces.len() * (size_of::<Piece>() + size_of::<u32>() + size_of::<u64>())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// How many records at most have room in so many bytes, unless all of them have.
    pub(super) fn room(&self, bytes: usize) -> usize {
        self.len().min(bytes / self.shortest.max(1))
    }

    /// A record, and the address of its target; none is empty.
    pub(super) fn piece(&self, at: usize) -> (&[u8], &[u8]) {
        let Piece { start, address, end } = self.pieces[at];
        (&self.bytes[start as usize..address as usize], &self.bytes[address as usize..end as usize])
    }
}

/// The SOA record behind a "no" about names of a zone.
#[derive(Debug)]
pub struct Denial {
    /// With room for pointers to the zone's name, which each question has at its end.
    bytes: Vec<u8>,
    pointers: [usize; 3],
    zone_bytes: usize,
}

impl Denial {
    /// Encodes the SOA record of a zone; `None` if its names are not within the zone.
    pub fn new(zone: &Name, soa: &Soa, ttl: u32) -> Option<Self> {
        let zone = name_in_full(zone);
        let (server, mailbox) = (name_in_full(&soa.server), name_in_full(&soa.mailbox));
        let (server, mailbox) = (server.strip_suffix(&zone[..])?, mailbox.strip_suffix(&zone[..])?);
        let record = RData::from(soa.clone());
        let record = encoded(|encoder| answer(&record, ttl, encoder)).ok()?;
        // Pointer, type, class, lifetime; the length changes with the names; five numbers at the end.
        let (front, numbers) = (record.first_chunk::<10>()?, record.last_chunk::<20>()?);
        let length = u16::try_from(server.len() + 2 + mailbox.len() + 2 + numbers.len()).ok()?;
        let mut bytes = [&front[..], &length.to_be_bytes(), server, &[0; 2]].concat();
        let first = bytes.len() - 2;
        bytes.extend_from_slice(mailbox);
        let second = bytes.len();
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(numbers);
        Some(Self { bytes, pointers: [0, first, second], zone_bytes: zone.len() })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the record behind a question whose name ends where `name_end` says.
    pub(super) fn write(&self, out: &mut [u8], name_end: usize) {
        out.copy_from_slice(&self.bytes);
        let pointer = pointer(name_end - self.zone_bytes);
        for at in self.pointers {
            out[at..at + 2].copy_from_slice(&pointer);
        }
    }
}

/// A note as an EDNS option.
#[derive(Debug)]
pub struct Encoded(Vec<u8>);

impl Encoded {
    /// The option.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&Note> for Encoded {
    fn from(note: &Note) -> Self {
        let (code, content) = note.parts();
        let length = u16::try_from(content.len()).unwrap_or_default();
        Self([&code.to_be_bytes()[..], &length.to_be_bytes(), &content].concat())
    }
}

/// To a name earlier in the message, within the first 16 KiB.
pub(super) fn pointer(at: usize) -> [u8; 2] {
    (u16::try_from(at).unwrap_or_default() | 0xc000).to_be_bytes()
}

fn encoded(emit: impl FnOnce(&mut BinEncoder<'_>) -> Result<(), ProtoError>) -> Result<Vec<u8>, ProtoError> {
    let mut bytes = Vec::new();
    emit(&mut BinEncoder::new(&mut bytes))?;
    Ok(bytes)
}

fn position(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
