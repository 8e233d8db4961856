//! Why a policy matches a request or does not, in words.

use pillion_model::matcher::{HeaderMatcher, HeaderValueMatch, Pattern, RequestView, StringMatcher};
use pillion_model::metadata::MetadataMatcher;
use pillion_model::rbac::{Peer, Permission, Policy, Principal};

/// What matched, or the first thing that did not.
pub(super) fn of(policy: &Policy, peer: &Peer<'_>, request: Option<&dyn RequestView>) -> String {
    let who = Policy { permissions: vec![Permission::Any], principals: policy.principals.clone() };
    if !who.is_match(peer, request) {
        let caller = peer.names.and_then(|names| names.first());
        let caller = caller.map_or("a caller without identity", String::as_str);
        return format!("{caller} is not {}", any_of(policy.principals.iter().map(principal)));
    }
    let holds = |permission: &Permission| {
        let what = Policy { permissions: vec![permission.clone()], principals: vec![Principal::Any] };
        what.is_match(peer, request)
    };
    if policy.permissions.iter().any(holds) {
        return "caller and request match".to_owned();
    }
    let failed = policy.permissions.iter().flat_map(|permission| match permission {
        Permission::And(parts) => parts.iter().filter(|part| !holds(part)).collect(),
        other => vec![other],
    });
    format!("not so: {}", failed.map(describe).collect::<Vec<_>>().join("; "))
}

fn any_of(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(" or ")
}

fn principal(principal: &Principal) -> String {
    match principal {
        Principal::Any => "anyone".to_owned(),
        Principal::And(all) => all.iter().map(self::principal).collect::<Vec<_>>().join(" and "),
        Principal::Or(any) => any_of(any.iter().map(self::principal)),
        Principal::Not(inner) => format!("not {}", self::principal(inner)),
        Principal::Authenticated(None) => "anyone with an identity".to_owned(),
        Principal::Authenticated(Some(matcher)) => text(matcher),
        Principal::DirectRemoteIp(range) | Principal::RemoteIp(range) => format!("in {range}"),
        Principal::Header(matcher) => header(matcher),
        Principal::UrlPath(matcher) => format!("path {}", text(matcher)),
        Principal::Metadata(matcher) => metadata(matcher),
    }
}

fn describe(permission: &Permission) -> String {
    match permission {
        Permission::Any => "anything".to_owned(),
        Permission::And(all) => all.iter().map(describe).collect::<Vec<_>>().join(" and "),
        Permission::Or(any) => any_of(any.iter().map(describe)),
        Permission::Not(inner) => format!("not {}", describe(inner)),
        Permission::Header(matcher) => header(matcher),
        Permission::UrlPath(matcher) => format!("path {}", text(matcher)),
        Permission::DestinationIp(range) => format!("destination in {range}"),
        Permission::DestinationPort(port) => format!("destination port {port}"),
        Permission::DestinationPortRange(start, end) => {
            format!("destination port from {start} to below {end}")
        }
        Permission::Metadata(matcher) => metadata(matcher),
        Permission::RequestedServerName(matcher) => format!("server name {}", text(matcher)),
    }
}

fn metadata(matcher: &MetadataMatcher) -> String {
    let not = if matcher.invert { "not " } else { "" };
    format!("{not}as wanted by {} of {}", matcher.path.join("."), matcher.filter)
}

fn header(matcher: &HeaderMatcher) -> String {
    let name = match matcher.name.as_str() {
        ":method" => "method".to_owned(),
        name => format!("header {name}"),
    };
    let not = if matcher.invert { "not " } else { "" };
    match &matcher.value {
        HeaderValueMatch::Present(true) => format!("{name} {not}there"),
        HeaderValueMatch::Present(false) => format!("{name} {not}absent"),
        HeaderValueMatch::Text(value) => format!("{name} {not}{}", text(value)),
        HeaderValueMatch::Range { start, end } => format!("{name} {not}from {start} to below {end}"),
    }
}

fn text(matcher: &StringMatcher) -> String {
    match &matcher.pattern {
        Pattern::Exact(text) => text.clone(),
        Pattern::Prefix(text) => format!("{text}*"),
        Pattern::Suffix(text) => format!("*{text}"),
        Pattern::Contains(text) => format!("*{text}*"),
        Pattern::Regex(regex) => format!("~{}", regex.source()),
    }
}
