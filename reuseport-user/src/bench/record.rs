//! What a bench has measured: the file that is saved after every repetition, resumed, and published.
//!
//! `schema.json` beside this file describes it. A change that a reader would trip over is a new
//! [`VERSION`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::costs::Costs;
use super::generate::latency::SLICE;
use super::goals::Outcome;
use super::host::Environment;
use super::judge::Verdict;
use super::mechanism::Mechanism;
use super::topology::Topology;
use super::workload::{Pace, Workload};
use crate::model::Cpu;

/// What the file says it is.
pub const SCHEMA: &str = "reuseport-steer/bench";
/// The version of the file's format.
pub const VERSION: u32 = 1;
/// The JSON Schema of the file.
pub const JSON_SCHEMA: &str = include_str!("schema.json");

/// A whole bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`VERSION`].
    pub version: u32,
    /// Seconds since the epoch.
    pub started: u64,
    /// Where.
    pub environment: Environment,
    /// What was asked for.
    pub settings: Settings,
    /// What was measured, by topology, workload and rate.
    pub cells: Vec<Cell>,
    /// What steering costs by itself, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub costs: Option<Costs>,
    /// How it stands to the goals; made anew with the verdicts.
    #[serde(default)]
    pub goals: Vec<Outcome>,
}

/// What is measured, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Topologies.
    pub topologies: Vec<Topology>,
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// Mechanisms.
    pub mechanisms: Vec<Mechanism>,
    /// How often each is measured.
    pub repetitions: u32,
    /// Measured seconds of each run.
    pub seconds: f64,
    /// Seconds at full load before that.
    pub warmup: f64,
    /// Connections at a time in a closed loop.
    pub connections: usize,
    /// Rates of an open loop, as parts of what the kernel's hash serves at most.
    pub loads: Vec<f64>,
    /// Or requests per second.
    pub rate: Option<f64>,
    /// What the order and the requests follow from.
    pub seed: u64,
    /// Gates and signs only; no ratio is to be quoted.
    pub quick: bool,
    /// Which cells.
    #[serde(default)]
    pub matrix: Matrix,
    /// Whether costs are measured, too.
    pub costs: bool,
    /// CPUs with a worker.
    pub cpus: Vec<Cpu>,
}

/// Which cells are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matrix {
    /// Every workload on every topology.
    #[default]
    All,
    /// What the goals are about.
    Goals,
    /// Closed loops by connections at a time, 1 to 1024, and by workers on each CPU, 1 to 8.
    Series,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// How packets arrive.
    pub topology: Topology,
    /// What is asked for.
    pub workload: Workload,
    /// Workers on each CPU.
    #[serde(default = "one")]
    pub workers: u32,
    /// When.
    pub pace: Pace,
    /// Part of the saturation that the rate is, where it was measured.
    pub load: Option<f64>,
    /// Mechanisms that were not measured, and why.
    pub excluded: BTreeMap<Mechanism, String>,
    /// Busy part of the machine before each repetition.
    pub background: Vec<f64>,
    /// Every run.
    pub samples: Vec<Sample>,
    /// What they say; made anew from the samples whenever the file is written.
    pub verdict: Option<Verdict>,
}

fn one() -> u32 {
    1
}

/// One run of one mechanism.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Which.
    pub mechanism: Mechanism,
    /// From 0.
    pub repetition: u32,
    /// Its place in the order of this repetition, from 0.
    pub position: u32,
    /// Requests answered that count.
    pub requests: u64,
    /// Of those, per second.
    pub rate: f64,
    /// From when a request was due (closed loop: made) until its reply was complete.
    pub latency: Quantiles,
    /// The whole distribution: parts, and microseconds.
    pub curve: Vec<(f64, f64)>,
    /// From when a connection was due until the worker had it, warm-up left out.
    pub accept: Quantiles,
    /// Connections by the CPU that received them and the worker's CPU. Of datagrams the kernel tells
    /// no CPU, as their sockets are not connected.
    pub flows: Vec<Flow>,
    /// Part of its selections that our program made for a CPU other than the worker's, by its own
    /// counters; `None` where it is not in force.
    #[serde(default)]
    pub chosen_remote: Option<f64>,
    /// Microseconds of CPU time per request: clients, server and polling threads.
    pub cpu_us: Option<f64>,
    /// Seconds that polling threads have run.
    pub napi_seconds: f64,
    /// Failures and how many, warm-up included.
    pub errors: BTreeMap<String, u64>,
    /// Requests without an answer at the end.
    pub unanswered: u64,
    /// Requests that took longer than 100 ms.
    pub stuck: u64,
    /// The slowest reply of each 100 ms, in milliseconds; for what happens over time.
    pub slowest_ms: Vec<f64>,
    /// Seconds from what happens in the middle of the run until no part of 100 ms had a reply more than
    /// twice as slow as any before; `None` where it does not come to that, or nothing happens.
    #[serde(default)]
    pub settled_seconds: Option<f64>,
    /// Part of the time that the hypervisor kept.
    pub steal: f64,
}

