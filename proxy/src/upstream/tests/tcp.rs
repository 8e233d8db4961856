//! Connections for TCP proxying.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use pillion_model::cluster::Discovery;
use pillion_model::retry::Reset;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use crate::upstream::{Attempt, Cause, RelayEnd, relay};

async fn echo() -> SocketAddr {
    origin(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("read");
        stream.write_all(&all).await.expect("written");
    })
    .await
}

#[test]
fn bytes_go_through_and_are_counted() {
    on_worker(async {
        let proxy = Proxy::new();
        let mut config = config("db");
        config.limits.connections_max = 1;
        let cluster = proxy.cluster(config, &[echo().await]);
        let mut upstream = proxy.pools.connect(&cluster, &mut Attempt::default()).await.expect("connected");
        let endpoint = std::sync::Arc::clone(upstream.endpoint());
        assert_eq!((endpoint.active(), endpoint.stats.cx_active.load(Relaxed)), (1, 1));
        let failure =
            proxy.pools.connect(&cluster, &mut Attempt::default()).await.err().expect("one is open");
        assert_eq!(failure.cause, Cause::Reset(Reset::Overflow));

        let (mut client, mut near) = tokio::io::duplex(64);
        let (relayed, answer) = tokio::join!(relay(&mut near, &mut upstream, None), async {
            client.write_all(b"hello").await.expect("written");
            client.shutdown().await.expect("half closed");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("read");
            answer
        });
        assert_eq!(answer, b"hello");
        assert_eq!((relayed.sent, relayed.received), (5, 5));
        assert!(matches!(relayed.end, RelayEnd::Closed), "{:?}", relayed.end);
        drop(upstream);
        assert_eq!((endpoint.active(), endpoint.stats.cx_active.load(Relaxed)), (0, 0));
    });
}

#[test]
fn an_original_destination_becomes_an_endpoint() {
    on_worker(async {
        let proxy = Proxy::new();
        let mut config = config("passthrough");
        config.discovery = Discovery::OriginalDst;
        let cluster = proxy.cluster(config, &[]);
        let destinations = [echo().await, echo().await];
        for destination in [destinations[0], destinations[1], destinations[0]] {
            let mut attempt = Attempt::default();
            attempt.destination = Some(destination);
            let upstream = proxy.pools.connect(&cluster, &mut attempt).await.expect("connected");
            assert_eq!(upstream.endpoint().address.to_string(), destination.to_string());
        }
        assert_eq!(cluster.hosts().hosts.len(), 2);
    });
}
