//! What the control task does: ejection and return, and names.

use std::cell::Cell;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;
use pillion_model::cluster::{Discovery, LoadBalancing, OutlierDetection};
use pillion_model::endpoint::HostAddress;
use tokio_util::sync::CancellationToken;

use super::support::*;
use crate::upstream::{Clusters, Names, Pools};

#[test]
fn a_failing_endpoint_is_left_out_for_a_while() {
    on_worker(async {
        let sick = Rc::new(Cell::new(true));
        let state = Rc::clone(&sick);
        let (bad, _) = http1_origin(move |_| {
            let mut response = ok("bad");
            if state.get() {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            async move { response }
        })
        .await;
        let (good, _) = http1_origin(async |_| ok("good")).await;
        let proxy = Proxy::new();
        let stop = CancellationToken::new();
        let control = tokio::task::spawn_local({
            let (clusters, stop) = (Arc::clone(&proxy.clusters), stop.clone());
            async move { clusters.run(stop).await }
        });
        let mut config = config("web");
        config.load_balancing = LoadBalancing::RoundRobin;
        config.outlier_detection = Some(OutlierDetection {
            interval: Duration::from_millis(10),
            base_ejection: Duration::from_millis(50),
            max_ejection_percent: 50,
            ..OutlierDetection::default()
        });
        let cluster = proxy.cluster(config, &[bad, good]);
        let endpoint = Arc::clone(&cluster.hosts().hosts[0].endpoint);
        let mut bad_answers = 0;
        while !endpoint.is_ejected() {
            bad_answers += usize::from(proxy.text(&cluster).await == "bad");
            assert!(bad_answers < 10, "five in a row eject");
            tokio::task::yield_now().await;
        }
        sick.set(false);
        for _ in 0..4 {
            assert_eq!(proxy.text(&cluster).await, "good");
        }
        until("it may return", || !endpoint.is_ejected()).await;
        let answers = [proxy.text(&cluster).await, proxy.text(&cluster).await];
        assert!(answers.iter().any(|answer| answer == "bad"), "{answers:?}");
        stop.cancel();
        control.await.expect("it ends");
    });
}

/// Knows one name.
struct OneName(AtomicUsize);

impl Names for OneName {
    fn addresses(
        &self,
        host: String,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, String>> + Send + '_>> {
        self.0.fetch_add(1, Relaxed);
        Box::pin(async move {
            if host == "web.test" { Ok(vec![Ipv4Addr::LOCALHOST.into()]) } else { Err(format!("no {host}")) }
        })
    }
}

#[test]
fn names_are_resolved_again_and_again() {
    on_worker(async {
        let (address, _) = http1_origin(async |_| ok("hello")).await;
        let names = Arc::new(OneName(AtomicUsize::new(0)));
        let clusters = Arc::new(Clusters::with_names(Arc::<OneName>::clone(&names)));
        let proxy = Proxy { pools: Pools::new(Arc::clone(&clusters)), clusters };
        let stop = CancellationToken::new();
        let control = tokio::task::spawn_local({
            let (clusters, stop) = (Arc::clone(&proxy.clusters), stop.clone());
            async move { clusters.run(stop).await }
        });
        let mut config = config("web");
        let mut assignment = assignment(&[address]);
        let host = HostAddress::Name { host: "web.test".to_owned(), port: address.port() };
        assignment.localities[0].endpoints[0].address = host;
        config.discovery = Discovery::StrictDns { assignment, refresh: Duration::from_millis(100) };
        let cluster = proxy.cluster(config, &[]);
        until("it is resolved", || !cluster.hosts().hosts.is_empty()).await;
        assert_eq!(proxy.text(&cluster).await, "hello");
        assert_eq!(cluster.hosts().hosts[0].hostname, "web.test");
        until("it is resolved again", || names.0.load(Relaxed) > 2).await;
        assert_eq!(proxy.clusters.resolve("web.test").await, Ok(vec![Ipv4Addr::LOCALHOST.into()]));
        assert_eq!(proxy.clusters.resolve("other").await, Err("no other".to_owned()));
        stop.cancel();
        control.await.expect("it ends");
    });
}

#[test]
fn another_configuration_keeps_endpoints_and_what_is_known_of_them() {
    on_worker(async {
        let (address, seen) = http1_origin(async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        proxy.text(&cluster).await;
        let endpoint = Arc::clone(&cluster.hosts().hosts[0].endpoint);
        let mut other = config("web");
        other.connect_timeout = Duration::from_secs(1);
        // The endpoints are not told again.
        let (map, rejected) = proxy.clusters.apply(
            &[("web".to_owned(), other)].into(),
            &std::collections::BTreeMap::new(),
            &pillion_net::tls::NoSecrets,
        );
        assert_eq!(rejected, []);
        assert!(!Arc::ptr_eq(&map["web"], &cluster));
        assert_eq!(proxy.text(&map["web"]).await, "hello");
        assert!(Arc::ptr_eq(&map["web"].hosts().hosts[0].endpoint, &endpoint));
        assert_eq!(endpoint.stats.rq_success.load(Relaxed), 2);
        assert_eq!(seen.connections.get(), 2, "pools belong to a configuration");
        proxy.pools.sweep();
        until("the older connection is closed", || endpoint.stats.cx_active.load(Relaxed) == 1).await;
    });
}

#[test]
fn a_bad_cluster_is_refused_by_name_and_field_and_the_one_before_stays() {
    on_worker(async {
        let (address, _) = http1_origin(async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        let mut bad = config("web");
        let file = pillion_model::tls::DataSource::File("/nowhere/roots.pem".to_owned());
        let mut tls = pillion_net::tls::mesh_client_context(&[], "", &[]);
        tls.certificate = None;
        let roots = pillion_model::tls::Roots::Given(file);
        tls.validation = Some(pillion_model::tls::Validation { roots, names: Vec::new() });
        bad.tls = Some(tls);
        let (map, rejected) = proxy.clusters.apply(
            &[("web".to_owned(), bad)].into(),
            &std::collections::BTreeMap::new(),
            &pillion_net::tls::NoSecrets,
        );
        assert_eq!(rejected.len(), 1);
        assert_eq!(rejected[0].name, "web");
        assert!(rejected[0].reason.starts_with("transport_socket: "), "{}", rejected[0].reason);
        assert!(rejected[0].reason.contains("/nowhere/roots.pem"), "{}", rejected[0].reason);
        assert!(Arc::ptr_eq(&map["web"], &cluster));
        assert_eq!(proxy.text(&map["web"]).await, "hello");
    });
}
