//! `pillion schema`: the JSON Schema of resources, for editors.

use anyhow::Context;
use pillion_config::Kind;

use crate::output::line;

/// Arguments of `pillion schema`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this kind, such as `Service`; without it, any resource.
    kind: Option<String>,
}

/// Prints the schema.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut schema = pillion_config::schema();
    if let Some(text) = &arguments.kind {
        let kind = Kind::parse_lenient(text).with_context(|| {
            let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("`{text}` is no kind; want one of {}", known.join(", "))
        })?;
        let object = schema.as_object_mut().context("the schema is an object")?;
        object.remove("oneOf");
        object.insert("title".to_owned(), kind.as_str().into());
        object.insert("$ref".to_owned(), format!("#/$defs/{}", kind.as_str()).into());
    }
    line(serde_json::to_string_pretty(&schema).context("write JSON")?)
}
