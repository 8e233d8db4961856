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
use tokio_util::sync::CancellationToken;

use crate::encode::refusal;
use crate::handler::{Handler, Outlet, Shared};
use crate::question::{Transport, UDP_EDNS, Unreadable, read};
use crate::server::now_or_aside;

pub(crate) async fn serve(name: &str, socket: Arc<UdpSocket>, shared: Arc<Shared>, stop: CancellationToken) {
    let handler = Handler { shared, outlet: Outlet::Udp(Arc::clone(&socket)) };
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut waiting = JoinSet::new();
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = waiting.join_next() => continue,
            received = socket.recv_from(&mut buffer) => received,
        };
        let mut next = received;
        for _ in 0..BURST {
            match next {
                Ok((len, client)) => datagram(&socket, &buffer[..len], client, &handler, &mut waiting),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // ICMP errors of earlier answers are reported here; they concern nobody else.
                Err(error) => tracing::debug!(server = name, %error, "cannot receive"),
            }
            next = socket.try_recv_from(&mut buffer);
        }
    }
}

fn datagram(
    socket: &Arc<UdpSocket>,
    message: &[u8],
    client: SocketAddr,
    handler: &Handler,
    waiting: &mut JoinSet<()>,
) {
    match read(message.to_vec(), client, Transport::Udp) {
        Ok(request) => {
            let (handler, out) = (handler.clone(), Datagram { socket: Arc::clone(socket), client });
            let answer = async move {
                handler.handle_request::<_, TokioTime>(&request, out).await;
            };
            now_or_aside(answer, waiting);
        }
        Err(Unreadable::Ignore) => {}
        // A full send buffer loses the answer, as the network may: the client asks again.
        Err(Unreadable::Refuse(header, code)) => {
            drop(socket.try_send_to(&refusal(&header.metadata, code), client));
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
