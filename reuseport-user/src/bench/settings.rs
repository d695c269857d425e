//! What to measure: what was asked for, made whole and checked.

use std::path::PathBuf;

use super::goals;
use super::mechanism::Mechanism;
use super::record::{Matrix, Settings};
use super::server::ServerCommand;
use super::topology::Topology;
use super::workload::Workload;
use crate::measure::draw_seed;
use crate::model::CpuSet;

/// What to run. What is empty or `None` is chosen.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Topologies.
    pub topologies: Vec<Topology>,
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// Mechanisms; the kernel's hash is always among them.
    pub mechanisms: Vec<Mechanism>,
    /// How often each is measured; 15, 10 of goals, 3 when quick.
    pub repetitions: Option<u32>,
    /// Measured seconds of each run; 1, or 0.3 when quick.
    pub seconds: Option<f64>,
    /// Connections at a time in a closed loop.
    pub connections: usize,
    /// Rates of an open loop, as parts of what the kernel's hash serves at most; one half.
    pub loads: Vec<f64>,
    /// Or requests per second.
    pub rate: Option<f64>,
    /// What the order and the requests follow from; drawn unless told.
    pub seed: Option<u64>,
    /// Gates and signs only.
    pub quick: bool,
    /// Which cells. Those of the goals take the place of topologies and workloads, and have costs.
    pub matrix: Matrix,
    /// Measure also what steering costs by itself.
    pub costs: bool,
    /// Where bpffs is mounted.
    pub bpffs: PathBuf,
    /// Show a progress bar if standard error is a terminal.
    pub progress: bool,
    /// How to start a server.
    pub server: ServerCommand,
}

/// An option that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// Too few to say anything, or too many to wait for.
    #[error(
        "{0} repetitions: expected {FEWEST} to {MOST}; fewer pairs than {FEWEST} can by no means be \
         told from chance (`--quick` checks gates and signs with {QUICK})"
    )]
    Repetitions(u32),
    /// Out of range.
    #[error("runs of {0} s: expected 0.05 to 60")]
    Seconds(f64),
    /// Out of range.
    #[error("{0} connections at a time: expected 1 to 4096")]
    Connections(usize),
    /// Out of range.
    #[error("a load of {0}: expected above 0 and up to 1, a part of what the hash serves at most")]
    Load(f64),
    /// Out of range.
    #[error("{0} requests per second: expected 1 to 1000000")]
    Rate(f64),
    /// Nothing is left.
    #[error("none of these workloads can be had on any of these topologies: w8 takes t1")]
    Nothing,
}

const FEWEST: u32 = 6;
const MOST: u32 = 1000;
const QUICK: u32 = 3;
/// Of so many cells, that it ends within half an hour.
const GOALS: u32 = 10;

impl BenchOptions {
    /// With the defaults in place of what was left open.
    pub(super) fn settings(&self, cpus: &CpuSet) -> Result<Settings, Wrong> {
        let repetitions = self.repetitions.unwrap_or(if self.quick {
            QUICK
        } else if self.matrix == Matrix::Goals {
            GOALS
        } else {
            15
        });
        let fewest = if self.quick { 1 } else { FEWEST };
        if !(fewest..=MOST).contains(&repetitions) {
            return Err(Wrong::Repetitions(repetitions));
        }
        let seconds = self.seconds.unwrap_or(if self.quick { 0.3 } else { 1.0 });
        if !(0.05..=60.0).contains(&seconds) {
            return Err(Wrong::Seconds(seconds));
        }
        if !(1..=4096).contains(&self.connections) {
            return Err(Wrong::Connections(self.connections));
        }
        let loads = or(&self.loads, &[0.5]);
        if let Some(&load) = loads.iter().find(|&&load| !(load > 0.0 && load <= 1.0)) {
            return Err(Wrong::Load(load));
        }
        if let Some(rate) = self.rate.filter(|rate| !(1.0..=1e6).contains(rate)) {
            return Err(Wrong::Rate(rate));
        }
        let (topologies, workloads) = if self.matrix == Matrix::Goals {
            let (topologies, workloads): (Vec<_>, Vec<_>) = goals::cells().into_iter().unzip();
            (or(&topologies, &[]), or(&workloads, &[]))
        } else {
            let all = [Topology::T1, Topology::T2, Topology::T3];
            // One connection arrives on every CPU in turn only where a hash spreads them.
            let topologies =
                or(&self.topologies, if self.matrix == Matrix::Series { &all[2..] } else { &all });
            (topologies, or(&self.workloads, &[Workload::W1]))
        };
        let fits = |&topology| workloads.iter().any(|workload| workload.fits(topology));
        if !topologies.iter().any(fits) {
            return Err(Wrong::Nothing);
        }
        let series = self.matrix == Matrix::Series;
        let asked = |it: &Mechanism| if series { it.is_local() } else { it.is_usual() };
        let all: Vec<_> = Mechanism::ALL.into_iter().filter(asked).collect();
        let mut mechanisms = or(&self.mechanisms, &all);
        // What all are compared with, and what says how far two of the same lie apart.
        mechanisms.extend([Mechanism::Hash, Mechanism::HashAgain]);
        mechanisms.sort_unstable();
        mechanisms.dedup();
        Ok(Settings {
            topologies,
            workloads,
            mechanisms,
            repetitions,
            seconds,
            warmup: if self.quick { 0.1 } else { 0.3 },
            connections: self.connections,
            loads,
            rate: self.rate,
            // A JSON reader that knows only floats keeps it whole.
            seed: self.seed.unwrap_or_else(draw_seed),
            quick: self.quick,
            matrix: self.matrix,
            costs: self.costs || self.matrix == Matrix::Goals,
            cpus: cpus.iter().take(super::generate::MOST).collect(),
        })
    }
}

/// What was told, each once, or else the default.
fn or<T: Copy + PartialEq>(told: &[T], default: &[T]) -> Vec<T> {
    let all = if told.is_empty() { default } else { told };
    let mut once = Vec::new();
    for &it in all {
        if !once.contains(&it) {
            once.push(it);
        }
    }
    once
}
