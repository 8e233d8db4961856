//! An identity from a SPIFFE agent on this machine, instead of the registry. The registry still tells who is
//! revoked.

use std::sync::Arc;
use std::time::Duration;

use pillion_model::name::NodeId;
use pillion_net::grpc::Dialer;
use pillion_net::identity::{Identity, IdentityPublisher};
use pillion_net::revoked::Revoked;
use pillion_net::workload::{Agent, Identities, WorkloadError};
use pillion_xds::mesh::Trust;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::identity::{chain, jittered};
use super::trust::Follow;

/// Follows an agent.
pub(super) struct FromAgent {
    pub(super) node: NodeId,
    pub(super) agent: Agent,
    /// The mesh's DNS zone, of which an agent knows nothing.
    pub(super) zone: String,
}

impl FromAgent {
    /// The identity to begin with: waits for the agent, and for it to know this process, as long as it takes.
    pub(super) async fn first(&self) -> (Arc<Identity>, Identities) {
        let mut wait = WAIT_MIN;
        loop {
            match self.begin().await {
                Ok((identity, stream)) => return (Arc::new(identity), stream),
                Err(error) => warn!("no identity yet, waiting for the agent: {}", chain(&error)),
            }
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    async fn begin(&self) -> Result<(Identity, Identities), WorkloadError> {
        let mut stream = self.agent.follow().await?;
        let identity = stream.next(&self.node, &self.zone).await?;
        identity
            .map(|identity| (identity, stream))
            .ok_or_else(|| WorkloadError::Malformed("it is empty".to_owned()))
    }

    /// Publishes what the agent and the registry tell, for ever.
    pub(super) async fn keep(
        self,
        stream: Identities,
        publisher: IdentityPublisher,
        dialer: Dialer,
        stop: CancellationToken,
    ) {
        let (told, trust) = watch::channel(None);
        let (in_force, version) = watch::channel(String::new());
        let (identity, node) = (publisher.subscribe(), self.node.to_string());
        let follow = Follow { dialer, identity, node, told, in_force: version };
        let keep = self.following(stream, &publisher, trust, in_force);
        stop.run_until_cancelled(Box::pin(async { tokio::join!(keep, follow.run()) })).await;
    }

    async fn following(
        &self,
        stream: Identities,
        publisher: &IdentityPublisher,
        mut trust: watch::Receiver<Option<Trust>>,
        in_force: watch::Sender<String>,
    ) {
        let (mut stream, mut wait) = (Some(stream), WAIT_MIN);
        let mut revoked = Arc::<Revoked>::default();
        loop {
            let next = async {
                match &mut stream {
                    Some(stream) => stream.next(&self.node, &self.zone).await,
                    None => {
                        tokio::time::sleep(jittered(wait)).await;
                        let (identity, begun) = self.begin().await?;
                        stream = Some(begun);
                        Ok(Some(identity))
                    }
                }
            };
            tokio::select! {
                next = next => match next {
                    Ok(Some(identity)) => {
                        wait = WAIT_MIN;
                        let identity = with_revoked(&identity, &revoked).unwrap_or(identity);
                        info!(id = %identity.svid.id, "the agent gave an identity");
                        publisher.publish(Arc::new(identity));
                    }
                    // It may be back in a moment; until then the last identity is good to its end.
                    ended => {
                        let why = ended.err().map_or_else(|| "it ended".to_owned(), |error| chain(&error));
                        warn!(why, "the agent tells no more identities, asking again");
                        (stream, wait) = (None, (wait * 2).min(WAIT_MAX));
                    }
                },
                Ok(()) = trust.changed() => {
                    let Some(told) = trust.borrow_and_update().clone() else { continue };
                    revoked = Arc::new(Revoked::new(&told.revoked));
                    let current = publisher.subscribe().current();
                    if let Some(current) = current.filter(|current| current.bundle.revoked != revoked)
                        && let Some(identity) = with_revoked(&current, &revoked)
                    {
                        info!(revoked = told.revoked.len(), "whom not to trust has changed");
                        publisher.publish(Arc::new(identity));
                    }
                    in_force.send_replace(told.version);
                }
            }
        }
    }
}

fn with_revoked(identity: &Identity, revoked: &Arc<Revoked>) -> Option<Identity> {
    let made = identity.with_trust(&identity.bundle.roots, Arc::clone(revoked));
    made.inspect_err(|error| warn!(error = chain(error), "who is revoked cannot be put into force")).ok()
}

const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(5);
