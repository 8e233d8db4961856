//! DNS over UDP.
//!
//! One thread reads what datagrams there are, answers them and sends the answers together: few system
//! calls, and no runtime between the socket and the answer. What is ready as bytes
//! ([`crate::fast`]) is answered here, everything else by the handler: at once where it knows the
//! answer, on the runtime where it has to wait. Nobody waits for anybody: a full send buffer loses an
//! answer, as the network may.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;

use async_trait::async_trait;
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::server::{RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use rustix::io::Errno;
use rustix::net::{
    MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrAny, recvfrom, sendmmsg, sendto,
    shutdown,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cookie::{Shown, now};
use crate::encode::refusal;
use crate::fast::{Draws, Fast, NAME_MAX, Plain, limited, write};
use crate::handler::{Handler, Outlet, Shared};
use crate::limit::Limiter;
use crate::question::{Transport, UDP_EDNS, Unreadable, read};
use crate::server::now_or_aside;

/// Answers on a thread of its own until `stop`.
///
/// # Errors
///
/// If the thread cannot be started.
///
/// # Panics
///
/// If the thread does.
pub(crate) async fn serve(
    name: &str,
    socket: UdpSocket,
    shared: Arc<Shared>,
    limiter: Option<Limiter>,
    stop: CancellationToken,
) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    let socket = Arc::new(socket);
    // Also where this is dropped rather than told to stop.
    let stop = stop.child_token();
    let _stopping = stop.clone().drop_guard();
    let wake = {
        let (socket, stop) = (Arc::clone(&socket), stop.clone());
        async move {
            stop.cancelled().await;
            // Linux says that there is nothing connected to shut down, and wakes who waits to receive.
            let _ = shutdown(&*socket, Shutdown::Read);
        }
    };
    let waking = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(wake));
    let (ending, ended) = oneshot::channel::<()>();
    let server = Server {
        fast: shared.zone.fast(),
        handler: Handler { shared, outlet: Outlet::Udp(Arc::clone(&socket)) },
        socket,
        limiter,
        waiting: JoinSet::new(),
        draws: Draws::default(),
        now: Now::look(),
    };
    let (runtime, named) = (Handle::current(), name.to_owned());
    let thread = thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
        let _ending = ending;
        let _inside = runtime.enter();
        answer(&named, server, &stop);
    })?;
    let _ = ended.await; // dropped at the thread's end, never sent to
    waking.abort();
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
    Ok(())
}

/// Reads and answers bursts.
fn answer(name: &str, mut server: Server, stop: &CancellationToken) {
    let socket = Arc::clone(&server.socket);
    let mut message = [0; DATAGRAM_MAX];
    let mut answers = vec![[0; UDP_EDNS as usize]; BURST];
    let mut ready: Vec<(usize, SocketAddrAny)> = Vec::with_capacity(BURST);
    while !stop.is_cancelled() {
        ready.clear();
        let mut wait = RecvFlags::empty(); // for the first one only
        for _ in 0..BURST {
            match recvfrom(&*socket, &mut message[..], wait) {
                Ok((len, _, Some(client))) => {
                    if wait.is_empty() {
                        server.begin();
                    }
                    let Ok(from) = SocketAddr::try_from(client.clone()) else { continue };
                    if let Some(len) = server.datagram(&message[..len], from, &mut answers[ready.len()]) {
                        ready.push((len, client));
                    }
                }
                Err(Errno::AGAIN) => break,
                Ok((_, _, None)) | Err(Errno::INTR) => {} // woken to end, or by a signal
                // ICMP errors of earlier answers are reported here; they concern nobody else.
                Err(error) => tracing::debug!(server = name, %error, "cannot receive"),
            }
            if stop.is_cancelled() {
                break;
            }
            wait = RecvFlags::DONTWAIT;
        }
        send_all(name, &socket, &answers, &ready);
    }
}

