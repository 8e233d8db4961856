//! HTTP spoken to endpoints.

use std::time::Duration;

use pillion_model::cluster::UpstreamProtocol;

use super::Context;
use super::context::{ignored, is};
use super::http::{http1_options, http2_options};
use crate::pb;
use pb::upstream_http::http_protocol_options::UpstreamProtocolOptions as Options;
use pb::upstream_http::http_protocol_options::explicit_http_config::ProtocolConfig;

const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) struct Http {
    pub(super) protocol: UpstreamProtocol,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) requests_max: u32,
}

/// HTTP settings, in the form of today or as fields of the cluster.
pub(super) fn http(cx: &mut Context, m: &mut pb::cluster::Cluster) -> Http {
    let mut http =
        Http { protocol: UpstreamProtocol::Http1, idle_timeout: Some(IDLE_TIMEOUT), requests_max: 0 };
    if let Some(requests) = m.max_requests_per_connection.take() {
        http.requests_max = requests.value;
    }
    let common = m.common_http_protocol_options.take();
    cx.some("common_http_protocol_options", common, |cx, common| http.common(cx, common));
    cx.some("http_protocol_options", m.http_protocol_options.take(), http1_options);
    cx.some("http2_protocol_options", m.http2_protocol_options.take(), |cx, options| {
        http.protocol = UpstreamProtocol::Http2;
        http2(cx, options);
    });
    if m.protocol_selection
        == i32::from(pb::cluster::cluster::ClusterProtocolSelection::UseDownstreamProtocol)
    {
        http.protocol = UpstreamProtocol::Downstream;
        m.protocol_selection = 0;
    }
    let extension = m.typed_extension_protocol_options.remove(pb::names::UPSTREAM_HTTP);
    let path = format!("typed_extension_protocol_options[\"{}\"]", pb::names::UPSTREAM_HTTP);
    cx.some(&path, extension, |cx, any| {
        if is::<pb::upstream_http::HttpProtocolOptions>(&any) {
            let options = cx.unpack(&any);
            http.options(cx, options);
        } else {
            cx.unsupported_type(&any, "HttpProtocolOptions");
        }
    });
    http
}

fn http2(cx: &mut Context, mut options: pb::core::Http2ProtocolOptions) {
    // Upgrades always travel as RFC 8441 has it.
    options.allow_connect = false;
    ignored!(cx, options, max_concurrent_streams);
    http2_options(cx, options);
}

impl Http {
    fn common(&mut self, cx: &mut Context, mut common: pb::core::HttpProtocolOptions) {
        self.idle_timeout = cx.limit("idle_timeout", common.idle_timeout.take(), self.idle_timeout);
        if let Some(requests) = common.max_requests_per_connection.take() {
            self.requests_max = requests.value;
        }
        cx.rest(&common);
    }

    fn options(&mut self, cx: &mut Context, mut m: pb::upstream_http::HttpProtocolOptions) {
        let common = m.common_http_protocol_options.take();
        cx.some("common_http_protocol_options", common, |cx, common| self.common(cx, common));
        match m.upstream_protocol_options.take() {
            Some(Options::ExplicitHttpConfig(explicit)) => cx.at("explicit_http_config", |cx| match explicit
                .protocol_config
            {
                Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                    self.protocol = UpstreamProtocol::Http1;
                    cx.at("http_protocol_options", |cx| http1_options(cx, options));
                }
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    self.protocol = UpstreamProtocol::Http2;
                    cx.at("http2_protocol_options", |cx| http2(cx, options));
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    cx.refuse_at("http3_protocol_options", "is not supported; supported: HTTP/1.1, HTTP/2");
                }
                None => cx.missing("http_protocol_options"),
            }),
            Some(Options::AutoConfig(mut auto)) => cx.at("auto_config", |cx| {
                self.protocol = UpstreamProtocol::Auto;
                cx.some("http_protocol_options", auto.http_protocol_options.take(), http1_options);
                cx.some("http2_protocol_options", auto.http2_protocol_options.take(), http2);
                cx.rest(&auto);
            }),
            Some(Options::UseDownstreamProtocolConfig(mut same)) => {
                cx.at("use_downstream_protocol_config", |cx| {
                    self.protocol = UpstreamProtocol::Downstream;
                    cx.some("http_protocol_options", same.http_protocol_options.take(), http1_options);
                    cx.some("http2_protocol_options", same.http2_protocol_options.take(), http2);
                    cx.rest(&same);
                });
            }
            None => cx.refuse(
                "says no protocol; want explicit_http_config, auto_config or use_downstream_protocol_config",
            ),
        }
        cx.rest(&m);
    }
}
