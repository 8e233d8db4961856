//! A limit on connections that one client cannot use up for all others.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::stats::Stats;

/// The open connections, by client.
#[derive(Clone)]
pub(crate) struct Connections {
    held: Arc<Mutex<Held>>,
    max: usize,
    stats: Arc<Stats>,
}

#[derive(Default)]
struct Held {
    /// In the order in which they came.
    clients: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
    open: usize,
    next: u64,
}

impl Connections {
    pub(crate) fn new(max: usize, stats: Arc<Stats>) -> Self {
        Self { held: Arc::default(), max, stats }
    }

    /// Takes a connection in. Where that makes too many, the client with most loses its oldest.
    pub(crate) fn enter(&self, client: IpAddr) -> Place {
        let client = client.to_canonical();
        let mut held = self.lock();
        let (id, cut) = (held.next, CancellationToken::new());
        held.next += 1;
        held.open += 1;
        held.clients.entry(client).or_default().insert(id, cut.clone());
        if held.open > self.max {
            self.cut_one(&mut held);
        }
        self.stats.connections.add();
        self.stats.connections_open.set(held.open);
        drop(held);
        Place { connections: self.clone(), client, id, cut }
    }

    /// Closes one connection, if there are any.
    pub(crate) fn make_room(&self) {
        self.cut_one(&mut self.lock());
    }

    fn cut_one(&self, held: &mut Held) {
        if held.cut_one() {
            self.stats.connections_cut.add();
            self.stats.connections_open.set(held.open);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Whether there was one.
    fn cut_one(&mut self) -> bool {
        let most = self.clients.iter().max_by_key(|(_, connections)| connections.len());
        let Some((&client, oldest)) = most.and_then(|(client, open)| Some((client, *open.keys().next()?)))
        else {
            return false;
        };
        self.remove(client, oldest).inspect(CancellationToken::cancel).is_some()
    }

    fn remove(&mut self, client: IpAddr, id: u64) -> Option<CancellationToken> {
        let connections = self.clients.get_mut(&client)?;
        let cut = connections.remove(&id)?;
        if connections.is_empty() {
            self.clients.remove(&client);
        }
        self.open -= 1;
        Some(cut)
    }
}

/// One connection's place, given back when dropped.
pub(crate) struct Place {
    connections: Connections,
    client: IpAddr,
    id: u64,
    cut: CancellationToken,
}

impl Place {
    /// Cancelled when the connection must go.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.cut
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self { connections, client, id, .. } = self;
        let mut held = connections.lock();
        if held.remove(*client, *id).is_some() {
            connections.stats.connections_open.set(held.open);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_with_most_connections_loses_its_oldest() {
        let (greedy, modest) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let connections = Connections::new(4, Arc::default());
        let first = connections.enter(modest);
        let greedy: Vec<Place> = (0..4).map(|_| connections.enter(greedy)).collect();
        let cut = |place: &Place| place.cut().is_cancelled();
        assert_eq!(greedy.iter().map(cut).collect::<Vec<_>>(), [true, false, false, false]);
        let second = connections.enter(modest);
        assert!(!cut(&first) && !cut(&second) && cut(&greedy[1]));
        drop((first, greedy));
        assert_eq!(connections.lock().open, 1);
        assert_eq!(connections.lock().clients.len(), 1);
        drop(second);
        connections.make_room();
        assert_eq!(connections.lock().open, 0);
        let stats = &connections.stats;
        assert_eq!(
            (stats.connections.load(), stats.connections_cut.load(), stats.connections_open.load()),
            (6, 2, 0)
        );
    }
}
