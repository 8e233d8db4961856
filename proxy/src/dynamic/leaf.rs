//! Resources that are asked for by name, and what is known of each.

use std::time::SystemTime;

use bytes::Bytes;
use pillion_model::endpoint::LoadAssignment;
use pillion_model::route::RouteConfiguration;
use pillion_xds::decode::{FileSource, Secret, Source};
use tokio::time::Instant;

/// A type and what the model calls a resource of it.
pub(super) type Key = (&'static str, String);

/// Routes, endpoints or a secret: what is asked for by name.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) name: String,
    pub(super) source: Source,
    pub(super) value: Option<LeafValue>,
    /// New routes, and how long they wait at most.
    pub(super) staged: Option<(Box<RouteConfiguration>, Instant)>,
    pub(super) body: Bytes,
    pub(super) version: String,
    pub(super) updated: Option<SystemTime>,
    pub(super) counts: Counts,
    pub(super) error: Option<Refusal>,
    /// There was an answer, also that there is none.
    pub(super) answered: bool,
    pub(super) deadline: Option<Instant>,
}

#[derive(Debug)]
pub(super) enum LeafValue {
    Routes(Box<RouteConfiguration>),
    Endpoints(LoadAssignment),
    Secret(Secret),
}

/// What was refused last, and why.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) at: SystemTime,
}

/// Statistics of one subscription, as Envoy counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) update_attempt: u64,
    pub(super) update_success: u64,
    pub(super) update_rejected: u64,
    pub(super) update_failure: u64,
    pub(super) init_fetch_timeout: u64,
    pub(super) added: u64,
    pub(super) modified: u64,
    pub(super) removed: u64,
}

/// Who has said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin<'a> {
    Ads,
    File(&'a FileSource),
}

impl Leaf {
    pub(super) fn new(name: String, source: Source, deadline: Option<Instant>) -> Self {
        Self {
            name,
            source,
            value: None,
            staged: None,
            body: Bytes::new(),
            version: String::new(),
            updated: None,
            counts: Counts::default(),
            error: None,
            answered: false,
            deadline,
        }
    }

    pub(super) fn is_from(&self, origin: Origin<'_>) -> bool {
        origin.is(&self.source)
    }

    pub(super) fn accept(&mut self, version: &str, body: &Bytes) {
        self.answered = true;
        self.error = None;
        self.counts.update_attempt += 1;
        self.counts.update_success += 1;
        if self.body != *body {
            version.clone_into(&mut self.version);
            self.body = body.clone();
            self.updated = Some(SystemTime::now());
        }
    }
}

impl Counts {
    pub(super) fn fail(&mut self) {
        self.update_attempt += 1;
        self.update_failure += 1;
    }
}

impl Origin<'_> {
    pub(super) fn is(self, source: &Source) -> bool {
        match (self, source) {
            (Origin::Ads, Source::Ads | Source::Same) => true,
            (Origin::File(file), Source::File(of)) => file == of,
            _ => false,
        }
    }

    pub(super) fn source(self) -> Source {
        match self {
            Origin::Ads => Source::Ads,
            Origin::File(file) => Source::File(file.clone()),
        }
    }
}
