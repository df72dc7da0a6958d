//! What a run has to say: rows (ratios), figures (what is no ratio of speeds), the engine's costs, and what it left out
//! and why. One text, one JSON file with every round's numbers.

use super::engine::Cost;
use crate::workspace;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// One line of the table. The two series were measured in turn, in `unit`; more is better.
#[derive(Clone)]
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub ours: Vec<f64>,
    /// Of the divisor.
    pub probe: Vec<f64>,
    /// What ours is divided by.
    pub divisor: &'static str,
    /// What design and users may expect of the ratio; none where there is no promise.
    pub goal: Option<f64>,
    pub meaning: &'static str,
    /// The virtual machine that it was measured in; none: here.
    pub machine: Option<String>,
}

impl Row {
    pub fn new(name: &str, unit: &'static str, divisor: &'static str, goal: Option<f64>, meaning: &'static str) -> Row {
        Row { name: name.into(), unit, ours: Vec::new(), probe: Vec::new(), divisor, goal, meaning, machine: None }
    }

    pub fn add(&mut self, ours: f64, probe: f64) {
        self.ours.push(ours);
        self.probe.push(probe);
    }

    fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.probe)
    }

    /// Least and greatest of the rounds' own ratios: how far to trust the median's.
    fn range(&self) -> (f64, f64) {
        range(self.ours.iter().zip(&self.probe).map(|(ours, probe)| ours / probe))
    }

    fn json(&self) -> Value {
        let (least, greatest) = self.range();
        json!({
            "name": self.name, "unit": self.unit, "ours": self.ours, "probe": self.probe,
            "divisor": self.divisor, "ratio": self.ratio(), "least": least, "greatest": greatest,
            "goal": self.goal, "meaning": self.meaning, "machine": self.machine,
        })
    }
}

/// A time, a size, a growth: one value a round, less is better.
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub values: Vec<f64>,
    /// What it may be at most; none where there is no promise.
    pub goal: Option<f64>,
    pub meaning: &'static str,
}

impl Figure {
    pub fn new(name: impl Into<String>, unit: &'static str, goal: Option<f64>, meaning: &'static str) -> Figure {
        Figure { name: name.into(), unit, values: Vec::new(), goal, meaning }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "values": self.values, "median": median(&self.values),
            "goal": self.goal, "meaning": self.meaning,
        })
    }
}

#[derive(Default)]
pub struct Report {
    pub rows: Vec<Row>,
    pub figures: Vec<Figure>,
    pub costs: Vec<Cost>,
    /// Lines that explain a number: where the time went.
    pub notes: Vec<String>,
    /// What was measured with.
    pub versions: BTreeMap<String, String>,
    pub skipped: Vec<String>,
}

impl Report {
    /// Loudly: here, and once more at the end.
    pub fn skip(&mut self, what: &str, why: &str) {
        let line = format!("{what}: {why}");
        eprintln!("NOT MEASURED: {line}");
        self.skipped.push(line);
    }

    /// The text, and the file: what this run measured, in place of what an earlier one did.
    pub fn publish(&self, path: &Path) -> Result<()> {
        let machine = machine();
        let text = |key: &str| machine[key].as_str().unwrap_or("?").to_string();
        println!("\nKernel {}, {} x {}, {}", text("kernel"), machine["processors"], text("processor"), text("rustc"));
        self.versions.iter().for_each(|(program, version)| println!("{program}: {version}"));
        show_rows(&self.rows);
        show_figures(&self.figures);
        self.notes.iter().for_each(|line| println!("{line}"));
        self.skipped.iter().for_each(|line| println!("NOT MEASURED: {line}"));
        let all = json!({
            "machine": machine, "versions": self.versions, "skipped": self.skipped, "notes": self.notes,
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
            "engine": self.costs.iter().map(Cost::json).collect::<Vec<_>>(),
        });
        fs::write(path, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("\n{}", path.display());
        Ok(())
    }
}

/// Where numbers of different runs may be laid side by side, and where not.
fn machine() -> Value {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let said = |program: &str, arguments: &[&str]| {
        workspace::output(program, arguments).map_or("unknown".into(), |text| text.trim().to_string())
    };
    json!({
        "kernel": kernel.trim(),
        "processor": model.map(|(_, name)| name.trim()),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "rustc": said("rustc", &["--version"]),
        "commit": said("git", &["-C", &workspace::root().to_string_lossy(), "describe", "--always", "--dirty"]),
    })
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(least, greatest), value| (value.min(least), value.max(greatest)))
}

fn show_rows(rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    println!("\n{:<width$} {:>9} {:>9}  ratio  of rounds   goal  divided by; unit", "", "replicad", "divisor");
    for row in rows {
        let goal = row.goal.map_or("-".into(), |goal| format!("{goal:.2}"));
        let (ours, probe, (least, greatest)) = (median(&row.ours), median(&row.probe), row.range());
        println!(
            "{:<width$} {ours:>9.0} {probe:>9.0} {:>6.2}  {least:.2}..{greatest:.2}  {goal:>5}  {}; {}",
            row.name,
            row.ratio(),
            row.divisor,
            row.unit
        );
    }
    println!();
    for alike in rows.chunk_by(|one, next| one.meaning == next.meaning) {
        let row = &alike[0];
        let more = if alike.len() > 1 { " and below" } else { "" };
        let machine = row.machine.as_ref().map_or(String::new(), |machine| format!(" ({machine})"));
        println!("{}{more}: {}{machine}", row.name, row.meaning);
    }
}

fn show_figures(figures: &[Figure]) {
    if figures.is_empty() {
        return;
    }
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or_default();
    println!("\n{:<width$} {:>10}  of rounds          at most  unit", "", "median");
    for figure in figures {
        let goal = figure.goal.map_or("-".into(), |goal| format!("{goal}"));
        let (least, greatest) = range(figure.values.iter().copied());
        let of_rounds = format!("{least:.2}..{greatest:.2}");
        let middle = median(&figure.values);
        println!("{:<width$} {middle:>10.2}  {of_rounds:<17}  {goal:>7}  {}", figure.name, figure.unit);
    }
    println!();
    for alike in figures.chunk_by(|one, next| one.meaning == next.meaning) {
        let more = if alike.len() > 1 { " and below" } else { "" };
        println!("{}{more}: {}", alike[0].name, alike[0].meaning);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_ratio_is_of_the_medians() {
        let mut row = Row::new("write", "requests/s", "probe", None, "");
        [(1.0, 10.0), (5.0, 10.0), (900.0, 10.0)].into_iter().for_each(|(ours, probe)| row.add(ours, probe));
        assert_eq!(row.ratio(), 0.5);
        assert_eq!(row.range(), (0.1, 90.0));
    }
}
