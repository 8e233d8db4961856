//! `cargo xtask deny`: licences, sources and banned crates, by `deny.toml`.
//!
//! With cargo-deny installed it is asked (it knows more: duplicates, and what each exception is for).
//! Without it our own reading of the same file checks the three things that must never slip:
//! every licence is allowed, no banned crate is in the graph, every crate comes from crates.io.
//! Neither asks for security advisories here, because that database is on the network:
//! `cargo deny check advisories` does, where there is one.

use std::collections::BTreeSet;

use anyhow::Context;

use crate::process::{cargo, output, succeeds};

/// Checks the dependency graph; `false` when something is not allowed.
pub(crate) fn run() -> anyhow::Result<bool> {
    if output(&mut cargo(&["deny", "--version"])).is_some() {
        return succeeds(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]));
    }
    eprintln!("cargo-deny is not installed: checking licences, bans and sources of deny.toml ourselves");
    let file = crate::root().join("deny.toml");
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let rules = Rules::parse(&text).with_context(|| format!("read {}", file.display()))?;
    let arguments = ["--workspace", "--edges", "normal,build,dev", "--target", "x86_64-unknown-linux-gnu"];
    let mut tree = cargo(&["tree", "--quiet", "--prefix", "none", "--format", "{p}\t{l}"]);
    let text = output(tree.args(arguments)).context("cargo tree failed")?;
    let (checked, problems) = check(&rules, &text);
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    println!("{checked} crates checked, {} problems", problems.len());
    Ok(problems.is_empty())
}

/// What `deny.toml` says, as far as we read it.
struct Rules {
    licences: BTreeSet<String>,
    banned: BTreeSet<String>,
}

impl Rules {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let file: toml::Table = text.parse()?;
        let list = |section: &str, key: &str| -> anyhow::Result<Vec<toml::Value>> {
            let value = file.get(section).and_then(|section| section.get(key));
            value
                .and_then(|list| list.as_array().cloned())
                .with_context(|| format!("[{section}] has no list `{key}`"))
        };
        let licences = list("licenses", "allow")?;
        let banned = list("bans", "deny")?;
        let name = |value: &toml::Value| {
            let name = value.as_str().or_else(|| value.get("crate").and_then(toml::Value::as_str));
            name.map(str::to_owned).with_context(|| format!("[bans] deny: {value} names no crate"))
        };
        Ok(Self {
            licences: licences.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect(),
            banned: banned.iter().map(name).collect::<anyhow::Result<_>>()?,
        })
    }
}

/// How many crates were looked at, and what is wrong with them.
///
/// `tree` has a line `name v1.2.3 (source)<TAB>licence` per crate. (`cargo metadata` would not do:
/// it lists optional dependencies that no feature turns on.)
fn check(rules: &Rules, tree: &str) -> (usize, Vec<String>) {
    let lines = tree.lines().filter(|line| !line.is_empty());
    let crates: BTreeSet<&str> = lines.map(|line| line.trim_end_matches(" (*)")).collect();
    let mut problems = Vec::new();
    for line in &crates {
        let (package, licence) = line.split_once('\t').unwrap_or((line, ""));
        let package = package.trim_end_matches(" (proc-macro)");
        let name = package.split(' ').next().unwrap_or_default();
        if rules.banned.contains(name) {
            problems.push(format!(
                "{package} is banned by deny.toml; `cargo tree --invert {name}` shows who brings it"
            ));
        }
        if licence.is_empty() {
            problems.push(format!("{package} states no licence"));
        } else if !licence_is_allowed(licence, &rules.licences) {
            problems.push(format!("{package} has licence `{licence}`, which deny.toml does not allow"));
        }
        // A crate from crates.io shows no source, one of ours its folder.
        let source = package.split_once(" (").map_or("", |(_, source)| source.trim_end_matches(')'));
        if !(source.is_empty() || source.starts_with('/')) {
            problems.push(format!("{package} comes from {source}, not from crates.io"));
        }
    }
    (crates.len(), problems)
}

/// Whether an SPDX expression can be met by the allowed licences alone.
///
/// `OR` needs one side, `AND` both and binds closer; `/` is the old spelling of `OR`. A licence
/// `WITH` an exception is one name.
fn licence_is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any_of(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    match words.next() {
        Some("(") => any_of(words, allowed) & words.next_if_eq(&")").is_some(),
        Some(name) => {
            let exception = words.next_if_eq(&"WITH").and_then(|_| words.next());
            let full =
                exception.map_or_else(|| name.to_owned(), |exception| format!("{name} WITH {exception}"));
            allowed.contains(&full)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::parse("[licenses]\nallow = ['MIT', 'ISC', 'Apache-2.0 WITH LLVM-exception']\n[bans]\ndeny = [{crate = 'ring'}, 'rsa']\n")
            .expect("valid")
    }

    #[test]
    fn licence_expressions_are_met_by_allowed_licences() {
        for (expression, want) in [
            ("MIT", true),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("MIT AND ISC", true),
            ("ISC AND (MIT OR Apache-2.0)", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("(MIT", false),
            ("MIT ISC", false),
            ("", false),
        ] {
            assert_eq!(licence_is_allowed(expression, &rules().licences), want, "{expression}");
        }
    }

    #[test]
    fn banned_crates_strange_sources_and_missing_licences_are_named() {
        let tree = "ours v0.1.0 (/somewhere/ours)\tMIT\nring v1.0.0\tMIT\n\nb v1.0.0 (https://example/b#1)\tMIT\n\
                    c v1.0.0 (proc-macro)\t\nring v1.0.0\tMIT (*)\n";
        let (checked, problems) = check(&rules(), tree);
        assert_eq!(checked, 4);
        let text = problems.join("\n");
        for want in ["ring v1.0.0 is banned", "comes from https://example/b#1", "c v1.0.0 states no licence"]
        {
            assert!(text.contains(want), "{want} not in {text}");
        }
        assert_eq!(problems.len(), 3, "{text}");
    }
}
