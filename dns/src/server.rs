//! Both transports of one zone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::handler::Shared;
use crate::zone::Zone;
use crate::{tcp, udp};

/// Answers on both sockets until `stop`. `name` is for logs.
pub async fn serve(
    name: &str,
    udp: UdpSocket,
    tcp: TcpListener,
    zone: Arc<dyn Zone>,
    stop: CancellationToken,
) {
    let shared = Arc::new(Shared::new(zone));
    tokio::join!(
        udp::serve(name, Arc::new(udp), Arc::clone(&shared), stop.clone()),
        tcp::serve(name, tcp, shared, stop),
    );
}

/// Answers at once where the answer is known, which is the rule, and in a task of its own otherwise.
pub(crate) fn now_or_aside(answer: impl Future<Output = ()> + Send + 'static, aside: &mut JoinSet<()>) {
    let mut answer: Pin<Box<_>> = Box::pin(answer);
    if answer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        aside.spawn(answer);
    }
}
