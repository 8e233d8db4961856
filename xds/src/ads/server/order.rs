//! Make before break on one stream: what uses clusters waits for them, and what is gone goes last.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::HOLD;
use super::track::{Track, names};

/// What is remembered between two rounds over the types.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Endpoints of clusters that were announced, and that the client was not told yet: until then it
    /// cannot use the clusters.
    awaited: BTreeSet<String>,
    /// Since when news of listeners and routes waits.
    held_since: Option<Instant>,
}

/// One round over the types in push order.
#[derive(Debug)]
pub(super) struct Round {
    now: Instant,
    /// Listeners and routes were held for [`HOLD`]: they wait no longer.
    is_over: bool,
    /// Clusters or endpoints are on their way.
    makes: bool,
    /// News of listeners or routes waits.
    holds: bool,
    /// Listeners or routes are on their way, or an older version of them stays in use.
    moves: bool,
    /// Until when removals wait for answers to listeners and routes.
    answers_by: Option<Instant>,
}

impl Order {
    /// Clusters were announced that wait for these endpoints.
    pub(super) fn announced(&mut self, endpoints: impl IntoIterator<Item = String>) {
        self.awaited.extend(endpoints);
    }

    /// The client was told of endpoints, or of the end of clusters.
    pub(super) fn told<'a>(&mut self, all: impl IntoIterator<Item = &'a str>) {
        for name in all {
            self.awaited.remove(name);
        }
    }

    /// Clusters were refused: the client will not ask for the endpoints of those that `message` names.
    pub(super) fn refused(&mut self, message: &str) {
        self.awaited.retain(|name| !names(message, name));
    }

    pub(super) fn begin(&self, now: Instant) -> Round {
        Round {
            now,
            is_over: self.held_since.is_some_and(|since| since + HOLD <= now),
            makes: !self.awaited.is_empty(),
            holds: false,
            moves: false,
            answers_by: None,
        }
    }

    /// Ends a round in which nothing was sent but removals; when to begin another one although nothing
    /// happened, and whether what is gone may be taken away now.
    pub(super) fn end(&mut self, round: &Round, is_something_gone: bool) -> (Option<Instant>, bool) {
        if round.is_over {
            self.awaited.clear(); // given up: it shall not delay the next change as well
        }
        let held_since = round.holds.then(|| self.held_since.unwrap_or(round.now));
        self.held_since = held_since;
        let answers_by = round.answers_by.filter(|_| is_something_gone);
        let wake_at = [held_since.map(|since| since + HOLD), answers_by].into_iter().flatten().min();
        (wake_at, !round.holds && !round.moves)
    }
}

impl Round {
    /// Whether the news of a type has to wait.
    pub(super) fn holds(&self, track: &Track) -> bool {
        track.is_user() && self.makes && !self.is_over
    }

    /// Goes on to the next type.
    pub(super) fn pass(&mut self, track: &Track) {
        if track.is_used() {
            self.makes |= track.is_waiting();
        }
        if !track.is_user() {
            return;
        }
        self.holds |= track.dirty && self.holds(track);
        // Who refused a route goes on with the one before, and with its clusters.
        self.moves |= track.is_refused();
        if let Some(until) = track.sent_at().map(|at| at + HOLD).filter(|until| *until > self.now) {
            self.moves = true;
            self.answers_by = Some(self.answers_by.map_or(until, |by| by.min(until)));
        }
    }
}
