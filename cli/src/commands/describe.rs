//! `pillion describe`: everything that bears on one service, or how far one proxy got.

mod proxy;

use pillion_config::Kind;
use serde_json::{Value, json};

use super::get::{Name, instance_rows, instances_of, resources, service};
use crate::api::ApiArguments;
use crate::output::{self, Format, OutputArguments, Rows, line, terminal_width};

/// Arguments of `pillion describe`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to describe.
    #[arg(value_enum)]
    what: What,
    /// Its name: `orders.shop`, or `orders` with `-n shop`; of a proxy its node, `shop/orders/orders-1`, or
    /// the service's name where it has one only.
    name: String,
    /// Its namespace.
    #[arg(short, long, env = "PILLION_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    api: ApiArguments,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// A service: instances, routes and policies.
    Service,
    /// A connected proxy: what it has acknowledged, what is on its way, what it refuses and why.
    Proxy,
}

/// Describes it.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let client = arguments.api.client()?;
    if let What::Proxy = arguments.what {
        let namespace = arguments.namespace.as_deref();
        return proxy::describe(&client, &arguments.name, namespace, arguments.output.format).await;
    }
    let name = Name::parse(&arguments.name, arguments.namespace.as_deref())?;
    let service = service(&client, &name).await?;
    let instances = instances_of(&client, &name).await?;
    let own = resources(&client, Some(Kind::Service), Some(&name.namespace)).await?;
    let own =
        own.as_array().and_then(|list| list.iter().find(|resource| resource["name"] == *name.name).cloned());
    let routes = pointing_at(&name, &resources(&client, Some(Kind::Route), None).await?);
    let policies = pointing_at(&name, &resources(&client, Some(Kind::AuthorizationPolicy), None).await?);
    let all = json!({
        "service": service,
        "resource": own,
        "instances": instances,
        "routes": routes,
        "policies": policies,
    });
    match arguments.output.format {
        Format::Table => line(sections(&name, &all)?),
        format => output::print(format, &all, || Rows::new([])),
    }
}

/// Those of `list` whose `to` is this service: `orders` in its own namespace, `orders.shop` anywhere.
fn pointing_at(name: &Name, list: &Value) -> Vec<Value> {
    let full = format!("{}.{}", name.name, name.namespace);
    let hits = |resource: &&Value| {
        let to = resource["to"].as_str().unwrap_or_default();
        to == full || (to == name.name && resource["namespace"] == *name.namespace)
    };
    list.as_array().into_iter().flatten().filter(hits).cloned().collect()
}

fn sections(name: &Name, all: &Value) -> anyhow::Result<String> {
    let mut parts = vec![format!("service {}.{}", name.name, name.namespace)];
    let origin = &all["service"]["origin"];
    parts.push(format!("origin: {}", origin.as_str().unwrap_or("unknown")));
    for (title, value) in
        [("resource", &all["resource"]), ("routes", &all["routes"]), ("policies", &all["policies"])]
    {
        let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        let text =
            if empty { "none".to_owned() } else { serde_saphyr::to_string(value)?.trim_end().to_owned() };
        parts.push(format!("{title}:\n{}", indented(&text)));
    }
    let table =
        instance_rows(&all["instances"]).render(terminal_width().map(|width| width.saturating_sub(2)));
    parts.push(format!("instances:\n{}", indented(&table)));
    Ok(parts.join("\n"))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_means_the_own_namespace() {
        let name = Name { namespace: "shop".to_owned(), name: "orders".to_owned() };
        let list = json!([
            {"name": "a", "namespace": "shop", "to": "orders"},
            {"name": "b", "namespace": "other", "to": "orders.shop"},
            {"name": "c", "namespace": "other", "to": "orders"},
            {"name": "d", "namespace": "shop", "to": "orders.other"},
        ]);
        let found = pointing_at(&name, &list);
        let names: Vec<_> =
            found.iter().map(|resource| resource["name"].as_str().unwrap_or_default()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
