//! Follows whom the mesh trusts: one stream to a registry, on which each change is told and what is in
//! force here is said back. The stream is opened again whenever it ends.

use std::time::Duration;

use pillion_net::grpc::Dialer;
use pillion_net::identity::{IdentityWatch, Replacements};
use pillion_xds::mesh::identity_client::IdentityClient;
use pillion_xds::mesh::{Following, Trust};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

use super::identity::{chain, jittered};

/// One follower.
pub(super) struct Follow {
    pub(super) dialer: Dialer,
    /// Whose connections end with their certificate.
    pub(super) identity: IdentityWatch,
    /// `<namespace>/<service>/<instance-id>`.
    pub(super) node: String,
    /// What was told last.
    pub(super) told: watch::Sender<Option<Trust>>,
    /// The version in force.
    pub(super) in_force: watch::Receiver<String>,
}

impl Follow {
    /// Follows for ever.
    pub(super) async fn run(mut self) {
        let mut wait = WAIT_MIN;
        loop {
            match self.stream().await {
                Ok(()) => wait = WAIT_MIN,
                Err(reason) => debug!(reason, "the mesh's trust is not followed"),
            }
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    /// One stream, until its end or the next identity.
    async fn stream(&mut self) -> Result<(), String> {
        let status = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
        let slow = |_| "no answer in time".to_owned();
        let mut renewed = Replacements::new(self.identity.clone());
        let channel = timeout(CONNECT_TIMEOUT, self.dialer.connect()).await.map_err(slow)?;
        let channel = channel.map_err(|error| chain(&error))?;
        let (send, receive) = mpsc::channel(QUEUE);
        let version = self.in_force.borrow_and_update().clone();
        let first = send.send(Following { node_id: self.node.clone(), version });
        first.await.map_err(|_| "the stream closed at once".to_owned())?;
        let mut client = IdentityClient::new(channel);
        let opened = timeout(CONNECT_TIMEOUT, client.follow(ReceiverStream::new(receive)));
        let mut told = opened.await.map_err(slow)?.map_err(status)?.into_inner();
        loop {
            tokio::select! {
                message = told.message() => match message.map_err(status)? {
                    Some(trust) => drop(self.told.send_replace(Some(trust))),
                    None => return Ok(()),
                },
                changed = self.in_force.changed() => {
                    changed.map_err(|_| "nobody puts it into force any more".to_owned())?;
                    let version = self.in_force.borrow_and_update().clone();
                    let said = send.send(Following { version, ..Following::default() });
                    said.await.map_err(|_| "the stream closed".to_owned())?;
                }
                // The registry ends connections with the certificate they were made with.
                () = renewed.next() => return Ok(()),
            }
        }
    }
}

const QUEUE: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(3);