/// Some of a distribution, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// Connections on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The CPU that received them.
    pub received: Cpu,
    /// The CPU of the worker that accepted them.
    pub served: Cpu,
    /// How many.
    pub count: u64,
}

/// Parts of the distribution that [`Sample::curve`] has.
const PARTS: [f64; 17] = [
    0.0, 0.1, 0.25, 0.5, 0.75, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.9975, 0.999, 0.9995, 0.9999,
    0.99999, 1.0,
];

fn micros(of: &Histogram<u64>, part: f64) -> f64 {
    of.value_at_quantile(part) as f64 / 1e3
}

impl Quantiles {
    /// Of nanoseconds.
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let [p50, p90, p99, p999, max] =
            [0.5, 0.9, 0.99, 0.999, 1.0].map(|part| micros(histogram, part));
        Self { p50, p90, p99, p999, max }
    }
}

/// As in [`Sample::curve`].
pub(super) fn curve(of: &Histogram<u64>) -> Vec<(f64, f64)> {
    PARTS.iter().map(|&part| (part, micros(of, part))).collect()
}

/// As in [`Sample::settled_seconds`], of something that happened at a time of the window.
pub(super) fn settled(slowest_ms: &[f64], event: Duration) -> Option<f64> {
    let slice = SLICE.as_secs_f64();
    let first = (event.as_secs_f64() / slice) as usize;
    let (before, after) = slowest_ms.split_at_checked(first)?;
    let usual = before.iter().copied().reduce(f64::max)?;
    let slow = after.iter().rposition(|&slowest| slowest > 2.0 * usual);
    match slow.map_or(0, |last| last + 1) {
        0 => Some(0.0),
        slices if slices < after.len() => {
            Some((first + slices) as f64 * slice - event.as_secs_f64())
        }
        _ => None,
    }
}

impl Sample {
    /// All connections.
    pub fn connections(&self) -> u64 {
        self.flows.iter().map(|flow| flow.count).sum()
    }

    /// Part of the connections that were served on another CPU than they arrived on; `None` where
    /// that is not known.
    pub fn remote(&self) -> Option<f64> {
        let remote = self.flows.iter().filter(|flow| flow.received != flow.served);
        let remote = remote.map(|flow| flow.count).sum::<u64>();
        let all = self.connections();
        (all > 0).then(|| remote as f64 / all as f64)
    }

    /// Part of the connections that `of` gives this CPU.
    pub fn share(&self, of: impl Fn(&Flow) -> Cpu, cpu: Cpu) -> f64 {
        let its = self.flows.iter().filter(|flow| of(flow) == cpu).map(|flow| flow.count);
        its.sum::<u64>() as f64 / self.connections().max(1) as f64
    }

    /// A figure that it takes an answer to have.
    pub(super) fn answered(&self, figure: f64) -> Option<f64> {
        (self.requests > 0).then_some(figure)
    }

    /// All that failed.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum::<u64>() + self.unanswered
    }
}

/// Why a record is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// It is none.
    #[error("{path} is not a saved bench: {why}")]
    NotOne {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The drawing of a report failed.
    #[error("draw the report: {0}")]
    Draw(String),
}

impl Record {
    /// Reads one back.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let name = || path.display().to_string();
        let text =
            fs::read_to_string(path).map_err(|source| RecordError::Io { path: name(), source })?;
        let not = |why: String| RecordError::NotOne { path: name(), why };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| not(error.to_string()))?;
        if value["schema"] != SCHEMA {
            return Err(not(format!("it does not say that it is {SCHEMA}")));
        }
        if value["version"] != VERSION {
            let found = &value["version"];
            return Err(not(format!("version {found}, this program reads {VERSION}")));
        }
        serde_json::from_value(value).map_err(|error| not(error.to_string()))
    }

    /// Replaces a file in one step: whoever reads it sees the old one or the new one.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::from);
        let written = text.and_then(|text| replace(path, (text + "\n").as_bytes()));
        written.map_err(|source| RecordError::Io { path: path.display().to_string(), source })
    }
}

/// Writes beside a file, and renames.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
    io::Write::write_all(&mut file, bytes)?;
    // Temporary files are for their owner alone.
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_over_when_nothing_is_slow_any_more() {
        let at = Duration::from_millis(250);
        for (slowest, expected) in [
            // Twice as slow as before is usual still.
            (&[1.0, 2.0, 4.0, 4.0, 1.0][..], Some(0.0)),
            (&[1.0, 2.0, 500.0, 4.5, 1.0], Some(0.15)),
            // Slow to the end.
            (&[1.0, 2.0, 1.0, 1.0, 9.0], None),
            (&[1.0], None),
        ] {
            let found = settled(slowest, at);
            let close = found.zip(expected).is_some_and(|(found, it)| (found - it).abs() < 1e-9);
            assert!(close || found == expected, "{slowest:?}: {found:?}");
        }
        assert_eq!(settled(&[9.0, 1.0], Duration::ZERO), None, "nothing is usual");
    }
}
