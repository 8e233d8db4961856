//! `pillion explain`: what would happen to a request, and why.

use std::str::FromStr;

use http::Method;
use serde_json::{Map, Value};

use crate::api::{self, ApiArguments};
use crate::output::{self, Format, OutputArguments, Rows, line};

/// Arguments of `pillion explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The called service: `orders.shop`, or any of its DNS names.
    service: String,
    /// The calling service: `web.shop`; without it, a caller without identity.
    #[arg(long, env = "PILLION_CALLER", value_name = "SERVICE")]
    caller: Option<String>,
    /// The port's name or number; without it 80 if there is one, else the first.
    #[arg(long, env = "PILLION_PORT", value_name = "PORT")]
    port: Option<String>,
    /// The request's method.
    #[arg(long, env = "PILLION_METHOD", default_value = "GET")]
    method: String,
    /// The request's path, with its query.
    #[arg(long, env = "PILLION_PATH", default_value = "/")]
    path: String,
    /// A header of the request: `x-beta: 1`; several may be given.
    #[arg(long, env = "PILLION_HEADER", value_name = "NAME: VALUE")]
    header: Vec<HeaderText>,
    #[command(flatten)]
    api: ApiArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// `name: value`.
#[derive(Clone, Debug)]
struct HeaderText {
    name: String,
    value: String,
}

impl FromStr for HeaderText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) =
            text.split_once(':').ok_or_else(|| format!("`{text}` is not of the form name: value"))?;
        Ok(Self { name: name.trim().to_ascii_lowercase(), value: value.trim().to_owned() })
    }
}

/// Asks the registry, which answers by the functions that the proxies use.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let headers: Map<String, Value> =
        arguments.header.iter().map(|header| (header.name.clone(), header.value.clone().into())).collect();
    let mut question = Map::new();
    question.insert("service".to_owned(), arguments.service.into());
    question.insert("method".to_owned(), arguments.method.into());
    question.insert("path".to_owned(), arguments.path.into());
    question.insert("headers".to_owned(), headers.into());
    for (field, value) in [("caller", arguments.caller), ("port", arguments.port)] {
        if let Some(value) = value {
            question.insert(field.to_owned(), value.into());
        }
    }
    let json = [("content-type", "application/json")];
    let client = arguments.api.client()?;
    let answer =
        client.request(Method::POST, "/v1/explain", &json, Value::Object(question).to_string()).await?;
    let explanation = api::json(&answer)?;
    match arguments.output.format {
        Format::Table => line(render(&explanation)),
        format => output::print(format, &explanation, || Rows::new([])),
    }
}

/// An explanation as lines for people.
fn render(explanation: &Value) -> String {
    let mut lines = Vec::new();
    let mut add = |label: &str, text: String| lines.push(format!("{label:<10} {text}"));
    let said = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    add("caller", explanation["caller"].as_str().unwrap_or("without identity").to_owned());
    if explanation["caller"].is_string() && explanation["callerKnown"] == false {
        add("", "no service of this name is known; what follows holds once it is there".to_owned());
    }
    add("service", format!("{}, port {}", said(&explanation["service"]), said(&explanation["port"])));
    if let Some(request) = explanation["request"].as_str() {
        add("request", request.to_owned());
    }
    let route = &explanation["route"];
    if route.is_object() {
        add(
            "route",
            format!(
                "{} in {}: {}",
                said(&route["name"]),
                said(&route["configuration"]),
                said(&route["action"])
            ),
        );
        for (label, field) in [("timeout", "timeout"), ("retries", "retries")] {
            if let Some(text) = route[field].as_str() {
                add(label, text.to_owned());
            }
        }
    }
    for destination in explanation["destinations"].as_array().into_iter().flatten() {
        let subset = match destination["subset"].as_str() {
            None | Some("") => "all instances".to_owned(),
            Some(subset) => format!("subset {subset}"),
        };
        let percent = destination["percent"].as_f64().unwrap_or_default();
        add(
            "to",
            format!("{}, {subset}: {} %", said(&destination["service"]), (percent * 100.0).round() / 100.0),
        );
        for endpoint in destination["endpoints"].as_array().into_iter().flatten() {
            let text = ["instance", "address", "health"].map(|field| said(&endpoint[field])).join(" ");
            add("", format!("{text} weight {}", endpoint["weight"]));
        }
        if let Some(count @ 1..) = destination["withoutSidecar"].as_u64() {
            add("", format!("{count} left out: no sidecar, and mutual TLS is strict"));
        }
        let decision = &destination["authorization"];
        for policy in decision["policies"].as_array().into_iter().flatten() {
            let matched = if policy["matched"] == true { "matches" } else { "does not match" };
            let dry_run = if policy["dryRun"] == true { ", dry run" } else { "" };
            let (name, action, reason) =
                (said(&policy["policy"]), said(&policy["action"]), said(&policy["reason"]));
            add("policy", format!("{name} ({action}{dry_run}) {matched}: {reason}"));
        }
        let word = if decision["allowed"] == true { "allowed" } else { "refused" };
        add("decision", format!("{word}: {}", said(&decision["reason"])));
    }
    add("outcome", said(&explanation["outcome"]));
    lines.join("\n")
}