/// Sends the answers of a burst.
fn send_all(
    name: &str,
    socket: &UdpSocket,
    answers: &[[u8; UDP_EDNS as usize]],
    ready: &[(usize, SocketAddrAny)],
) {
    let slices: Vec<[IoSlice<'_>; 1]> =
        answers.iter().zip(ready).map(|(answer, (len, _))| [IoSlice::new(&answer[..*len])]).collect();
    let mut controls: Vec<_> = ready.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<MMsgHdr<'_>> = slices
        .iter()
        .zip(ready)
        .zip(&mut controls)
        .map(|((slice, (_, client)), control)| MMsgHdr::new_with_addr(client, slice, control))
        .collect();
    let mut rest = &mut messages[..];
    while !rest.is_empty() {
        let sent = match sendmmsg(socket, rest, SendFlags::DONTWAIT) {
            Ok(sent) => sent.max(1),
            Err(Errno::INTR) => 0,
            Err(error) => {
                tracing::debug!(server = name, %error, "an answer is lost");
                1 // the first of these; the others may have another fate
            }
        };
        rest = &mut rest[sent..];
    }
}

struct Server {
    socket: Arc<UdpSocket>,
    fast: Option<Box<dyn Fast>>,
    handler: Handler,
    limiter: Option<Limiter>,
    waiting: JoinSet<()>,
    draws: Draws,
    now: Now,
}

/// The time, looked at once a burst.
struct Now {
    seconds: u32,
    instant: Instant,
}

impl Now {
    fn look() -> Self {
        Self { seconds: now(), instant: Instant::now() }
    }
}

impl Server {
    /// Prepares for a burst.
    fn begin(&mut self) {
        self.now = Now::look();
        while self.waiting.try_join_next().is_some() {}
        if let Some(fast) = &mut self.fast {
            fast.refresh();
        }
    }

    /// Answers one message, or gives the length of an answer that is ready to be sent.
    fn datagram(
        &mut self,
        message: &[u8],
        client: SocketAddr,
        out: &mut [u8; UDP_EDNS as usize],
    ) -> Option<usize> {
        self.handler.shared.stats.udp_messages.add();
        if client.port() != 0
            && let Some(answered) = self.fast(message, client, out)
        {
            return Some(answered);
        }
        self.general(message, client);
        None
    }

    /// An answer from bytes that are ready, unless this is no ordinary question.
    fn fast(
        &mut self,
        message: &[u8],
        client: SocketAddr,
        out: &mut [u8; UDP_EDNS as usize],
    ) -> Option<usize> {
        let fast = self.fast.as_mut()?;
        let mut name = [0; NAME_MAX];
        let question = Plain::read(message, &mut name)?;
        let (shared, ip) = (&self.handler.shared, client.ip());
        let shown = question.edns.and_then(|edns| edns.cookie);
        let shown = shown.map(|bytes| shared.cookies.check_bytes(bytes, ip, self.now.seconds));
        let cookie = match shown {
            Some(Shown::Malformed) => return None,
            Some(Shown::Client(client) | Shown::Ours(client)) => Some(client),
            None | Some(Shown::Nothing) => None,
        };
        let ours = matches!(shown, Some(Shown::Ours(_)));
        let ready = fast.find(&question)?;
        if !ours && !admit(&mut self.limiter, ip, self.now.instant) {
            let len = limited(&question, out)?;
            shared.stats.limited.add();
            return Some(len);
        }
        let code = ready.code();
        let cookie = cookie.map(|client| shared.cookies.whole(client, ip, self.now.seconds));
        let len = write(&question, ready, cookie.as_ref(), &mut self.draws, out)?;
        fast.count(code);
        Some(len)
    }

    /// Whatever it is.
    fn general(&mut self, message: &[u8], client: SocketAddr) {
        let stats = &self.handler.shared.stats;
        let message = read(message.to_vec(), client, Transport::Udp);
        let known =
            |request| matches!(self.handler.shared.cookies.check(request, self.now.seconds), Shown::Ours(_));
        if !message.as_ref().is_ok_and(known) && !admit(&mut self.limiter, client.ip(), self.now.instant) {
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
                let _ = send(&self.socket, &refusal(&header.metadata, code), client);
            }
        }
    }
}

/// Whether a client gets one more answer.
fn admit(limiter: &mut Option<Limiter>, client: IpAddr, now: Instant) -> bool {
    limiter.as_mut().is_none_or(|limiter| limiter.admit(client, now))
}

/// Sends one answer, unless that would have to wait.
pub(crate) fn send(socket: &UdpSocket, message: &[u8], client: SocketAddr) -> io::Result<()> {
    Ok(sendto(socket, message, SendFlags::DONTWAIT, &client).map(drop)?)
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
        send(&self.socket, &bytes, self.client)?;
        Ok(info)
    }
}

/// The thread's name, as `top -H` shows it.
const THREAD: &str = "dns-udp";
const DATAGRAM_MAX: usize = 4096;
/// Datagrams read and answered at a time.
const BURST: usize = 64;
