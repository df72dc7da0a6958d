//! The load: fio through its NBD engine, the same for everybody who is measured.

use super::report::Report;
use super::rival;
use crate::{packages, workspace};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What fio does.
#[derive(Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    /// fio's `rw`
    pub pattern: &'static str,
    pub block_kib: u64,
    pub depth: u32,
}

impl Load {
    pub fn is_read(self) -> bool {
        self.pattern.ends_with("read")
    }
}

pub struct Outcome {
    pub requests: u64,
    pub requests_per_second: f64,
    /// 99th percentile of a request's time, as fio saw it.
    pub p99_us: f64,
}

/// One client on each of `uris`, all at once, for `seconds`. Outcomes in the same order.
pub fn run(load: Load, uris: &[String], seconds: f64) -> Result<Vec<Outcome>> {
    let mut words = vec![
        "--output-format=json".to_string(),
        "--ioengine=nbd".into(),
        format!("--rw={}", load.pattern),
        format!("--bs={}k", load.block_kib),
        format!("--iodepth={}", load.depth),
        "--time_based".into(),
        format!("--runtime={}ms", (seconds * 1000.0) as u64),
        "--norandommap".into(),
        "--thread".into(),
    ];
    for (job, uri) in uris.iter().enumerate() {
        words.extend([format!("--name=job{job}"), format!("--uri={uri}")]);
    }
    let text = workspace::output("fio", &words)?;
    // fio says some things before the JSON.
    let start = text.find('{').with_context(|| format!("fio printed no JSON: {text}"))?;
    let all: Value = serde_json::from_str(&text[start..]).context("fio's JSON")?;
    let jobs = all["jobs"].as_array().context("fio's jobs")?;
    ensure!(jobs.len() == uris.len(), "fio tells of {} jobs, not {}", jobs.len(), uris.len());
    jobs.iter().map(|job| outcome(job, load)).collect()
}

/// As `run`, one client.
pub fn run_one(load: Load, uri: &str, seconds: f64) -> Result<Outcome> {
    Ok(run(load, &[uri.to_string()], seconds)?.remove(0))
}

fn outcome(job: &Value, load: Load) -> Result<Outcome> {
    ensure!(job["error"] == 0, "fio: error {}", job["error"]);
    let side = &job[if load.is_read() { "read" } else { "write" }];
    let requests = side["total_ios"].as_u64().context("total_ios")?;
    ensure!(requests > 0, "no request came back");
    let p99_ns = side["clat_ns"]["percentile"]["99.000000"].as_f64().context("percentiles")?;
    Ok(Outcome { requests, requests_per_second: side["iops"].as_f64().context("iops")?, p99_us: p99_ns / 1000.0 })
}

/// An error if fio is not here, or has no NBD engine.
pub fn ready(report: &mut Report) -> Result<()> {
    packages::ensure(packages::LOAD)?;
    let engines = workspace::output("fio", ["--enghelp"])?;
    ensure!(engines.split_whitespace().any(|engine| engine == "nbd"), "fio was built without its NBD engine");
    report.versions.insert("fio".into(), rival::version("fio")?);
    Ok(())
}
