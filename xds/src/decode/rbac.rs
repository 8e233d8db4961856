//! Authorization rules.

use std::collections::BTreeMap;
use std::mem::take;

use pillion_model::metadata::MetadataMatcher;
use pillion_model::rbac::{Action, Permission, Policy, Principal, Rbac};

use super::Context;
use super::context::ignored;
use super::matcher::{cidr, header, metadata, path, string};
use crate::pb;
use pb::rbac::permission::Rule;
use pb::rbac::principal::Identifier;

/// Deepest nesting of permissions and principals.
const DEPTH_MAX: usize = 32;

pub(super) fn rules(cx: &mut Context, mut rules: pb::rbac::Rbac) -> Rbac {
    use pb::rbac::rbac::Action as A;
    ignored!(cx, rules, audit_logging_options);
    let action = match A::try_from(rules.action) {
        Ok(A::Allow) => Action::Allow,
        Ok(A::Deny) => Action::Deny,
        Ok(A::Log) => Action::Log,
        Err(_) => {
            cx.refuse_at("action", format!("got {}, want ALLOW, DENY or LOG", rules.action));
            Action::Deny
        }
    };
    let sorted: BTreeMap<String, pb::rbac::Policy> = rules.policies.into_iter().collect();
    let policies = sorted
        .into_iter()
        .map(|(name, one)| {
            let one = cx.at(format_args!("policies[\"{name}\"]"), |cx| policy(cx, one));
            (name, one)
        })
        .collect();
    Rbac { action, policies }
}

fn policy(cx: &mut Context, mut policy: pb::rbac::Policy) -> Policy {
    let permissions = take(&mut policy.permissions);
    let principals = take(&mut policy.principals);
    // Envoy refuses these too: a DENY rule that can never match is not what anybody meant.
    if permissions.is_empty() {
        cx.refuse_at("permissions", "is empty; want at least one, such as {any: true}");
    }
    if principals.is_empty() {
        cx.refuse_at("principals", "is empty; want at least one, such as {any: true}");
    }
    cx.rest(&policy);
    Policy {
        permissions: cx.each("permissions", permissions, |cx, one| permission(cx, one, 0)),
        principals: cx.each("principals", principals, |cx, one| principal(cx, one, 0)),
    }
}

const PERMISSIONS: &str = "any, and_rules, or_rules, not_rule, header, url_path, destination_ip, destination_port, \
                           destination_port_range, requested_server_name, metadata, sourced_metadata";

fn permission(cx: &mut Context, one: pb::rbac::Permission, depth: usize) -> Permission {
    if depth > DEPTH_MAX {
        cx.refuse(format!("is nested more than {DEPTH_MAX} deep"));
        return Permission::Any;
    }
    let set = |cx: &mut Context, field: &str, all: pb::rbac::permission::Set| {
        if all.rules.is_empty() {
            cx.refuse_at(format_args!("{field}.rules"), "is empty; want at least one");
        }
        cx.at(field, |cx| cx.each("rules", all.rules, |cx, one| permission(cx, one, depth + 1)))
    };
    match one.rule {
        Some(Rule::Any(true)) => Permission::Any,
        Some(Rule::AndRules(all)) => Permission::And(set(cx, "and_rules", all)),
        Some(Rule::OrRules(any)) => Permission::Or(set(cx, "or_rules", any)),
        Some(Rule::NotRule(inner)) => {
            Permission::Not(Box::new(cx.at("not_rule", |cx| permission(cx, *inner, depth + 1))))
        }
        Some(Rule::Header(matcher)) => Permission::Header(cx.at("header", |cx| header(cx, matcher))),
        Some(Rule::UrlPath(matcher)) => Permission::UrlPath(cx.at("url_path", |cx| path(cx, matcher))),
        Some(Rule::DestinationIp(range)) => {
            Permission::DestinationIp(cx.at("destination_ip", |cx| cidr(cx, range)))
        }
        Some(Rule::DestinationPort(port)) => Permission::DestinationPort(cx.port("destination_port", port)),
        Some(Rule::DestinationPortRange(range)) => {
            if range.start >= range.end {
                cx.refuse_at("destination_port_range", format!("{}..{} is empty", range.start, range.end));
            }
            Permission::DestinationPortRange(range.start, range.end)
        }
        Some(Rule::Metadata(matcher)) => Permission::Metadata(cx.at("metadata", |cx| metadata(cx, matcher))),
        Some(Rule::SourcedMetadata(m)) => Permission::Metadata(sourced(cx, m)),
        Some(Rule::RequestedServerName(matcher)) => {
            Permission::RequestedServerName(cx.at("requested_server_name", |cx| string(cx, matcher)))
        }
        other => {
            let field = match other {
                None => "",
                Some(Rule::Any(_)) => "any",
                Some(Rule::Matcher(_)) => "matcher",
                Some(_) => "uri_template",
            };
            unsupported(cx, field, PERMISSIONS);
            Permission::Any
        }
    }
}

