//! Results: a table for people, JSON for programs.

use std::path::Path;

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Where `cargo xtask bench` says which Cargo profile the programs were built with.
const PROFILE: &str = "PILLION_BENCH_PROFILE";

/// Everything one run of a bench found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Which bench.
    pub bench: &'static str,
    /// The processor, how many of them, as the kernel names them, and the Cargo profile.
    pub machine: String,
    /// In order.
    pub rows: Vec<Row>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured, and of whom.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The most (or, of rates, the least) it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// What a figure is held against.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Budget {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Report {
    /// An empty report about this machine.
    pub fn new(bench: &'static str) -> Self {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        // Not those that the bench has kept for itself.
        let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
        let model = model.map_or("unknown processor", |(_, name)| name.trim());
        let profile = std::env::var(PROFILE).unwrap_or_else(|_| "unknown".to_owned());
        let machine = format!("{count} x {model}, profile {profile}");
        Self { bench, machine, rows: Vec::new() }
    }

    /// Adds a figure.
    pub fn row(&mut self, what: impl Into<String>, value: f64, unit: &'static str, budget: Option<Budget>) {
        self.rows.push(Row { what: what.into(), value, unit, budget });
    }

    /// Prints the table, and writes `target/bench/<bench>.json`.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn finish(&self) -> anyhow::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["FIGURE", "VALUE", "UNIT", "BUDGET", ""]);
        for row in &self.rows {
            let budget = row.budget.map(|budget| budget.to_string()).unwrap_or_default();
            let verdict =
                row.budget.map_or("", |budget| if budget.holds(row.value) { "holds" } else { "MISSED" });
            table.add_row([row.what.as_str(), &figure(row.value), row.unit, &budget, verdict]);
        }
        println!("{}\n\n{table}", self.machine);
        let folder = Path::new("target/bench");
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let file = folder.join(format!("{}.json", self.bench));
        let json = serde_json::to_vec_pretty(self).context("write a report as JSON")?;
        std::fs::write(&file, json).with_context(|| format!("write {}", file.display()))?;
        println!("\nas JSON in {}", file.display());
        Ok(())
    }
}

impl Budget {
    /// Whether the figure is within it.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(out, "≤ {}", figure(*most)),
            Self::AtLeast(least) => write!(out, "≥ {}", figure(*least)),
        }
    }
}

/// Three significant digits, without an exponent.
fn figure(value: f64) -> String {
    let digits = value.abs().log10().floor();
    let places = if digits.is_finite() { (2.0 - digits).clamp(0.0, 3.0) } else { 0.0 };
    format!("{value:.*}", places as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, want) in
            [(0.0, "0"), (0.0314, "0.031"), (3.21621, "3.22"), (31.42, "31.4"), (31_415.9, "31416")]
        {
            assert_eq!(figure(value), want);
        }
    }

    #[test]
    fn a_budget_is_a_ceiling_or_a_floor() {
        assert!(Budget::AtMost(2.0).holds(2.0) && !Budget::AtMost(2.0).holds(2.1));
        assert!(Budget::AtLeast(2.0).holds(2.0) && !Budget::AtLeast(2.0).holds(1.9));
    }
}
