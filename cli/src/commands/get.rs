//! `pillion get`: services, instances and resources as the registry has them.

use anyhow::Context;
use pillion_config::Kind;
use serde_json::{Value, json};

use crate::api::{ApiArguments, Client};
use crate::exit::Usage;
use crate::output::{self, OutputArguments, Rows};

/// Arguments of `pillion get`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// services, instances, proxies, federations, brake, resources, or a kind of resource such as routes.
    what: String,
    /// Only this one: a service for services, instances and brake, a service or node for proxies, else a
    /// resource's name.
    name: Option<String>,
    /// Only this namespace.
    #[arg(short, long, env = "PILLION_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    api: ApiArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Lists what was asked for.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let client = arguments.api.client()?;
    let namespace = arguments.namespace.as_deref();
    if ["proxies", "proxy"].contains(&&*arguments.what.to_ascii_lowercase()) {
        let list = proxies(&client, arguments.name.as_deref(), namespace).await?;
        return output::print(arguments.output.format, &list, || proxy_rows(&list));
    }
    if ["federations", "federation"].contains(&&*arguments.what.to_ascii_lowercase()) {
        let list = federations(&client, arguments.name.as_deref(), namespace).await?;
        return output::print(arguments.output.format, &list, || federation_rows(&list));
    }
    let name = arguments.name.as_deref().map(|name| Name::parse(name, namespace)).transpose()?;
    let (list, rows): (Value, fn(&Value) -> Rows) = match &*arguments.what.to_ascii_lowercase() {
        "services" | "svc" => (services(&client, name.as_ref(), namespace).await?, service_rows),
        "instances" | "instance" => (instances(&client, name.as_ref(), namespace).await?, instance_rows),
        "brake" => (brake(&client, name.as_ref(), namespace).await?, brake_rows),
        "resources" if name.is_none() => (resources(&client, None, namespace).await?, resource_rows),
        "resources" => return Err(Usage("say of which kind: pillion get route NAME".to_owned()).into()),
        other => {
            let kind = kind(other)?;
            let list = match &name {
                Some(name) => resource(&client, kind, name).await?,
                None => resources(&client, Some(kind), namespace).await?,
            };
            (list, resource_rows)
        }
    };
    output::print(arguments.output.format, &list, || rows(&list))
}

