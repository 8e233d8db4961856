//! Header changes as a filter.

use std::mem::take;

use pillion_model::filter::HeaderMutation;
use pillion_model::route::{HeaderChange, HeaderChanges};

use crate::decode::Context;
use crate::decode::policy::addition;
use crate::pb;

pub(super) fn filter(cx: &mut Context, mut m: pb::header_mutation::HeaderMutation) -> HeaderMutation {
    let changed = cx.some("mutations", m.mutations.take(), changes);
    let filter = HeaderMutation {
        changes: changed.unwrap_or_default(),
        most_specific_wins: take(&mut m.most_specific_header_mutations_wins),
    };
    cx.rest(&m);
    filter
}

pub(super) fn changes(cx: &mut Context, mut m: pb::header_mutation::Mutations) -> HeaderChanges {
    let changes = HeaderChanges {
        request: many(cx, "request_mutations", take(&mut m.request_mutations)),
        response: many(cx, "response_mutations", take(&mut m.response_mutations)),
    };
    cx.rest(&m);
    changes
}

fn many(cx: &mut Context, field: &str, all: Vec<pb::mutation_rules::HeaderMutation>) -> Vec<HeaderChange> {
    cx.each(field, all, one).into_iter().flatten().collect()
}

fn one(cx: &mut Context, m: pb::mutation_rules::HeaderMutation) -> Option<HeaderChange> {
    use pb::mutation_rules::header_mutation::Action;
    let (field, change) = match m.action {
        Some(Action::Remove(name)) => ("remove", HeaderChange::Remove(name.to_ascii_lowercase())),
        Some(Action::Append(option)) => ("append", cx.at("append", |cx| addition(cx, option))),
        Some(Action::RemoveOnMatch(_)) => {
            cx.refuse_at("remove_on_match", "is not supported; supported: remove, append");
            return None;
        }
        None => {
            cx.refuse("does nothing; want remove or append");
            return None;
        }
    };
    let name = match &change {
        HeaderChange::Remove(name) | HeaderChange::Add { name, .. } => name,
    };
    if name.starts_with(':') || name == "host" {
        cx.refuse_at(field, format!("`{name}` cannot be changed here; use a host or path rewrite"));
    }
    Some(change)
}
