//! `pillion diff`: what applying files would change, line by line. Exit code 1 if anything would.

use anyhow::Context;
use http::{Method, StatusCode};
use pillion_config::ResourceKey;

use super::get::{Name, resource_path};
use crate::api::{self, ApiArguments, Client};
use crate::exit::{BAD, Failed, GOOD};
use crate::files::{FileArguments, show};
use crate::output::line;

/// Arguments of `pillion diff`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    files: FileArguments,
    #[command(flatten)]
    api: ApiArguments,
}

/// Compares files and registry.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let resources = arguments.files.resources()?.map_err(|diagnostics| show(&diagnostics))?;
    let client = arguments.api.client()?;
    let mut differs = false;
    for resource in &resources {
        let key = resource.value.key();
        let new = serde_saphyr::to_string(&resource.value.to_json()).context("write YAML")?;
        let old = current(&client, &key).await?;
        if old == new {
            continue;
        }
        differs = true;
        line(key)?;
        for change in compare(&lines(&old), &lines(&new)) {
            match change {
                Change::Same(text) => line(format_args!("  {text}"))?,
                Change::Gone(text) => line(format_args!("{BAD}- {text}{BAD:#}"))?,
                Change::New(text) => line(format_args!("{GOOD}+ {text}{GOOD:#}"))?,
            }
        }
    }
    if differs { Err(Failed.into()) } else { Ok(()) }
}

/// The resource as the registry has it, as YAML; empty if it has none.
async fn current(client: &Client, key: &ResourceKey) -> anyhow::Result<String> {
    let name = Name { namespace: key.namespace.to_string(), name: key.name.to_string() };
    let answer = client.any(Method::GET, &resource_path(key.kind, &name), &[], "").await?;
    match answer.status {
        StatusCode::OK => serde_saphyr::to_string(&api::json(&answer)?).context("write YAML"),
        StatusCode::NOT_FOUND => Ok(String::new()),
        _ => Err(api::problem(&answer)),
    }
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Change<'a> {
    Same(&'a str),
    Gone(&'a str),
    New(&'a str),
}

/// The shortest way from `old` to `new`, by their longest common subsequence. Quadratic, which is
/// enough for resources of some hundred lines.
fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Change<'a>> {
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for (i, before) in old.iter().enumerate().rev() {
        for (j, after) in new.iter().enumerate().rev() {
            common[i][j] = if before == after {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut changes) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            changes.push(Change::Same(old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            changes.push(Change::Gone(old[i]));
            i += 1;
        } else {
            changes.push(Change::New(new[j]));
            j += 1;
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use Change::{Gone, New, Same};

    #[test]
    fn the_shortest_way_is_shown() {
        for (old, new, want) in [
            ("", "a", vec![New("a")]),
            ("a", "", vec![Gone("a")]),
            ("a b c", "a x c", vec![Same("a"), Gone("b"), New("x"), Same("c")]),
            ("a b", "b a", vec![Gone("a"), Same("b"), New("a")]),
        ] {
            let words = |text: &'static str| text.split_whitespace().collect::<Vec<_>>();
            assert_eq!(compare(&words(old), &words(new)), want, "{old} -> {new}");
        }
    }
}