/// A name with its namespace: `orders.shop`, or `orders` with `-n shop`.
pub(super) struct Name {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Name {
    /// Reads a name; a namespace beside it must be the name's own, if that has one.
    pub(super) fn parse(text: &str, namespace: Option<&str>) -> Result<Self, Usage> {
        let (name, own) = match text.split_once('.') {
            Some((name, own)) => (name, Some(own)),
            None => (text, None),
        };
        if let (Some(own), Some(other)) = (own, namespace.filter(|namespace| Some(*namespace) != own)) {
            return Err(Usage(format!(
                "`{text}` is in namespace {own}, and -n says {other}: leave one of them out"
            )));
        }
        let namespace = own.or(namespace).unwrap_or(pillion_model::name::DEFAULT_NAMESPACE);
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    fn service_path(&self) -> String {
        format!("/v1/namespaces/{}/services/{}", self.namespace, self.name)
    }
}

/// Reads a kind as people write it: `route`, `Routes`, `authorizationpolicies`.
pub(super) fn kind(text: &str) -> anyhow::Result<Kind> {
    let known = || {
        let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        Usage(format!(
            "`{text}` is unknown; want services, instances, proxies, federations, brake, resources or a kind: {}",
            kinds.join(", ")
        ))
    };
    Ok(Kind::parse_lenient(text).ok_or_else(known)?)
}

/// Path of a resource in the API.
pub(super) fn resource_path(kind: Kind, name: &Name) -> String {
    format!("/v1/resources/{}/{}/{}", kind.as_str(), name.namespace, name.name)
}

/// The service, as the catalog has it.
pub(super) async fn service(client: &Client, name: &Name) -> anyhow::Result<Value> {
    client.get(&name.service_path()).await
}

/// The instances of one service.
pub(super) async fn instances_of(client: &Client, name: &Name) -> anyhow::Result<Value> {
    let answer = client.get(&format!("{}/instances", name.service_path())).await?;
    Ok(answer["instances"].clone())
}

/// All resources of a kind.
pub(super) async fn resources(
    client: &Client,
    kind: Option<Kind>,
    namespace: Option<&str>,
) -> anyhow::Result<Value> {
    let kind = kind.map(|kind| format!("/{}", kind.as_str())).unwrap_or_default();
    let query = namespace.map(|namespace| format!("?namespace={namespace}")).unwrap_or_default();
    let answer = client.get(&format!("/v1/resources{kind}{query}")).await?;
    Ok(answer["resources"].clone())
}

async fn resource(client: &Client, kind: Kind, name: &Name) -> anyhow::Result<Value> {
    Ok(json!([client.get(&resource_path(kind, name)).await?]))
}

async fn services(client: &Client, name: Option<&Name>, namespace: Option<&str>) -> anyhow::Result<Value> {
    let path = match (name, namespace) {
        (Some(name), _) => return Ok(json!([service(client, name).await?])),
        (None, Some(namespace)) => format!("/v1/namespaces/{namespace}/services"),
        (None, None) => "/v1/services".to_owned(),
    };
    Ok(client.get(&path).await?["services"].clone())
}

async fn instances(client: &Client, name: Option<&Name>, namespace: Option<&str>) -> anyhow::Result<Value> {
    if let Some(name) = name {
        return instances_of(client, name).await;
    }
    let mut all = Vec::new();
    for service in services(client, None, namespace).await?.as_array().into_iter().flatten() {
        let field = |field: &str| service[field].as_str().context("a service has a namespace and a name");
        let name = Name { namespace: field("namespace")?.to_owned(), name: field("name")?.to_owned() };
        all.extend(instances_of(client, &name).await?.as_array().cloned().unwrap_or_default());
    }
    Ok(Value::Array(all))
}

/// The federations as they stand; by name or by trust domain.
async fn federations(client: &Client, name: Option<&str>, namespace: Option<&str>) -> anyhow::Result<Value> {
    let mut list = client.get("/v1/federations").await?["federations"].take();
    if let Some(all) = list.as_array_mut() {
        all.retain(|one| {
            name.is_none_or(|name| one["name"] == name || one["trustDomain"] == name)
                && namespace.is_none_or(|namespace| one["namespace"] == namespace)
        });
        if let (Some(name), true) = (name, all.is_empty()) {
            anyhow::bail!("there is no federation {name}");
        }
    }
    Ok(list)
}

fn federation_rows(list: &Value) -> Rows {
    let mut rows =
        Rows::new(["NAME", "TRUST DOMAIN", "ROOTS", "SEQUENCE", "AGE", "IMPORTED", "EXPORTED", "TROUBLE"]);
    for one in list.as_array().into_iter().flatten() {
        let number = |field: &str| one[field].as_u64().map_or_else(|| "-".to_owned(), |it| it.to_string());
        let names = |field: &str| {
            let names = one[field].as_array().into_iter().flatten().filter_map(Value::as_str);
            names.collect::<Vec<_>>().join(",")
        };
        let trouble = ["bundleError", "servicesError"].into_iter().filter_map(|field| one[field].as_str());
        rows.push([
            text(one, "name"),
            text(one, "trustDomain"),
            number("roots"),
            number("sequence"),
            one["bundleAge"].as_u64().map_or_else(|| "-".to_owned(), |age| format!("{age}s")),
            names("imported"),
            names("exported"),
            trouble.collect::<Vec<_>>().join("; "),
        ]);
    }
    rows
}

/// The brake, of all services or of those that were asked for.
async fn brake(client: &Client, name: Option<&Name>, namespace: Option<&str>) -> anyhow::Result<Value> {
    let mut brake = client.get("/v1/brake").await?;
    if let Some(name) = name {
        service(client, name).await?; // says so if there is none
    }
    let wanted = |of: &Value| {
        let is = |field: &str, want: Option<&str>| want.is_none_or(|want| of[field] == want);
        is("namespace", name.map(|name| &*name.namespace).or(namespace))
            && is("service", name.map(|name| &*name.name))
    };
    for list in ["services", "damped"] {
        if let Some(list) = brake[list].as_array_mut() {
            list.retain(wanted);
        }
    }
    Ok(brake)
}

fn service_rows(list: &Value) -> Rows {
    let mut rows = Rows::new(["NAMESPACE", "NAME", "PORTS", "SERVING", "INSTANCES", "ORIGIN"]);
    for service in list.as_array().into_iter().flatten() {
        let count = |health: &str| service["instances"][health].as_u64().unwrap_or(0).to_string();
        rows.push([
            text(service, "namespace"),
            text(service, "name"),
            ports(service),
            count("serving"),
            count("total"),
            text(service, "origin"),
        ]);
    }
    rows
}

/// Instances as a table.
pub(super) fn instance_rows(list: &Value) -> Rows {
    let mut rows =
        Rows::new(["NAMESPACE", "SERVICE", "ID", "ADDRESS", "PORTS", "SIDECAR", "HEALTH", "ZONE", "LABELS"]);
    for instance in list.as_array().into_iter().flatten() {
        let labels = instance["labels"].as_object().into_iter().flatten();
        let labels = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
        let inbound =
            instance["inboundPort"].as_u64().map_or_else(|| "-".to_owned(), |port| port.to_string());
        rows.push([
            text(instance, "namespace"),
            text(instance, "service"),
            text(instance, "id"),
            text(instance, "address"),
            ports(instance),
            inbound,
            health(instance),
            text(instance, "zone"),
            labels.collect::<Vec<_>>().join(","),
        ]);
    }
    rows
}

fn health(instance: &Value) -> String {
    let health = text(instance, "health");
    match instance["inputs"]["heldBack"].as_bool() {
        Some(true) => format!("{health} (held back)"),
        _ => health,
    }
}

fn resource_rows(list: &Value) -> Rows {
    let mut rows = Rows::new(["KIND", "NAMESPACE", "NAME", "TO"]);
    for resource in list.as_array().into_iter().flatten() {
        rows.push(["kind", "namespace", "name", "to"].map(|field| text(resource, field)));
    }
    rows
}

/// Connected proxies as a table.
pub(super) fn proxy_rows(list: &Value) -> Rows {
    let mut rows =
        Rows::new(["NODE", "IDENTITY", "AGENT", "VERSION", "STREAM", "PUSHES", "PENDING", "REFUSED"]);
    for proxy in list.as_array().into_iter().flatten() {
        let types = || proxy["types"].as_array().into_iter().flatten();
        let sum = |field: &str| types().filter_map(|kind| kind[field].as_u64()).sum::<u64>().to_string();
        let pending = types().filter(|kind| kind["inFlight"] == true).count().to_string();
        let texts = ["node", "identity", "userAgent", "version", "variant"].map(|field| text(proxy, field));
        rows.push(texts.into_iter().chain([sum("pushes"), pending, sum("refused")]));
    }
    rows
}

/// Those that were asked for: of a namespace, of a service, or one by its node id.
async fn proxies(client: &Client, asked: Option<&str>, namespace: Option<&str>) -> anyhow::Result<Value> {
    let mut list = client.get("/v1/proxies").await?["proxies"].clone();
    let prefix = match asked {
        Some(node) if node.contains('/') => format!("{}/", node.trim_end_matches('/')),
        Some(name) => {
            let name = Name::parse(name, namespace)?;
            format!("{}/{}/", name.namespace, name.name)
        }
        None => namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default(),
    };
    if let Some(list) = list.as_array_mut() {
        list.retain(|proxy| format!("{}/", text(proxy, "node")).starts_with(&prefix));
    }
    Ok(list)
}

fn brake_rows(brake: &Value) -> Rows {
    let mut rows =
        Rows::new(["NAMESPACE", "SERVICE", "INSTANCES", "DEPARTED", "BUDGET", "PROTECTED", "HELD BACK"]);
    let counts =
        |of: &Value| ["instances", "departed", "budget", "protected"].map(|field| of[field].to_string());
    let damped = brake["damped"].as_array().map_or(&[][..], Vec::as_slice);
    let [instances, departed, budget, protected] = counts(&brake["overall"]);
    let all = damped.len().to_string();
    rows.push(["*".to_owned(), "*".to_owned(), instances, departed, budget, protected, all]);
    for service in brake["services"].as_array().into_iter().flatten() {
        let [instances, departed, budget, protected] = counts(service);
        let same = |other: &&Value| ["namespace", "service"].iter().all(|f| other[f] == service[f]);
        let held = damped.iter().filter(same).count().to_string();
        let (namespace, service) = (text(service, "namespace"), text(service, "service"));
        rows.push([namespace, service, instances, departed, budget, protected, held]);
    }
    rows
}

fn ports(of: &Value) -> String {
    let ports = of["ports"].as_object().into_iter().flatten();
    let one = |(name, port): (&String, &Value)| {
        let protocol = port["protocol"].as_str().unwrap_or_default();
        let suffix = if name == protocol { String::new() } else { format!("/{protocol}") };
        format!("{name}:{}{suffix}", port["port"])
    };
    ports.map(one).collect::<Vec<_>>().join(",")
}

/// A field's text; `-` where there is none.
pub(super) fn text(value: &Value, field: &str) -> String {
    value[field].as_str().filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}
