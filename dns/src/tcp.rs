//! DNS over TCP (RFC 7766): questions are pipelined and answered as answers come in.
//!
//! Frames, timeouts and answers are hickory's. The accept loop is ours: hickory's takes connections
//! without limit, and spins when descriptors run out.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hickory_proto::op::SerialMessage;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_server::net::tcp;
use hickory_server::net::xfer::Protocol;
use hickory_server::net::{BufDnsStreamHandle, DnsStreamHandle};
use hickory_server::server::{RequestHandler, ResponseHandle, TimeoutStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::connections::Connections;
use crate::encode::refusal;
use crate::handler::{Handler, Outlet, Shared};
use crate::question::{Transport, Unreadable, read};
use crate::server::now_or_aside;

pub(crate) async fn serve(
    name: &str,
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: Connections,
    stop: CancellationToken,
) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let (place, shared) = (connections.enter(client.ip()), Arc::clone(&shared));
                let stop = stop.clone();
                open.spawn(async move {
                    let served = place.cut().run_until_cancelled(connection(stream, client, shared));
                    if let Some(Some(Err(error))) = stop.run_until_cancelled(served).await {
                        tracing::debug!(%client, %error, "DNS connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(server = name, %error, "cannot accept a connection, closing one and waiting");
                connections.make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while open.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, client: SocketAddr, shared: Arc<Shared>) -> io::Result<()> {
    let stream = AsyncIoTokioAsStd(stream);
    let (stream, sender) = tcp::TcpStream::from_stream_with_buffer_size(stream, client, PIPELINE_MAX);
    let handler = Handler { shared, outlet: Outlet::Tcp(sender.clone()) };
    let mut messages = TimeoutStream::new(stream, IDLE);
    let mut waiting = JoinSet::new();
    loop {
        // Polled also while nothing comes in: this is what writes the answers.
        let message = tokio::select! {
            Some(_) = waiting.join_next() => continue,
            message = messages.next() => message,
        };
        match message {
            Some(Ok(message)) => answer(message, &handler, &sender, &mut waiting),
            Some(Err(error)) => return Err(error),
            None => break,
        }
        while waiting.len() >= PIPELINE_MAX {
            waiting.join_next().await; // further questions stay unread until an answer is done
        }
    }
    // The client has asked its last question: it still gets the answers under way.
    while waiting.join_next().await.is_some() {}
    messages.next().await.map_or(Ok(()), |end| end.map(drop))
}

fn answer(message: SerialMessage, handler: &Handler, sender: &BufDnsStreamHandle, waiting: &mut JoinSet<()>) {
    let (message, client) = message.into_parts();
    let stats = &handler.shared.stats;
    stats.tcp_messages.add();
    match read(message, client, Transport::Tcp) {
        Ok(request) => {
            let out = ResponseHandle::new(client, sender.clone(), Protocol::Tcp);
            let handler = handler.clone();
            let answer = async move {
                handler.handle_request::<_, TokioTime>(&request, out).await;
            };
            now_or_aside(answer, waiting);
        }
        Err(Unreadable::Ignore) => stats.malformed.add(),
        Err(Unreadable::Refuse(header, code)) => {
            stats.malformed.add();
            let refusal = SerialMessage::new(refusal(&header.metadata, code), client);
            if let Err(error) = sender.clone().send(refusal) {
                tracing::debug!(%client, %error, "an answer is lost");
            }
        }
    }
}

/// A connection without a whole question for so long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// Answers waited for per connection.
const PIPELINE_MAX: usize = 128;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
