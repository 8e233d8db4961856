//! `pillion validate`: every mistake of every file, without asking anybody.

use pillion_config::{Diagnostics, Positioned, Resource, ResourceSet};
use serde_json::json;

use crate::exit::Failed;
use crate::files::{FileArguments, show};
use crate::output::{self, Format, OutputArguments, Rows};

/// Arguments of `pillion validate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    files: FileArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Checks the files and lists what they define.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let format = arguments.output.format;
    match check(arguments.files.resources()?) {
        Ok(resources) => list(format, &resources),
        Err(diagnostics) if format == Format::Table => Err(show(&diagnostics)),
        Err(diagnostics) => {
            output::print(format, &as_json(&diagnostics), || Rows::new([]))?;
            Err(Failed.into())
        }
    }
}

/// The rules that cross resources, once each resource is right by itself.
pub(crate) fn check(
    parsed: Result<Vec<Positioned<Resource>>, Diagnostics>,
) -> Result<Vec<Positioned<Resource>>, Diagnostics> {
    let resources = parsed?;
    let mut set = ResourceSet::default();
    for resource in &resources {
        set.insert(resource.value.clone());
    }
    let problems = pillion_config::check(&set);
    if problems.is_empty() { Ok(resources) } else { Err(pillion_config::locate(&problems, &resources)) }
}

fn list(format: Format, resources: &[Positioned<Resource>]) -> anyhow::Result<()> {
    let keys: Vec<_> = resources.iter().map(|resource| resource.value.key()).collect();
    let value = keys
        .iter()
        .map(|key| json!({"kind": key.kind.as_str(), "namespace": key.namespace, "name": key.name}))
        .collect();
    output::print(format, &value, || {
        let mut rows = Rows::new(["KIND", "NAMESPACE", "NAME", "VALID"]);
        for key in &keys {
            rows.push([
                key.kind.as_str().to_owned(),
                key.namespace.clone(),
                key.name.clone(),
                "yes".to_owned(),
            ]);
        }
        rows
    })
}

fn as_json(diagnostics: &Diagnostics) -> serde_json::Value {
    let one = |diagnostic: &pillion_config::Diagnostic| {
        let position = diagnostic.position();
        json!({
            "file": diagnostic.file(),
            "line": position.map(|position| position.line),
            "column": position.map(|position| position.column),
            "path": diagnostic.path,
            "message": diagnostic.message,
        })
    };
    diagnostics.0.iter().map(one).collect()
}
