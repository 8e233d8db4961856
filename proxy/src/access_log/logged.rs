//! What filters of access logs look at.

use http::StatusCode;
use http::uri::PathAndQuery;
use pillion_model::log_filter::Logged;
use pillion_model::matcher::RequestView;

use crate::headers::format::Context;
use crate::headers::names::GRPC_STATUS;
use crate::local_reply::grpc_status;

impl Logged for Context<'_> {
    fn status(&self) -> u16 {
        self.record.status
    }

    fn duration_ms(&self) -> u64 {
        u64::try_from(self.record.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_health_check(&self) -> bool {
        self.record.health_check
    }

    fn request(&self) -> &dyn RequestView {
        self
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.record.flags.has_named(flag)
    }

    fn has_any_flag(&self) -> bool {
        self.record.flags != crate::flags::Flags::NONE
    }

    fn grpc_status(&self) -> u32 {
        let said = [self.trailers, self.response].into_iter().flatten();
        let said = said.filter_map(|headers| headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()).next();
        said.unwrap_or_else(|| match StatusCode::from_u16(self.record.status) {
            // As in Envoy, 200 says nothing about gRPC.
            Ok(status) => grpc_status(status),
            Err(_) => UNKNOWN,
        })
    }

    fn draw(&self) -> u64 {
        fastrand::u64(..)
    }
}

/// The request, as far as it was kept.
impl RequestView for Context<'_> {
    fn method(&self) -> &str {
        self.record.method.as_str()
    }

    fn path(&self) -> &str {
        self.record.path.as_ref().map_or("", PathAndQuery::path)
    }

    fn query(&self) -> Option<&str> {
        self.record.path.as_ref()?.query()
    }

    fn authority(&self) -> &str {
        self.record.authority.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn scheme(&self) -> &str {
        self.record.scheme
    }

    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        for value in self.request.get_all(name) {
            each(value.as_bytes());
        }
    }
}

/// gRPC's `UNKNOWN`.
const UNKNOWN: u32 = 2;
