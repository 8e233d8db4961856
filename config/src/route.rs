//! `kind: Route`: rules for requests to a service.

mod read;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::DurationText;
use crate::service::{Retry, Timeouts};

/// Rules for requests to a service, in order; the first that matches decides. A request that no rule of
/// any route matches goes to the whole service.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Route {
    /// Its namespace. Default `default`.
    #[schemars(default)]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The service, in the route's own namespace.
    pub to: String,
    /// Only this port, by name. Default: every http, http2 and grpc port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Rule {
    /// Which requests. Default: all.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<Match>,
    /// Shares of traffic. Default: the whole service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub split: Vec<Share>,
    /// Changes of the path or host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// Timeouts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeouts>,
    /// Retries; fields left out come from the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// A copy of requests to another service, whose answers are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Faults on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Header changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
    /// Answers with a redirect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Answers here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub respond: Option<Respond>,
    /// Cross-origin requests of browsers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
}

/// Which requests: all of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Match {
    /// The path, without query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// One of these methods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub method: Vec<String>,
    /// All of these headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub headers: Vec<HeaderMatch>,
    /// All of these query parameters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub query: Vec<QueryMatch>,
    /// gRPC calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcMatch>,
}

/// The path, without query.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// This path and everything below it: `/v2` matches `/v2` and `/v2/x`, not `/v20`.
    Prefix(String),
    /// This path.
    Exact(String),
    /// The whole path by regular expression.
    Regex(String),
}

/// One header.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Its name.
    pub name: String,
    /// What it must be.
    #[serde(flatten)]
    pub value: ValueMatch,
    /// Turn the result around. A missing header still does not match.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub invert: bool,
    /// Without regard to case.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub ignore_case: bool,
}

/// One query parameter.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryMatch {
    /// Its name.
    pub name: String,
    /// What it must be.
    #[serde(flatten)]
    pub value: ValueMatch,
}

/// What a header's or parameter's value must be.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ValueMatch {
    /// This text.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Holds.
    Contains(String),
    /// The whole value by regular expression.
    Regex(String),
    /// There or not.
    Present(bool),
    /// A whole number in a range (headers only).
    Range(NumberRange),
}

/// Whole numbers from `start`, up to but without `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct NumberRange {
    /// First number that matches.
    pub start: i64,
    /// First number that no longer matches.
    pub end: i64,
}

/// gRPC calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct GrpcMatch {
    /// Full name, such as `shop.v1.Orders`. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Method of that service. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// A share of traffic.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Share {
    /// Another service: `orders`, or `orders.shop`. Default: the route's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// A subset. Default: all instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// Its part of the sum of all weights. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// Changes of the path or host.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Rewrite {
    /// Replaces what the match's prefix or exact path matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Replaces what a regular expression matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<RegexRewrite>,
    /// Replaces the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// Replaces what a regular expression matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct RegexRewrite {
    /// The expression.
    pub pattern: String,
    /// The replacement; `\1` names a group.
    pub substitution: String,
}

/// A copy of requests to another service.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Mirror {
    /// The service: `orders-shadow`, or `orders-shadow.shop`.
    pub service: String,
    /// A subset of it. Default: all instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// Share of requests. Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

/// Faults on purpose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Fault {
    /// Answers with a status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
}

/// Answers with a status.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Abort {
    /// The status, 200 to 599.
    pub status: u16,
    /// Share of requests. Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

/// Waits.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Delay {
    /// How long.
    pub fixed: DurationText,
    /// Share of requests. Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

/// Header changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Headers {
    /// On requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<HeaderEdits>,
    /// On answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<HeaderEdits>,
}

/// Header changes of one direction; removals come first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct HeaderEdits {
    /// Replaces or sets.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub set: BTreeMap<String, String>,
    /// Adds beside what is there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub add: BTreeMap<String, String>,
    /// Removes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub remove: Vec<String>,
}

/// Answers with a redirect.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308. Default 301.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// `http` or `https`. Default: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Default: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Default: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Replaces the whole path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Replaces what the match's prefix or exact path matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Drops the query. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub strip_query: bool,
}

/// Answers here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Respond {
    /// The status, 200 to 599.
    pub status: u16,
    /// The body, at most 4096 bytes. Default: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(default)]
    pub body: String,
}

/// Cross-origin requests of browsers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Cors {
    /// Origins: `https://shop.example.com`, `https://*` (anything that begins so), or `*`.
    pub allow_origins: Vec<String>,
    /// Methods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub allow_methods: Vec<String>,
    /// Request headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub allow_headers: Vec<String>,
    /// Answer headers that scripts may read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub expose_headers: Vec<String>,
    /// How long a browser may remember.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<DurationText>,
    /// Whether cookies may come along. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub allow_credentials: bool,
}
