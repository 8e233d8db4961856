//! HTTP/1 pools.

use super::support::*;

#[test]
fn a_connection_is_used_again() {
    on_worker(async {
        let (address, seen) = http1_origin(async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        for _ in 0..5 {
            assert_eq!(proxy.text(&cluster).await, "hello");
        }
        assert_eq!(seen.connections.get(), 1);
        let endpoint = &cluster.hosts().hosts[0].endpoint;
        assert_eq!(endpoint.active(), 0);
        assert_eq!(endpoint.stats.rq_success.load(std::sync::atomic::Ordering::Relaxed), 5);
    });
}
