//! DNS over UDP.
//!
//! One task reads datagrams and answers those whose answer is known at once, in bursts without
//! waking in between; others are waited for aside. hickory's own loop starts a task for each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::server::{RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cookie::{Shown, now};
use crate::encode::refusal;
use crate::handler::{Handler, Outlet, Shared};
use crate::limit::Limiter;
use crate::question::{Transport, UDP_EDNS, Unreadable, read};
use crate::server::now_or_aside;

pub(crate) async fn serve(
    name: &str,
    socket: Arc<UdpSocket>,
    shared: Arc<Shared>,
    limiter: Option<Limiter>,
    stop: CancellationToken,
) {
    let handler = Handler { shared, outlet: Outlet::Udp(Arc::clone(&socket)) };
    let mut server = Server { socket, handler, limiter, waiting: JoinSet::new() };
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = server.waiting.join_next() => continue,
            received = server.socket.recv_from(&mut buffer) => received,
        };
        let mut next = received;
        for _ in 0..BURST {
            match next {
                Ok((len, client)) => server.datagram(&buffer[..len], client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // ICMP errors of earlier answers are reported here; they concern nobody else.
                Err(error) => tracing::debug!(server = name, %error, "cannot receive"),
            }
            next = server.socket.try_recv_from(&mut buffer);
        }
    }
}

struct Server {
    socket: Arc<UdpSocket>,
    handler: Handler,
    limiter: Option<Limiter>,
    waiting: JoinSet<()>,
}

impl Server {
    fn datagram(&mut self, message: &[u8], client: SocketAddr) {
        let stats = &self.handler.shared.stats;
        stats.udp_messages.add();
        let message = read(message.to_vec(), client, Transport::Udp);
        let known = |request| matches!(self.handler.shared.cookies.check(request, now()), Shown::Ours(_));
        if let Some(limiter) = &mut self.limiter
            && !message.as_ref().is_ok_and(known)
            && !limiter.admit(client.ip(), Instant::now())
        {
            let limited = message.map_or(Ok(()), |request| self.handler.limit(&request));
            return drop(limited); // a full send buffer loses it, as the network may
        }
        match message {
            Ok(request) => {
                let (handler, out) =
                    (self.handler.clone(), Datagram { socket: Arc::clone(&self.socket), client });
                let answer = async move {
                    handler.handle_request::<_, TokioTime>(&request, out).await;
                };
                now_or_aside(answer, &mut self.waiting);
            }
            Err(Unreadable::Ignore) => stats.malformed.add(),
            Err(Unreadable::Refuse(header, code)) => {
                stats.malformed.add();
                drop(self.socket.try_send_to(&refusal(&header.metadata, code), client));
            }
        }
    }
}

/// Sends an answer to one client.
#[derive(Clone)]
struct Datagram {
    socket: Arc<UdpSocket>,
    client: SocketAddr,
}

#[async_trait]
impl ResponseHandler for Datagram {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::with_capacity(usize::from(UDP_EDNS));
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(UDP_EDNS); // the handler passes on what fits the client
        let info = response.destructive_emit(&mut encoder)?;
        self.socket.try_send_to(&bytes, self.client)?;
        Ok(info)
    }
}

const DATAGRAM_MAX: usize = 4096;
/// Datagrams read without giving other tasks a turn.
const BURST: usize = 64;
