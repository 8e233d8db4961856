//! `pillion describe proxy`.

use anyhow::bail;
use serde_json::{Value, json};

use super::indented;
use crate::api::Client;
use crate::commands::get::{Name, text};
use crate::output::{self, Format, Rows, line, terminal_width};

pub(super) async fn describe(
    client: &Client,
    name: &str,
    namespace: Option<&str>,
    format: Format,
) -> anyhow::Result<()> {
    let node = node(client, name, namespace).await?;
    let proxy = client.get(&format!("/v1/proxies/{node}")).await?;
    match format {
        Format::Table => {
            let streams = proxy["streams"].as_array().into_iter().flatten().map(stream);
            line(streams.collect::<Vec<_>>().join("\n\n"))
        }
        format => output::print(format, &proxy, || Rows::new([])),
    }
}

/// The proxy's node id: as given, or of the only one of a service.
async fn node(client: &Client, name: &str, namespace: Option<&str>) -> anyhow::Result<String> {
    if name.contains('/') {
        return Ok(name.to_owned());
    }
    let service = Name::parse(name, namespace)?;
    let prefix = format!("{}/{}/", service.namespace, service.name);
    let all = client.get("/v1/proxies").await?;
    let nodes = all["proxies"].as_array().into_iter().flatten().map(|proxy| text(proxy, "node"));
    let mut nodes: Vec<String> = nodes.filter(|node| node.starts_with(&prefix)).collect();
    nodes.dedup();
    match nodes.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("no proxy of {}.{} is connected", service.name, service.namespace),
        several => bail!("{}.{} has several: {}", service.name, service.namespace, several.join(", ")),
    }
}

fn stream(proxy: &Value) -> String {
    let about = ["identity", "userAgent", "version", "variant"]
        .map(|field| format!("{field}: {}", text(proxy, field)));
    let width = terminal_width().map(|width| width.saturating_sub(2));
    let parts = [
        format!("proxy {}", text(proxy, "node")),
        about.join("\n"),
        format!("types:\n{}", indented(&type_rows(&proxy["types"]).render(width))),
        format!("resources:\n{}", indented(&resource_rows(&proxy["resources"]).render(width))),
    ];
    parts.join("\n")
}

fn type_rows(types: &Value) -> Rows {
    let mut rows = Rows::new(["TYPE", "ASKED FOR", "PUSHES", "ACCEPTED", "REFUSED", "PENDING", "LAST ERROR"]);
    for kind in types.as_array().into_iter().flatten() {
        let asked = if kind["wildcard"] == true { json!("all") } else { kind["subscriptions"].clone() };
        let number = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let pending = if kind["inFlight"] == true { "yes" } else { "no" };
        let counts = [&asked, &kind["pushes"], &kind["acks"], &kind["nacks"]].map(number);
        let texts = [pending.to_owned(), text(kind, "lastError")];
        rows.push(std::iter::once(text(kind, "name")).chain(counts).chain(texts));
    }
    rows
}

fn resource_rows(resources: &Value) -> Rows {
    let mut rows = Rows::new(["TYPE", "NAME", "STATE", "WHY"]);
    for resource in resources.as_array().into_iter().flatten() {
        rows.push(["type", "name", "state", "error"].map(|field| text(resource, field)));
    }
    rows
}
