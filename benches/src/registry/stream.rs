//! A registration stream as a sidecar holds it: gRPC over HTTP/2 over mutual TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use pillion_model::name::{InstanceId, NodeId, ServiceName, SpiffeId, TrustDomain};
use pillion_net::bootstrap::{Credential, join};
use pillion_net::identity::IdentityWatch;
use pillion_net::resolve::{Resolver, Target};
use pillion_net::tls::{ClientTls, mesh_client_context, server_name};
use pillion_xds::mesh::to_proxy::Message as Answer;
use pillion_xds::mesh::to_registry::Message;
use pillion_xds::mesh::{Beats, Instance, Port, Register, ToProxy, ToRegistry};
use prost::Message as _;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// What the instances of one service present.
pub(super) async fn identity(mesh: SocketAddr, service: &ServiceName) -> anyhow::Result<Arc<ClientConfig>> {
    let target = Target { host: mesh.ip().to_string(), port: mesh.port() };
    let node = NodeId { service: service.clone(), instance: InstanceId::parse("bench")? };
    let identity = join(&[target], &Credential::OpenLoopback, &node, &Resolver::system()).await?;
    let registry = SpiffeId::registry(TrustDomain::default());
    let context = mesh_client_context(&[registry], "", &["h2"]);
    Ok(ClientTls::new(context, IdentityWatch::fixed(Arc::new(identity))).current()?)
}

/// An open stream. Dropping it closes the connection; the leases run on.
pub(super) struct Stream {
    /// Keeps the connection.
    _requests: SendRequest<Bytes>,
    send: SendStream<Bytes>,
    answers: RecvStream,
    buffer: BytesMut,
    connection: JoinHandle<()>,
}

impl Stream {
    pub(super) async fn open(mesh: SocketAddr, config: Arc<ClientConfig>) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(mesh).await.with_context(|| format!("connect to {mesh}"))?;
        tcp.set_nodelay(true)?;
        let tls = TlsConnector::from(config).connect(server_name("", mesh.ip()), tcp).await?;
        let (requests, connection) = h2::client::handshake(tls).await?;
        let connection = tokio::spawn(async move {
            // Whoever uses the stream sees why it ended.
            drop(connection.await);
        });
        let mut requests = requests.ready().await?;
        let request = http::Request::post(format!("https://{mesh}/pillion.mesh.v1.Registration/Connect"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, send) = requests.send_request(request, false)?;
        let response = response.await?;
        let status = response.headers().get("grpc-status");
        ensure!(response.status() == 200 && status.is_none(), "the stream was refused: {response:?}");
        let answers = response.into_body();
        Ok(Self { _requests: requests, send, answers, buffer: BytesMut::new(), connection })
    }

    /// Registers instances `of` a service, one after the other without waiting, in slots from 0 on.
    pub(super) async fn register(
        &mut self,
        service: &ServiceName,
        ids: impl IntoIterator<Item = usize>,
    ) -> anyhow::Result<()> {
        let (mut sent, mut frames) = (0, BytesMut::new());
        for id in ids {
            frame(
                &mut frames,
                Message::Register(Register { slot: sent, instance: Some(instance(service, id)) }),
            );
            sent += 1;
        }
        self.send(frames.freeze())?;
        for _ in 0..sent {
            match self.next().await? {
                Answer::Registered(_) => {}
                other => bail!("registering {sent} instances of {service}: {other:?}"),
            }
        }
        Ok(())
    }

    /// Beats slots 0 to `slots` at once, and waits for the acknowledgement.
    pub(super) async fn beat(&mut self, slots: u32) -> anyhow::Result<()> {
        let mut frames = BytesMut::new();
        frame(&mut frames, Message::Beats(Beats { slots: (0..slots).collect() }));
        self.send(frames.freeze())?;
        match self.next().await? {
            Answer::BeatsAcknowledged(answer) if answer.unknown.is_empty() => Ok(()),
            other => bail!("beating {slots} slots: {other:?}"),
        }
    }

    fn send(&mut self, frames: Bytes) -> anyhow::Result<()> {
        // h2 holds back what the window does not take yet.
        Ok(self.send.send_data(frames, false)?)
    }

    async fn next(&mut self) -> anyhow::Result<Answer> {
        loop {
            if let Some(length) = self.buffer.get(1..5).map(|mut length| length.get_u32() as usize)
                && self.buffer.len() >= 5 + length
            {
                self.buffer.advance(5);
                let message = ToProxy::decode(self.buffer.split_to(length))?;
                return message.message.context("an answer of an unknown kind");
            }
            let data = self.answers.data().await.context("the stream was closed")??;
            self.answers.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn frame(out: &mut BytesMut, message: Message) {
    let message = ToRegistry { message: Some(message) };
    out.put_u8(0);
    out.put_u32(message.encoded_len() as u32);
    message.encode(out).expect("a buffer grows");
}

/// An instance as a sidecar would register it: one port, two labels, a zone.
fn instance(service: &ServiceName, id: usize) -> Instance {
    let port = Port { port: 8080, protocol: "http".to_owned(), app_address: String::new() };
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Instance {
        namespace: service.namespace().to_owned(),
        service: service.service().to_owned(),
        id: format!("{}-{id}", service.service()),
        address: address(id).to_string(),
        ports: [("http".to_owned(), port)].into(),
        inbound_port: 15006,
        labels: [label("version", "v1"), label("team", "shop")].into(),
        zone: "zone-a".to_owned(),
        ttl_ms: 30_000,
        generation: 1,
        probe: pillion_xds::mesh::Probe::Passing.into(),
        ..Instance::default()
    }
}

/// A private address for the instance with this number.
pub(super) fn address(number: usize) -> std::net::Ipv4Addr {
    let number = u32::try_from(number % 0x00ff_0000).unwrap_or_default() + 0x100;
    std::net::Ipv4Addr::from(0x0a00_0000 + number)
}
