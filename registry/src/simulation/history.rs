//! What must hold: at every moment, and when the faults are over.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::actor::{Actors, Message, Say, Wish};
use super::faults::Faults;
use super::registry::{Answer, Registries};
use super::watcher::{View, Watchers};

/// How long after an acknowledgement another registry or a watcher may still bring the old news.
const ON_THE_WAY: Duration = Duration::from_secs(2);

/// What was acknowledged.
pub(super) struct History {
    faults: Faults,
    /// By service and id: the highest generation whose departure was acknowledged, and when.
    gone: BTreeMap<(String, String), (u64, Instant)>,
    acknowledged: u64,
    events: u64,
}

impl History {
    pub(super) fn new(faults: Faults) -> Self {
        Self { faults, gone: BTreeMap::new(), acknowledged: 0, events: 0 }
    }

    /// What happened, in numbers.
    pub(super) fn story(&self) -> String {
        format!("{} acknowledgements, {} events, {:?}", self.acknowledged, self.events, self.gone.keys())
    }

    pub(super) fn answered(&mut self, message: &Message, answer: &Answer) {
        if *answer != Answer::Done {
            return;
        }
        self.acknowledged += 1;
        let key = (message.service.service().to_owned(), message.id.to_string());
        match message.say {
            Say::Deregister => {
                let gone = self.gone.entry(key).or_insert_with(|| (0, Instant::now()));
                if message.generation > gone.0 {
                    *gone = (message.generation, Instant::now());
                }
            }
            Say::Register | Say::Beat(_) => {
                if let Some((gone, _)) = self.gone.get(&key) {
                    assert!(message.generation > *gone, "{message:?} was accepted after its departure");
                }
            }
        }
    }

    /// Looks at what every registry shows.
    pub(super) fn look(&self, registries: &Registries) {
        for (n, running) in registries.running() {
            for (service, id, generation) in present(&running.catalog.world()) {
                self.may_be_there(&format!("registry {n}"), &service, &id, generation);
            }
        }
    }

    /// A watcher was told `told` of a service of which it knew `known`.
    pub(super) fn told(
        &mut self,
        service: &str,
        known: Option<&BTreeMap<String, u64>>,
        told: &BTreeMap<String, u64>,
    ) {
        self.events += 1;
        for (id, generation) in told {
            if known.and_then(|known| known.get(id)) != Some(generation) {
                self.may_be_there("a watcher", service, id, *generation);
            }
        }
    }

    fn may_be_there(&self, who: &str, service: &str, id: &str, generation: u64) {
        if let Some((gone, at)) = self.gone.get(&(service.to_owned(), id.to_owned()))
            && at.elapsed() > ON_THE_WAY
        {
            assert!(
                generation > *gone,
                "{who} shows {service}/{id} generation {generation}; {gone} was acknowledged as gone"
            );
        }
    }

    /// Everything is as everybody wished it to be.
    pub(super) fn settled(&self, actors: &Actors, registries: &Registries, watchers: &Watchers) {
        let mut want = View::new();
        for actor in &actors.0 {
            let service = want.entry(actor.service.service().to_owned()).or_default();
            if actor.wish == Wish::Up {
                service.insert(actor.id.to_string(), actor.generation);
            }
        }
        for (n, running) in registries.running() {
            let mut shown: View = want.keys().map(|service| (service.clone(), BTreeMap::new())).collect();
            for (service, id, generation) in present(&running.catalog.world()) {
                shown.entry(service).or_default().insert(id, generation);
            }
            assert_eq!(shown, want, "registry {n}");
        }
        for (n, watcher) in watchers.0.iter().enumerate() {
            let mut shown = watcher.view.clone();
            for service in want.keys() {
                shown.entry(service.clone()).or_default();
            }
            assert_eq!(shown, want, "watcher {n}");
        }
        if self.faults.lost == 0.0 {
            assert_eq!(registries.expired(), 0, "everybody was well");
        }
        assert!(self.acknowledged > 100 && self.events > 10, "something happened");
    }
}

fn present(world: &crate::catalog::World) -> Vec<(String, String, u64)> {
    let services = world.catalog.services.iter();
    let all = services.flat_map(|(service, state)| {
        state
            .instances
            .iter()
            .map(|(id, instance)| (service.service().to_owned(), id.to_string(), instance.generation))
    });
    all.collect()
}
