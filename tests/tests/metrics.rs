//! Metrics as a real Prometheus reads them.

use std::path::Path;

use pillion_tests::support::ports::free_address;
use pillion_tests::support::process::finish;
use pillion_tests::support::{App, DEADLINE, Process, Registry, Sidecar, eventually, http, peer};

const SHOP: &str = "kind: Service\nname: shop\nports: [{name: http, port: 80, protocol: http}]\n";
const NAME: &str = "shop.default.mesh.internal";

/// A registry, `shop` with its sidecar, and the sidecar of `web`, which has called ten times.
async fn mesh(data: &Path) -> (Registry, App, [Sidecar; 2]) {
    let registry = Registry::start(data).await;
    registry.apply(SHOP).await;
    let app = App::start("shop").await;
    let server = Sidecar::beside(&registry, "shop.default", app.address).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    web.get_until(NAME, "/", 200).await;
    for _ in 0..9 {
        assert_eq!(web.get(NAME, "/").await.expect("an answer").status, 200);
    }
    (registry, app, [server, web])
}

#[tokio::test]
async fn promtool_has_nothing_to_say_against_them() {
    let (Some(promtool), Some(curl)) = (peer("promtool"), peer("curl")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let (registry, _app, [server, web]) = mesh(data.path()).await;
    for (what, address) in [("registry", registry.api), ("server", server.metrics), ("web", web.metrics)] {
        let (curl, promtool) = (curl.display(), promtool.display());
        let pipe = format!("{curl} -sf http://{address}/metrics | {promtool} check metrics");
        let checked = finish(Path::new("sh"), ["-c", &pipe]).await;
        assert_eq!(checked.code, 0, "{what}: {checked:?}");
        assert_eq!(format!("{}{}", checked.stdout, checked.stderr), "", "{what}");
    }
}

#[tokio::test]
async fn prometheus_scrapes_the_registry_and_sidecars() {
    let Some(prometheus) = peer("prometheus") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (registry, _app, _sidecars) = mesh(data.path()).await;
    let file = files.path().join("prometheus.yml");
    // Sidecars are found by what the registry knows of them.
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n\
         - {{job_name: registry, static_configs: [{{targets: [\"{api}\"]}}]}}\n\
         - {{job_name: sidecars, http_sd_configs: [{{url: \"http://{api}/v1/sd/prometheus\"}}]}}\n",
        api = registry.api
    );
    std::fs::write(&file, config).expect("written");
    let address = free_address();
    let arguments = [
        format!("--config.file={}", file.display()),
        format!("--storage.tsdb.path={}", files.path().join("data").display()),
        format!("--web.listen-address={address}"),
        "--log.level=warn".to_owned(),
    ];
    let _prometheus = Process::program("prometheus", &prometheus, arguments);
    let calls = r#"sum(pillion_requests_total{direction="inbound",source="web.default",service="shop.default",code="2xx"})"#;
    let quantile = "histogram_quantile(0.99, sum by (le) (pillion_request_duration_seconds_bucket)) > 0";
    for (query, least) in [
        ("count(up == 1)", 3.0),
        (calls, 10.0),
        (quantile, 0.0),
        ("sum(pillion_registry_instances{health=\"serving\"})", 1.0),
        ("sum(pillion_xds_streams)", 2.0),
    ] {
        eventually(query, DEADLINE, || async {
            let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let page = http::get(address, "prometheus", &format!("/api/v1/query?query={escaped}")).await?;
            let value = page.json()["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
            let value: Option<f64> = value.and_then(|value| value.parse().ok());
            if value.is_some_and(|value| value >= least) { Ok(()) } else { Err(page.body) }
        })
        .await;
    }
}
