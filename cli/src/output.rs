//! What commands print: tables for people, JSON and YAML for programs.
//!
//! Everything goes through [`anstream`], which drops colours where there is no terminal, and every
//! write reports its error: a closed pipe ends the command quietly (see [`crate::exit`]).

use std::io::Write;

use anyhow::Context;
use comfy_table::{ContentArrangement, Table};

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// The `-o` of every command that lists something.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct OutputArguments {
    /// How to print the answer.
    #[arg(short = 'o', long = "output", env = "PILLION_OUTPUT", value_enum, default_value_t, global = true)]
    pub(crate) format: Format,
}

/// A table without lines: a head and rows of plain text.
pub(crate) struct Rows {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Rows {
    /// An empty table with these column titles.
    pub(crate) fn new(head: impl IntoIterator<Item = &'static str>) -> Self {
        Self { head: head.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().collect());
    }

    /// The table as text, no wider than `width` if given: long cells wrap.
    pub(crate) fn render(&self, width: Option<u16>) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(self.head.iter().copied());
        for row in &self.rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        match width {
            Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.join("\n")
    }
}

/// Prints `value` as JSON or YAML, or what `rows` makes of it as a table.
pub(crate) fn print(
    format: Format,
    value: &serde_json::Value,
    rows: impl FnOnce() -> Rows,
) -> anyhow::Result<()> {
    match format {
        Format::Table => line(rows().render(terminal_width())),
        Format::Json => line(serde_json::to_string_pretty(value).context("write JSON")?),
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).context("write YAML")?;
            line(text.trim_end())
        }
    }
}

/// Prints one line to stdout.
pub(crate) fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).context("write to stdout")
}

/// Prints one line to stderr: what happens, as opposed to what was asked for.
pub(crate) fn note(text: impl std::fmt::Display) {
    // A note that cannot be shown changes nothing.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// How many columns the terminal on stdout has; `None` when stdout is no terminal.
pub(crate) fn terminal_width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_fit_the_width_they_are_given() {
        let mut rows = Rows::new(["NAME", "WHAT"]);
        rows.push(["orders".to_owned(), "a rather long description of what this is".to_owned()]);
        rows.push(["web".to_owned(), "short".to_owned()]);
        let wide = rows.render(None);
        assert_eq!(wide, "NAME    WHAT\norders  a rather long description of what this is\nweb     short");
        let narrow = rows.render(Some(30));
        assert!(narrow.lines().all(|line| line.chars().count() <= 30), "{narrow}");
        assert!(narrow.lines().count() > 3, "{narrow}");
    }
}
