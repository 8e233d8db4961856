//! The open connections of one server, and which of them nobody would miss.
//!
//! A connection is busy while one of its requests is answered, streams included, and idle otherwise. Where
//! there are too many, the one that never asked anything goes first, then the one that has been idle for
//! longest. Where all are busy and one client has more than half of them, its last one goes; else who is
//! busy is left alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

use super::signal::{Asked, Signal};
use crate::revoked::Revoked;
use crate::tls::PeerCertificate;

/// The open connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    held: Arc<Mutex<Held>>,
    max: usize,
}

#[derive(Default)]
struct Held {
    open: HashMap<u64, Open>,
    /// By who goes first: whether it has asked anything, and since when it is idle.
    idle: BTreeMap<(bool, u64), u64>,
    by_client: HashMap<IpAddr, BTreeSet<u64>>,
    next: u64,
}

struct Open {
    signal: Arc<Signal>,
    peer: Option<Arc<PeerCertificate>>,
    client: IpAddr,
    /// Requests that are being answered.
    busy: usize,
    asked: bool,
    /// Where it stands among the idle.
    since: u64,
}

impl Connections {
    pub(super) fn new(max: usize) -> Self {
        Self { held: Arc::default(), max }
    }

    /// Takes a connection in. Where that is one too many, an idle one must go, or one of a client that has
    /// more than its share; `None` if there is neither.
    pub(super) fn enter(&self, from: IpAddr) -> Option<Place> {
        let client = client_of(from);
        let mut held = self.lock();
        if held.open.len() >= self.max && !held.shed() && !held.share(client, self.max / SHARE) {
            return None;
        }
        let id = held.tick();
        let signal = Arc::new(Signal::default());
        held.open.insert(
            id,
            Open { signal: Arc::clone(&signal), peer: None, client, busy: 0, asked: false, since: id },
        );
        held.idle.insert((false, id), id);
        held.by_client.entry(client).or_default().insert(id);
        drop(held);
        Some(Place { connections: self.clone(), id, signal })
    }

    /// Asks something of everybody.
    pub(super) fn ask_all(&self, what: Asked) {
        let signals: Vec<_> = self.lock().open.values().map(|open| Arc::clone(&open.signal)).collect();
        signals.iter().for_each(|signal| signal.ask(what));
    }

    /// Cuts the connections of peers that are trusted no more.
    pub(super) fn cut_revoked(&self, revoked: &Revoked) {
        let mut held = self.lock();
        let is_revoked = |open: &Open| open.peer.as_ref().and_then(|peer| revoked.names(peer)).is_some();
        let cut: Vec<u64> =
            held.open.iter().filter(|(_, open)| is_revoked(open)).map(|(id, _)| *id).collect();
        for id in &cut {
            held.cut(*id);
        }
        if !cut.is_empty() {
            tracing::warn!(connections = cut.len(), "cut connections of revoked identities");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether there was an idle one to cut.
    fn shed(&mut self) -> bool {
        let Some((_, id)) = self.idle.pop_first() else { return false };
        self.cut(id);
        true
    }

    /// Whether another client had more than `share`, and lost its last connection.
    fn share(&mut self, newcomer: IpAddr, share: usize) -> bool {
        let has_most = self.by_client.iter().max_by_key(|(_, open)| open.len());
        let Some((client, open)) = has_most.filter(|(_, open)| open.len() > share) else { return false };
        let last = open.last().copied().filter(|_| *client != newcomer);
        if let Some(id) = last {
            self.cut(id);
        }
        last.is_some()
    }

    fn cut(&mut self, id: u64) {
        if let Some(open) = self.leave(id) {
            open.signal.ask(Asked::Cut);
        }
    }

    fn leave(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        self.idle.remove(&(open.asked, open.since));
        if let Some(others) = self.by_client.get_mut(&open.client) {
            others.remove(&id);
            if others.is_empty() {
                self.by_client.remove(&open.client);
            }
        }
        Some(open)
    }

    fn begin(&mut self, id: u64) {
        let Some(open) = self.open.get_mut(&id) else { return };
        if open.busy == 0 {
            self.idle.remove(&(open.asked, open.since));
        }
        open.busy += 1;
        open.asked = true;
    }

    fn end(&mut self, id: u64) {
        let since = self.tick();
        let Some(open) = self.open.get_mut(&id) else { return };
        open.busy -= 1;
        if open.busy == 0 {
            open.since = since;
            self.idle.insert((true, since), id);
        }
    }
}

/// Who a connection is counted for: its address, of IPv6 the network that one site has to itself.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// One client may have the whole divided by this, where others are turned away.
const SHARE: usize = 2;

/// One connection's place, given back when dropped.
pub(super) struct Place {
    connections: Connections,
    id: u64,
    signal: Arc<Signal>,
}

impl Place {
    /// What is asked of the connection.
    pub(super) fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }

    /// Who the peer is.
    pub(super) fn know(&self, peer: &Arc<PeerCertificate>) {
        if let Some(open) = self.connections.lock().open.get_mut(&self.id) {
            open.peer = Some(Arc::clone(peer));
        }
    }

    /// Whether it has asked anything yet.
    pub(super) fn has_asked(&self) -> bool {
        self.connections.lock().open.get(&self.id).is_some_and(|open| open.asked)
    }

    /// Makes it busy, until what is returned is dropped.
    pub(super) fn begin(&self) -> Busy {
        self.connections.lock().begin(self.id);
        Busy { connections: self.connections.clone(), id: self.id }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().leave(self.id);
    }
}

/// A request that is being answered.
pub(super) struct Busy {
    connections: Connections,
    id: u64,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.connections.lock().end(self.id);
    }
}

