//! Authorization rules.

use pillion_model::metadata::MetadataMatcher;
use pillion_model::rbac::{Action, Permission, Policy, Principal, Rbac};

use super::matcher::{cidr, header, metadata, path, string};
use crate::pb;
use pb::rbac::permission::{Rule, Set as Rules};
use pb::rbac::principal::{Identifier, Set as Identifiers};

pub(super) fn rules(rules: &Rbac) -> pb::rbac::Rbac {
    use pb::rbac::rbac::Action as A;
    let action = match rules.action {
        Action::Allow => A::Allow,
        Action::Deny => A::Deny,
        Action::Log => A::Log,
    };
    pb::rbac::Rbac {
        action: action.into(),
        policies: rules.policies.iter().map(|(name, one)| (name.clone(), policy(one))).collect(),
        audit_logging_options: None,
    }
}

fn policy(policy: &Policy) -> pb::rbac::Policy {
    pb::rbac::Policy {
        permissions: policy.permissions.iter().map(permission).collect(),
        principals: policy.principals.iter().map(principal).collect(),
        ..Default::default()
    }
}

fn permission(one: &Permission) -> pb::rbac::Permission {
    let set = |all: &[Permission]| Rules { rules: all.iter().map(permission).collect() };
    pb::rbac::Permission {
        rule: Some(match one {
            Permission::Any => Rule::Any(true),
            Permission::And(all) => Rule::AndRules(set(all)),
            Permission::Or(any) => Rule::OrRules(set(any)),
            Permission::Not(inner) => Rule::NotRule(Box::new(permission(inner))),
            Permission::Header(matcher) => Rule::Header(header(matcher)),
            Permission::UrlPath(matcher) => Rule::UrlPath(path(matcher)),
            Permission::DestinationIp(range) => Rule::DestinationIp(cidr(range)),
            Permission::DestinationPort(port) => Rule::DestinationPort((*port).into()),
            Permission::DestinationPortRange(start, end) => {
                Rule::DestinationPortRange(pb::types::Int32Range { start: *start, end: *end })
            }
            Permission::Metadata(matcher) => Rule::SourcedMetadata(found(matcher)),
            Permission::RequestedServerName(matcher) => Rule::RequestedServerName(string(matcher)),
        }),
    }
}

fn principal(one: &Principal) -> pb::rbac::Principal {
    let set = |all: &[Principal]| Identifiers { ids: all.iter().map(principal).collect() };
    pb::rbac::Principal {
        identifier: Some(match one {
            Principal::Any => Identifier::Any(true),
            Principal::And(all) => Identifier::AndIds(set(all)),
            Principal::Or(any) => Identifier::OrIds(set(any)),
            Principal::Not(inner) => Identifier::NotId(Box::new(principal(inner))),
            Principal::Authenticated(matcher) => {
                Identifier::Authenticated(pb::rbac::principal::Authenticated {
                    principal_name: matcher.as_ref().map(string),
                })
            }
            Principal::DirectRemoteIp(range) => Identifier::DirectRemoteIp(cidr(range)),
            Principal::RemoteIp(range) => Identifier::RemoteIp(cidr(range)),
            Principal::Header(matcher) => Identifier::Header(header(matcher)),
            Principal::Metadata(matcher) => Identifier::SourcedMetadata(found(matcher)),
            Principal::UrlPath(matcher) => Identifier::UrlPath(path(matcher)),
        }),
    }
}

/// What filters have found out.
fn found(matcher: &MetadataMatcher) -> pb::rbac::SourcedMetadata {
    pb::rbac::SourcedMetadata {
        metadata_matcher: Some(metadata(matcher)),
        metadata_source: pb::rbac::MetadataSource::Dynamic.into(),
    }
}
