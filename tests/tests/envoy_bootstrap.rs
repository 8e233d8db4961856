//! `pillion proxy --envoy-config`: an Envoy v3 bootstrap as it is.

use std::net::SocketAddr;

use pillion_tests::support::process::run;
use pillion_tests::support::{DEADLINE, Process, eventually, http};

fn bootstrap(filter: &str, application: SocketAddr) -> String {
    format!(
        r#"
static_resources:
  listeners:
  - name: web
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: /gone}}
                direct_response: {{status: 410, body: {{inline_string: gone}}}}
              - match: {{prefix: /}}
                route: {{cluster: app}}
          http_filters:
{filter}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: app
    type: STATIC
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}
"#,
        port = application.port()
    )
}

const LUA: &str = r#"          - name: envoy.filters.http.lua
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}"#;

#[tokio::test]
async fn a_static_bootstrap_serves_and_ends_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let application = Process::pillion("orders", ["demo-service", "orders", "--instance", "orders-1"]);
    let file = folder.path().join("envoy.yaml");
    std::fs::write(&file, bootstrap("", application.bound("listening on").await)).expect("written");
    let path = file.display().to_string();
    let mut proxy = Process::pillion(
        "proxy",
        ["proxy", "--envoy-config", &path, "--workers", "1", "--admin", "127.0.0.1:0"],
    );
    let web = proxy.bound("web").await;
    let page = eventually("the application answers", DEADLINE, || async {
        let page = http::get(web, "any", "/orders").await?;
        if page.status == 200 { Ok(page) } else { Err(format!("{page:?}")) }
    })
    .await;
    assert_eq!(page.json()["instance"], "orders-1", "{page:?}");
    let gone = http::get(web, "any", "/gone").await.expect("served");
    assert_eq!((gone.status, &*gone.body), (410, "gone"));
    let admin = proxy.bound("admin").await;
    // Listeners serve as soon as they are bound, a moment before the first checks are over.
    let ready = eventually("the proxy is ready", DEADLINE, || async {
        let ready = http::get(admin, "admin", "/ready").await?;
        if ready.status == 200 { Ok(ready) } else { Err(format!("{ready:?}")) }
    })
    .await;
    assert_eq!(ready.body, "LIVE\n");
    let metrics = http::get(admin, "admin", "/metrics").await.expect("served");
    assert!(metrics.body.contains("pillion_requests_total"), "{}", metrics.body);
    let dump = http::get(admin, "admin", "/config_dump").await.expect("served");
    assert!(dump.body.contains("\"app\""), "{}", dump.body);
    // Whoever asks to be told when it has drained is told, before the process ends.
    let drain = ::http::Request::post("/drain?wait=true").body(bytes::Bytes::new()).expect("a request");
    let drained = http::send(admin, drain).await.expect("an answer");
    assert_eq!(drained.status, 200, "{drained:?}");
    let status = proxy.exit(DEADLINE).await;
    assert!(status.success(), "{status}: {}", proxy.output());
}

#[tokio::test]
async fn a_lua_filter_is_refused_by_its_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("envoy.yaml");
    std::fs::write(&file, bootstrap(LUA, SocketAddr::from(([127, 0, 0, 1], 1)))).expect("written");
    let finished = run(["proxy", "--envoy-config", &file.display().to_string()]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    for want in ["filter_chains[0].filters[0].typed_config.http_filters[0]", "lua", "envoy.yaml:23"] {
        assert!(finished.stderr.contains(want), "no `{want}` in {}", finished.stderr);
    }
}