/// A response's body; its connection is busy until it has been sent or given up.
pub(super) struct Answering {
    pub(super) body: Body,
    pub(super) _busy: Busy,
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_go_first_and_the_busy_stay() {
        let connections = Connections::new(3);
        let enter = || connections.enter(A);
        let (asked, silent, busy) = (enter().expect("room"), enter().expect("room"), enter().expect("room"));
        drop(asked.begin());
        let request = busy.begin();
        let cut = |place: &Place| place.signal().is_asked(Asked::Cut);
        // Who never asked goes before who asked once, though that one came first.
        let first = enter().expect("an idle one goes");
        assert_eq!([cut(&asked), cut(&silent), cut(&busy)], [false, true, false]);
        let second = first.begin();
        let third = enter().expect("an idle one goes").begin();
        assert_eq!([cut(&asked), cut(&busy), cut(&first)], [true, false, false]);
        drop((asked, silent)); // what was cut is not counted twice
        drop(third);
        let fourth = enter().expect("the third was given back");
        let _busy_too = fourth.begin();
        assert!(enter().is_none(), "everybody is busy");
        drop(request);
        assert!(enter().is_some() && cut(&busy));
        drop((busy, first, fourth, second));
        let held = connections.lock();
        assert_eq!((held.open.len(), held.idle.len(), held.by_client.len()), (0, 0, 0));
    }

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn where_all_are_busy_a_client_with_more_than_half_makes_room_for_others() {
        let connections = Connections::new(4);
        let busy = |from| {
            let place = connections.enter(from)?;
            let request = place.begin();
            Some((place, request))
        };
        let theirs: Vec<_> = (0..4).map(|_| busy(A).expect("room")).collect();
        let cut = || theirs.iter().map(|(place, _)| place.signal().is_asked(Asked::Cut)).collect::<Vec<_>>();
        assert!(busy(A).is_none(), "not for itself");
        let _first = busy(B).expect("it had more than half");
        assert_eq!(cut(), [false, false, false, true], "its last one");
        let _second = busy(B).expect("it still had more than half");
        assert_eq!(cut(), [false, false, true, true]);
        assert!(busy(B).is_none(), "each has half");
        assert!(busy("2001:db8::1".parse().expect("an address")).is_none());
    }

    #[test]
    fn clients_are_told_apart_by_address_and_by_network() {
        for (a, b, same) in [
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("2001:db8::1", "2001:db8::ffff:2", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            let [a, b] = [a, b].map(|text| client_of(text.parse().expect(text)));
            assert_eq!(a == b, same, "{a} {b}");
        }
    }
}