const PRINCIPALS: &str = "any, and_ids, or_ids, not_id, authenticated, direct_remote_ip, remote_ip, header, url_path, metadata, \
     sourced_metadata";

fn principal(cx: &mut Context, one: pb::rbac::Principal, depth: usize) -> Principal {
    if depth > DEPTH_MAX {
        cx.refuse(format!("is nested more than {DEPTH_MAX} deep"));
        return Principal::Any;
    }
    let set = |cx: &mut Context, field: &str, all: pb::rbac::principal::Set| {
        if all.ids.is_empty() {
            cx.refuse_at(format_args!("{field}.ids"), "is empty; want at least one");
        }
        cx.at(field, |cx| cx.each("ids", all.ids, |cx, one| principal(cx, one, depth + 1)))
    };
    match one.identifier {
        Some(Identifier::Any(true)) => Principal::Any,
        Some(Identifier::AndIds(all)) => Principal::And(set(cx, "and_ids", all)),
        Some(Identifier::OrIds(any)) => Principal::Or(set(cx, "or_ids", any)),
        Some(Identifier::NotId(inner)) => {
            Principal::Not(Box::new(cx.at("not_id", |cx| principal(cx, *inner, depth + 1))))
        }
        Some(Identifier::Authenticated(peer)) => Principal::Authenticated(
            cx.at("authenticated", |cx| cx.some("principal_name", peer.principal_name, string)),
        ),
        Some(Identifier::DirectRemoteIp(range)) => {
            Principal::DirectRemoteIp(cx.at("direct_remote_ip", |cx| cidr(cx, range)))
        }
        Some(Identifier::RemoteIp(range)) => Principal::RemoteIp(cx.at("remote_ip", |cx| cidr(cx, range))),
        Some(Identifier::Header(matcher)) => Principal::Header(cx.at("header", |cx| header(cx, matcher))),
        Some(Identifier::Metadata(matcher)) => {
            Principal::Metadata(cx.at("metadata", |cx| metadata(cx, matcher)))
        }
        Some(Identifier::SourcedMetadata(m)) => Principal::Metadata(sourced(cx, m)),
        Some(Identifier::UrlPath(matcher)) => Principal::UrlPath(cx.at("url_path", |cx| path(cx, matcher))),
        other => {
            let field = match other {
                None => "",
                Some(Identifier::Any(_)) => "any",
                Some(Identifier::SourceIp(_)) => "source_ip",
                Some(Identifier::FilterState(_)) => "filter_state",
                Some(_) => "custom",
            };
            unsupported(cx, field, PRINCIPALS);
            Principal::Any
        }
    }
}

/// What filters have found out; routes' own metadata is not kept.
fn sourced(cx: &mut Context, m: pb::rbac::SourcedMetadata) -> MetadataMatcher {
    cx.at("sourced_metadata", |cx| {
        if m.metadata_source != i32::from(pb::rbac::MetadataSource::Dynamic) {
            cx.refuse_at("metadata_source", "is not supported; supported: DYNAMIC");
        }
        if m.metadata_matcher.is_none() {
            cx.missing("metadata_matcher");
        }
        let matcher = m.metadata_matcher.unwrap_or_default();
        cx.at("metadata_matcher", |cx| metadata(cx, matcher))
    })
}

fn unsupported(cx: &mut Context, field: &str, supported: &str) {
    match field {
        "" => cx.refuse(format!("says nothing; want one of {supported}")),
        "any" => cx.refuse_at("any", "got false, want true"),
        field => cx.refuse_at(field, format!("is not supported; supported: {supported}")),
    }
}
