//! Header changes where a filter makes them: the filter's own, then those of the route and of what is
//! around it.

use http::HeaderMap;

use super::overrides;
use crate::exchange::Exchange;
use crate::headers::changes::Changes;

pub(super) fn request(x: &mut Exchange, own: &Changes, most_specific_wins: bool) {
    let routed = x.record.routed.clone();
    own.request(&mut x.head.headers, &x.record);
    let Some(overrides) = overrides(x, routed.as_ref()) else { return };
    for changes in overrides.mutations(most_specific_wins) {
        changes.request(&mut x.head.headers, &x.record);
    }
}

pub(super) fn response(x: &Exchange, own: &Changes, most_specific_wins: bool, headers: &mut HeaderMap) {
    let record = &*x.record;
    own.response(headers, &record.request_headers, record);
    let Some(overrides) = overrides(x, record.routed.as_ref()) else { return };
    for changes in overrides.mutations(most_specific_wins) {
        changes.response(headers, &record.request_headers, record);
    }
}
