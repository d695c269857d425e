//! What the samples of a cell say: figures in pairs, and the gates and controls that decide whether
//! they may be told.

use serde::{Deserialize, Serialize};

use super::mechanism::Mechanism;
use super::record::{Cell, Sample, Settings};
use super::workload::{Pace, Workload};
use crate::measure::{Estimate, Rng, Spread};

mod gates;
#[cfg(test)]
pub(super) mod tests;

pub use gates::Gate;

/// What a cell says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Each mechanism's figures, in the order of [`Mechanism::ALL`].
    pub figures: Vec<Figures>,
    /// What had to hold.
    pub gates: Vec<Gate>,
    /// Why no figure may be quoted; empty where they may.
    pub inconclusive_because: Vec<String>,
}

/// One mechanism beside the kernel's hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Which.
    pub mechanism: Mechanism,
    /// Requests per second.
    pub rate: Spread,
    /// Median latency in microseconds.
    pub p50_us: Spread,
    /// 99th percentile of latency in microseconds.
    pub p99_us: Spread,
    /// 99th percentile of accept latency in microseconds.
    pub accept_p99_us: Spread,
    /// Part of the connections that were served on another CPU than they arrived on; `None` where that
    /// is not known.
    pub remote: Option<Spread>,
    /// The busiest worker's connections, over the mean of all workers.
    pub imbalance: Option<Spread>,
    /// Microseconds of CPU time per request.
    pub cpu_us: Option<Spread>,
    /// Requests that took longer than 100 ms, or were never answered.
    pub stuck: Spread,
    /// Seconds until what happened in the middle of the runs was over; `None` where it was not in half
    /// of them, or nothing happens.
    #[serde(default)]
    pub settled_seconds: Option<Spread>,
    /// Failures, all runs together.
    pub failed: u64,
    /// Of each pair, this / hash.
    pub ratios: Ratios,
}

/// Of each repetition, this mechanism's figure by the hash's; `None` where there is nothing to
/// divide.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ratios {
    /// Requests per second.
    pub rate: Option<Estimate>,
    /// Median latency.
    pub p50: Option<Estimate>,
    /// 99th percentile of latency.
    pub p99: Option<Estimate>,
    /// 99th percentile of accept latency.
    pub accept_p99: Option<Estimate>,
    /// CPU time per request.
    pub cpu: Option<Estimate>,
    /// Stuck requests.
    pub stuck: Option<Estimate>,
}

/// The figure that a cell is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headline {
    /// More is better.
    Rate,
    /// Less is better.
    P99,
    /// Less is better.
    Stuck,
}

impl Headline {
    /// A closed loop is for throughput, an open one for latency.
    pub fn of(cell: &Cell) -> Self {
        match (cell.workload, cell.pace) {
            (Workload::W6 | Workload::W7, _) => Self::Stuck,
            (_, Pace::Closed { .. }) => Self::Rate,
            (_, Pace::Open { .. }) => Self::P99,
        }
    }

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Rate => "requests/s",
            Self::P99 => "p99 latency",
            Self::Stuck => "stuck requests",
        }
    }

    /// The mechanism's ratio to the hash.
    pub fn ratio(self, figures: &Figures) -> Option<Estimate> {
        match self {
            Self::Rate => figures.ratios.rate,
            Self::P99 => figures.ratios.p99,
            Self::Stuck => figures.ratios.stuck,
        }
    }
}

impl Verdict {
    /// Whether a figure may be quoted.
    pub fn is_conclusive(&self) -> bool {
        self.inconclusive_because.is_empty()
    }

    /// Gates that something of ours must have broken, not the noise of the machine.
    pub fn broken(&self) -> impl Iterator<Item = &Gate> {
        self.gates.iter().filter(|gate| !gate.passed && !gate.noise)
    }

    /// A mechanism's figures.
    pub fn of(&self, mechanism: Mechanism) -> Option<&Figures> {
        self.figures.iter().find(|figures| figures.mechanism == mechanism)
    }
}

