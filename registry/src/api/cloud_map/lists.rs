//! Listing namespaces and services, so that their ids are found; and pages of any list.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Api;
use super::ARN;
use super::fault::Fault;

/// Which page of a list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PageRequest {
    max_results: Option<usize>,
    next_token: Option<String>,
}

/// A page, and where the next one begins.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) next: Next,
}

/// The token of the next page, if there is one: the last name of this one.
pub(super) struct Next(Option<String>);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct List {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(flatten)]
    page: PageRequest,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    name: String,
    values: Vec<String>,
    condition: Option<String>,
}

/// As in Cloud Map.
const RESULTS_MAX: usize = 100;
/// What a token begins with; behind it, the last name told.
const TOKEN: &str = "after:";

pub(super) fn namespaces(api: &Api, call: &List) -> Result<Value, Fault> {
    let wanted = call.wanted(&["NAME", "HTTP_NAME"])?;
    let world = api.catalog.world();
    let mut services: BTreeMap<&str, usize> = BTreeMap::new();
    for service in world.indexes.keys().filter(|service| is_wanted(&wanted, service.namespace())) {
        *services.entry(service.namespace()).or_default() += 1;
    }
    let Page { items, next } =
        call.page.cut(services.into_iter().map(|(name, count)| (name, (name, count))))?;
    let told = items.into_iter().map(|(name, count)| {
        json!({
            "Id": name,
            "Arn": format!("{ARN}namespace/{name}"),
            "Name": name,
            "Type": "HTTP",
            "ServiceCount": count,
            "Properties": {"HttpProperties": {"HttpName": name}},
        })
    });
    Ok(next.add_to(json!({"Namespaces": told.collect::<Vec<_>>()})))
}

pub(super) fn services(api: &Api, call: &List) -> Result<Value, Fault> {
    let wanted = call.wanted(&["NAMESPACE_ID"])?;
    let world = api.catalog.world();
    let services = world.indexes.keys().filter(|service| is_wanted(&wanted, service.namespace()));
    let mut named: Vec<(String, _)> = services.map(|service| (service.to_string(), service)).collect();
    named.sort();
    let Page { items, next } =
        call.page.cut(named.iter().map(|(id, service)| (id.as_str(), (id, *service))))?;
    let told = items.into_iter().map(|(id, service)| {
        let instances = world.catalog.services.get(service).map_or(0, |have| have.instances.size());
        json!({
            "Id": id,
            "Arn": format!("{ARN}service/{id}"),
            "Name": service.service(),
            "Type": "HTTP",
            "InstanceCount": instances,
            "HealthCheckCustomConfig": {"FailureThreshold": 1},
        })
    });
    Ok(next.add_to(json!({"Services": told.collect::<Vec<_>>()})))
}

fn is_wanted(wanted: &[Vec<&str>], name: &str) -> bool {
    wanted.iter().all(|names| names.contains(&name))
}

impl List {
    /// What the filters want the namespace to be, one list of names for each.
    fn wanted(&self, known: &[&str]) -> Result<Vec<Vec<&str>>, Fault> {
        self.filters.iter().map(|filter| filter.wanted(known)).collect()
    }
}

impl Filter {
    fn wanted(&self, known: &[&str]) -> Result<Vec<&str>, Fault> {
        let condition = self.condition.as_deref().unwrap_or("EQ");
        if !known.contains(&self.name.as_str()) || !["EQ", "IN"].contains(&condition) {
            let want = known.join(" or ");
            let message = format!("Filters: got {} {condition}, want {want} with EQ or IN", self.name);
            return Err(Fault::input(message));
        }
        // Ids here are names, and an ARN ends in one.
        Ok(self.values.iter().map(|value| value.rsplit_once('/').map_or(&**value, |(_, id)| id)).collect())
    }
}

impl PageRequest {
    /// Cuts one page out of items in the order of their names.
    pub(super) fn cut<'a, T>(&self, items: impl Iterator<Item = (&'a str, T)>) -> Result<Page<T>, Fault> {
        let max = self.max_results.unwrap_or(RESULTS_MAX);
        if !(1..=RESULTS_MAX).contains(&max) {
            return Err(Fault::input(format!("MaxResults: got {max}, want 1 to {RESULTS_MAX}")));
        }
        let after = match &self.next_token {
            None => "",
            Some(token) => token.strip_prefix(TOKEN).ok_or_else(|| {
                Fault::input(format!("NextToken: got `{token}`, want one of an earlier answer"))
            })?,
        };
        let mut rest = items.filter(|(name, _)| *name > after).peekable();
        let (mut page, mut last) = (Vec::new(), None);
        while page.len() < max
            && let Some((name, item)) = rest.next()
        {
            page.push(item);
            last = Some(name);
        }
        let next = rest.peek().and(last).map(str::to_owned);
        Ok(Page { items: page, next: Next(next) })
    }
}

impl Next {
    pub(super) fn add_to(self, mut answer: Value) -> Value {
        if let Some(token) = self.0 {
            answer["NextToken"] = Value::String(format!("{TOKEN}{token}"));
        }
        answer
    }
}
