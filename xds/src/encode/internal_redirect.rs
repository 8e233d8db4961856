//! Redirects that a proxy follows itself.

use pillion_model::internal_redirect::{InternalRedirect, RedirectPredicate};

use super::{any, number};
use crate::pb;

pub(super) fn internal_redirect(policy: &InternalRedirect) -> pb::route::InternalRedirectPolicy {
    pb::route::InternalRedirectPolicy {
        max_internal_redirects: Some(number(policy.max)),
        redirect_response_codes: policy.statuses.iter().map(|&code| code.into()).collect(),
        predicates: policy.predicates.iter().map(predicate).collect(),
        allow_cross_scheme_redirect: policy.cross_scheme,
        response_headers_to_copy: policy.copied_headers.clone(),
    }
}

fn predicate(predicate: &RedirectPredicate) -> pb::core::TypedExtensionConfig {
    let (name, config) = match predicate {
        RedirectPredicate::PreviousRoutes => {
            ("previous_routes", any(&pb::previous_routes::PreviousRoutesConfig {}))
        }
        RedirectPredicate::SafeCrossScheme => {
            ("safe_cross_scheme", any(&pb::safe_cross_scheme::SafeCrossSchemeConfig {}))
        }
        RedirectPredicate::AllowListed(names) => (
            "allow_listed_routes",
            any(&pb::allow_listed_routes::AllowListedRoutesConfig { allowed_route_names: names.clone() }),
        ),
    };
    let name = format!("envoy.internal_redirect_predicates.{name}");
    pb::core::TypedExtensionConfig { name, typed_config: Some(config) }
}