/// Reads a cell.
pub(super) fn judge(cell: &Cell, settings: &Settings) -> Verdict {
    // Which resamplings are drawn follows from the seed, too.
    let mut rng = Rng::with_seed(settings.seed);
    let figures: Vec<Figures> = Mechanism::ALL
        .into_iter()
        .filter_map(|mechanism| figures(cell, mechanism, &mut rng))
        .collect();
    let gates = gates::check(cell, settings, &figures);
    let failed = gates.iter().filter(|gate| !gate.passed);
    let mut because: Vec<String> =
        failed.map(|gate| format!("{}: {}", gate.what, gate.found)).collect();
    if settings.quick {
        because.push("a quick run checks gates and signs only".to_owned());
    }
    Verdict { figures, gates, inconclusive_because: because }
}

fn figures(cell: &Cell, mechanism: Mechanism, rng: &mut Rng) -> Option<Figures> {
    let samples: Vec<&Sample> = of(cell, mechanism).collect();
    let spread = |figure: &dyn Fn(&Sample) -> f64| {
        Spread::of(&samples.iter().map(|sample| figure(sample)).collect::<Vec<_>>())
    };
    let known = |figure: &dyn Fn(&Sample) -> Option<f64>| {
        Spread::of(&samples.iter().filter_map(|sample| figure(sample)).collect::<Vec<_>>())
    };
    let mut ratio = |figure: &dyn Fn(&Sample) -> Option<f64>| {
        let pairs = pairs(cell, mechanism, Mechanism::Hash, figure);
        if pairs.is_empty() { None } else { Estimate::of(&pairs, rng) }
    };
    let ratios = Ratios {
        rate: ratio(&|it| Some(it.rate)),
        p50: ratio(&|it| it.answered(it.latency.p50)),
        p99: ratio(&|it| it.answered(it.latency.p99)),
        accept_p99: ratio(&|it| it.answered(it.accept.p99)),
        cpu: ratio(&|it| it.cpu_us),
        stuck: ratio(&|it| Some(it.stuck as f64)),
    };
    Some(Figures {
        mechanism,
        rate: spread(&|it| it.rate)?,
        p50_us: spread(&|it| it.latency.p50)?,
        p99_us: spread(&|it| it.latency.p99)?,
        accept_p99_us: spread(&|it| it.accept.p99)?,
        remote: known(&Sample::remote),
        imbalance: known(&imbalance),
        cpu_us: known(&|it| it.cpu_us),
        stuck: spread(&|it| it.stuck as f64)?,
        settled_seconds: settled_seconds(&samples),
        failed: samples.iter().map(|sample| sample.failed()).sum(),
        ratios,
    })
}

/// A run in which it was not over counts as endless.
fn settled_seconds(samples: &[&Sample]) -> Option<Spread> {
    let known: Vec<f64> = samples.iter().filter_map(|it| it.settled_seconds).collect();
    if known.len() * 2 > samples.len() { Spread::of(&known) } else { None }
}

/// The samples of a mechanism.
fn of(cell: &Cell, mechanism: Mechanism) -> impl Iterator<Item = &Sample> {
    cell.samples.iter().filter(move |sample| sample.mechanism == mechanism)
}

/// A figure by the other mechanism's of the same repetition, where both are known and that is more
/// than nothing.
pub(super) fn pairs(
    cell: &Cell,
    mechanism: Mechanism,
    base: Mechanism,
    figure: &dyn Fn(&Sample) -> Option<f64>,
) -> Vec<f64> {
    let other = |repetition| of(cell, base).find(|it| it.repetition == repetition);
    of(cell, mechanism)
        .filter_map(|sample| {
            let base = figure(other(sample.repetition)?)?;
            let ratio = figure(sample)? / base;
            (base > 0.0 && ratio.is_finite()).then_some(ratio)
        })
        .collect()
}

fn imbalance(sample: &Sample) -> Option<f64> {
    let mut workers: Vec<_> = sample.flows.iter().map(|flow| flow.served).collect();
    workers.sort_unstable();
    workers.dedup();
    let busiest = workers.iter().map(|&cpu| sample.share(|flow| flow.served, cpu));
    busiest.reduce(f64::max).map(|share| share * workers.len() as f64)
}
