//! Resource files named on the command line.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pillion_config::{Diagnostics, Format, Positioned, Resource, Source, Style};

use crate::exit::Usage;

/// Which endings a resource file may have; others in a folder are left alone.
const ENDINGS: [&str; 4] = ["yaml", "yml", "json", "toml"];

/// The `-f` of commands that read resources.
#[derive(Debug, clap::Args)]
pub(crate) struct FileArguments {
    /// Files or folders with resources (YAML, JSON or TOML); `-` reads YAML or JSON from stdin.
    #[arg(short, long = "file", env = "PILLION_FILE", value_name = "FILE", value_delimiter = ',')]
    file: Vec<PathBuf>,
    /// The same without the flag.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl FileArguments {
    /// Reads every file.
    pub(crate) fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let paths: Vec<&PathBuf> = self.file.iter().chain(&self.files).collect();
        if paths.is_empty() {
            return Err(Usage("no files given; name some: -f mesh.yaml".to_owned()).into());
        }
        let mut sources = Vec::new();
        for path in paths {
            if path.as_os_str() == "-" {
                sources.push(stdin()?);
            } else if path.is_dir() {
                let found = folder(path)?;
                anyhow::ensure!(!found.is_empty(), "{}: no .yaml, .yml, .json or .toml file", path.display());
                sources.extend(found);
            } else {
                sources.push(read(path)?);
            }
        }
        Ok(sources)
    }

    /// Reads every resource of every file; the error lists all mistakes.
    pub(crate) fn resources(&self) -> anyhow::Result<Result<Vec<Positioned<Resource>>, Diagnostics>> {
        Ok(pillion_config::parse(&self.sources()?))
    }
}

/// Prints mistakes with excerpts to stderr, and counts them on a last line.
pub(crate) fn show(diagnostics: &Diagnostics) -> anyhow::Error {
    let count = diagnostics.0.len();
    crate::output::note(diagnostics.render(Style::Coloured));
    let mistakes = if count == 1 { "1 mistake".to_owned() } else { format!("{count} mistakes") };
    anyhow::anyhow!("{mistakes} found")
}

fn read(path: &Path) -> anyhow::Result<Source> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(Source::new(&path.display().to_string(), &text))
}

fn stdin() -> anyhow::Result<Source> {
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).context("read stdin")?;
    // JSON is YAML, but several JSON values one after the other are not.
    let format = if text.trim_start().starts_with(['{', '[']) { Format::Json } else { Format::Yaml };
    Ok(Source { name: "<stdin>".into(), text: text.into(), format })
}

fn folder(path: &Path) -> anyhow::Result<Vec<Source>> {
    let entries = path.read_dir().with_context(|| format!("read the folder {}", path.display()))?;
    let mut files = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(|| format!("read the folder {}", path.display()))?;
    files.retain(|file| file.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)));
    files.sort();
    files.iter().map(|file| read(file)).collect()
}
