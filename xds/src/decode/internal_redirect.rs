//! Redirects that a proxy follows itself.

use std::mem::take;

use pillion_model::internal_redirect::{InternalRedirect, REDIRECTS, RedirectPredicate};

use super::Context;
use super::context::is;
use crate::pb;

pub(super) fn internal_redirect(
    cx: &mut Context,
    mut m: pb::route::InternalRedirectPolicy,
) -> InternalRedirect {
    let standard = InternalRedirect::default();
    let predicates = cx.each("predicates", take(&mut m.predicates), predicate);
    let given = take(&mut m.redirect_response_codes);
    // As in Envoy, what is no redirect is left out.
    let known = given.iter().filter_map(|code| u16::try_from(*code).ok());
    let statuses = known.filter(|code| REDIRECTS.contains(code)).collect();
    let policy = InternalRedirect {
        max: m.max_internal_redirects.take().map_or(standard.max, |max| max.value),
        statuses: if given.is_empty() { standard.statuses } else { statuses },
        predicates: predicates.into_iter().flatten().collect(),
        cross_scheme: take(&mut m.allow_cross_scheme_redirect),
        copied_headers: cx.each("response_headers_to_copy", take(&mut m.response_headers_to_copy), copied),
    };
    cx.rest(&m);
    policy
}

fn predicate(cx: &mut Context, m: pb::core::TypedExtensionConfig) -> Option<RedirectPredicate> {
    let Some(any) = m.typed_config else {
        cx.missing("typed_config");
        return None;
    };
    cx.at("typed_config", |cx| {
        if is::<pb::previous_routes::PreviousRoutesConfig>(&any) {
            Some(RedirectPredicate::PreviousRoutes)
        } else if is::<pb::safe_cross_scheme::SafeCrossSchemeConfig>(&any) {
            Some(RedirectPredicate::SafeCrossScheme)
        } else if is::<pb::allow_listed_routes::AllowListedRoutesConfig>(&any) {
            let m: pb::allow_listed_routes::AllowListedRoutesConfig = cx.unpack(&any);
            Some(RedirectPredicate::AllowListed(m.allowed_route_names))
        } else {
            cx.unsupported_type(&any, "previous_routes, safe_cross_scheme, allow_listed_routes");
            None
        }
    })
}

fn copied(cx: &mut Context, name: String) -> String {
    if name.is_empty() || name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        cx.refuse(format!("got `{name}`, want a header that is neither host nor a pseudo-header"));
    }
    name.to_ascii_lowercase()
}
