//! The documentation's snippets are kept true: every command parses, every configuration is valid.

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::arguments::Arguments;

/// A fenced block of a Markdown file.
struct Block {
    place: String,
    language: String,
    text: String,
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().expect("docs can be read") {
            let path = entry.expect("docs can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

fn blocks(page: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(page).expect("a page can be read");
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        match (open, line.trim_start().strip_prefix("```")) {
            (false, Some(language)) => {
                let place = format!("{}:{}", page.display(), number + 1);
                blocks.push(Block { place, language: language.trim().to_owned(), text: String::new() });
                open = true;
            }
            (true, Some(_)) => open = false,
            (true, None) => {
                let block = blocks.last_mut().expect("a block is open");
                block.text.push_str(line);
                block.text.push('\n');
            }
            (false, None) => {}
        }
    }
    assert!(!open, "{}: a block is not closed", page.display());
    blocks
}

/// The commands of a shell block: in `console` blocks the lines after `$ `, in `sh` blocks all.
fn commands(block: &Block) -> Vec<String> {
    let joined = block.text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    match &*block.language {
        "console" => lines.filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned).collect(),
        "sh" => lines.map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// The words of the `pillion` call in a line of shell, if there is one.
fn pillion_words(line: &str) -> Option<Vec<String>> {
    let line = line.split(" | ").next().unwrap_or(line).split(" > ").next().unwrap_or(line);
    let line = line.split(" # ").next().unwrap_or(line).trim().trim_end_matches('&').trim();
    let words: Vec<String> = split(line);
    let mut words = words.into_iter().skip_while(|word| is_assignment(word) || word == "sudo");
    match words.next()?.as_str() {
        "pillion" => Some(words.collect()),
        "cargo" => {
            let rest: Vec<String> = words.collect();
            let dashes = rest.iter().position(|word| word == "--")?;
            (rest[0] == "run").then(|| rest[dashes + 1..].to_vec())
        }
        _ => None,
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    })
}

/// Splits at spaces outside quotes.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, ' ') => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (_, c) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn every_command_in_the_docs_exists_with_its_flags() {
    let mut seen = 0;
    for block in pages().iter().flat_map(|page| blocks(page)) {
        for line in commands(&block) {
            let Some(words) = pillion_words(&line) else { continue };
            seen += 1;
            let outcome = Arguments::try_parse_from(std::iter::once("pillion".to_owned()).chain(words));
            if let Err(error) = outcome {
                let shown = matches!(
                    error.kind(),
                    clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
                );
                assert!(shown, "{}: `{line}`:\n{error}", block.place);
            }
        }
    }
    assert!(seen > 5, "only {seen} commands found: is the search still right?");
}

#[test]
fn every_developer_command_in_the_docs_exists() {
    let main = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/src/main.rs");
    let main = std::fs::read_to_string(main).expect("xtask can be read").to_lowercase();
    for block in pages().iter().flat_map(|page| blocks(page)) {
        for line in commands(&block) {
            let Some(rest) = line.strip_prefix("cargo xtask ") else { continue };
            let name = rest.split(' ').next().unwrap_or_default();
            assert!(main.contains(&format!("command::{name} ")), "{}: `{line}`", block.place);
        }
    }
}

/// The meshes that the docs speak of, each as the other one knows it.
fn federations() -> Vec<pillion_config::Positioned<pillion_config::Resource>> {
    let text = ["acme", "umbrella"].map(|name| {
        format!("kind: Federation\nname: {name}\ntrustDomain: {name}.example\nbundle: {{url: https://{name}.example:7072/, trusted: x}}\nservices: {name}.example:7072\n")
    });
    let source = pillion_config::Source::new("federations.yaml", text.join("---\n").as_str());
    pillion_config::parse(&[source]).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

#[test]
fn every_resource_in_the_docs_is_valid() {
    let mut seen = 0;
    for block in pages().iter().flat_map(|page| blocks(page)) {
        if block.language != "yaml" || !block.text.contains("kind:") {
            continue;
        }
        seen += 1;
        let source = pillion_config::Source::new(&format!("{}.yaml", block.place), &block.text);
        let resources = pillion_config::parse(&[source]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let mut set = pillion_config::ResourceSet::default();
        // A snippet may speak of other meshes, and of services, that another one defines.
        for resource in federations().iter().chain(&resources) {
            set.insert(resource.value.clone());
        }
        let problems = pillion_config::check_among(&set, &|_| true);
        assert!(problems.is_empty(), "{}", pillion_config::locate(&problems, &resources));
    }
    assert!(seen > 0, "no resource found: is the search still right?");
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page can be read");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let folder = page.parent().expect("a page is in a folder");
            assert!(folder.join(target).exists(), "{}: the link to {link} leads nowhere", page.display());
        }
    }
}
