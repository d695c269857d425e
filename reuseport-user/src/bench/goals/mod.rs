//! The goals that this project set itself in advance, and how a record stands to them.
//!
//! Pure: what a record says follows from its samples and its seed. A goal is met or missed when the
//! whole 95 % confidence interval is on one side of it, and otherwise open. Where a gate or a control
//! of its cell fails, the outcome says so: then it is not to be quoted.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::costs::Costs;
use super::judge::pairs;
use super::mechanism::Mechanism::{self, ClassicBpf, Ebpf, EbpfSpill, HandOff, Hash, IncomingCpu};
use super::record::{Cell, Matrix, Record, Sample};
use super::topology::Topology::{self, T1, T2, T3};
use super::workload::Workload::{self, W1, W2, W3, W4, W6, W7};
use crate::measure::{Estimate, Goal, Interval, Rng, Standing};

/// How a record stands to one goal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Topology, workload and rate; `costs` for what a selection costs.
    pub cell: String,
    /// The figure.
    pub what: String,
    /// What it should be, such as `>= 1.12`.
    pub wanted: String,
    /// What it is; `None` where nothing was measured.
    pub found: Option<Found>,
    /// As far as the interval can tell; `None` where nothing was found, or after a quick run.
    pub standing: Option<Standing>,
    /// Why it may not be quoted; empty where it may.
    pub inconclusive_because: Vec<String>,
}

/// A figure, and where the true one probably lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Pairs, blocks or runs that it is made of.
    pub n: usize,
    /// The median; of failures, all of them.
    pub median: f64,
    /// 95 % confidence interval.
    pub ci95: Interval,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Interval { low, high } = self.ci95;
        let digits = if self.median.abs() >= 100.0 || (high - low == 0.0 && low.fract() == 0.0) {
            0
        } else {
            3
        };
        write!(f, "{:.digits$} [{low:.digits$}..{high:.digits$}]", self.median)
    }
}

/// A goal about a cell.
struct OfCell {
    cell: (Topology, Workload),
    figure: Figure,
    of: Mechanism,
    goal: Goal,
}

/// What of a cell.
#[derive(Clone, Copy)]
enum Figure {
    /// Requests per second, by those of the same repetition under another mechanism.
    Rate(Mechanism),
    P99(Mechanism),
    Cpu(Mechanism),
    Stuck(Mechanism),
    /// Requests without an answer, all runs together.
    Failed,
}

const fn goal(
    topology: Topology,
    workload: Workload,
    figure: Figure,
    of: Mechanism,
    goal: Goal,
) -> OfCell {
    OfCell { cell: (topology, workload), figure, of, goal }
}

/// Equal within 2 %.
const SAME: Goal = Goal::Between(0.98, 1.02);

const GOALS: [OfCell; 17] = [
    goal(T3, W1, Figure::Rate(Hash), Ebpf, Goal::AtLeast(1.12)),
    goal(T1, W1, Figure::Rate(Hash), Ebpf, Goal::AtLeast(1.05)),
    goal(T3, W4, Figure::Rate(Hash), Ebpf, Goal::AtLeast(1.08)),
    goal(T3, W1, Figure::Rate(HandOff), Ebpf, Goal::AtLeast(1.2)),
    goal(T3, W1, Figure::Cpu(Hash), Ebpf, Goal::AtMost(0.88)),
    goal(T1, W1, Figure::Rate(ClassicBpf), Ebpf, SAME),
    goal(T1, W1, Figure::Rate(IncomingCpu), Ebpf, SAME),
    goal(T3, W1, Figure::Rate(ClassicBpf), Ebpf, SAME),
    goal(T3, W1, Figure::Rate(IncomingCpu), Ebpf, SAME),
    goal(T1, W3, Figure::P99(Hash), EbpfSpill, Goal::AtMost(0.85)),
    goal(T2, W2, Figure::P99(Hash), EbpfSpill, Goal::AtMost(1.25)),
    goal(T2, W1, Figure::Rate(Hash), EbpfSpill, Goal::AtLeast(0.97)),
    goal(T1, W6, Figure::Stuck(Hash), EbpfSpill, Goal::AtMost(0.05)),
    goal(T1, W7, Figure::Failed, Ebpf, Goal::AtMost(0.0)),
    goal(T1, W7, Figure::Failed, EbpfSpill, Goal::AtMost(0.0)),
    // What being ready to spill costs where nothing need be.
    goal(T1, W1, Figure::Rate(Ebpf), EbpfSpill, Goal::AtLeast(0.97)),
    goal(T3, W1, Figure::Rate(Ebpf), EbpfSpill, Goal::AtLeast(0.97)),
];

/// A selection among so many sockets.
type Selecting = (usize, Mechanism);

/// What a selection costs among so many sockets, by what it costs among others, or by others' means.
const SELECTION: [(Selecting, Selecting, Goal); 2] = [
    ((4096, IncomingCpu), (4096, Ebpf), Goal::AtLeast(25.0)),
    ((4096, Ebpf), (1, Ebpf), Goal::AtMost(1.15)),
];

/// The cells that goals are about, by topology.
pub(super) fn cells() -> Vec<(Topology, Workload)> {
    let mut cells: Vec<_> = GOALS.iter().map(|goal| goal.cell).collect();
    cells.sort_unstable();
    cells.dedup();
    cells
}

/// How a record stands to the goals that are about what it has measured.
pub(super) fn judge(record: &Record) -> Vec<Outcome> {
    let mut rng = Rng::with_seed(record.settings.seed);
    let mut outcomes = Vec::new();
    // A series is about what differs among its cells.
    for goal in GOALS.iter().filter(|_| record.settings.matrix != Matrix::Series) {
        let cells = record.cells.iter().filter(|it| (it.topology, it.workload) == goal.cell);
        for cell in cells.filter(|cell| cell.verdict.is_some()) {
            outcomes.push(goal.judge(cell, record.settings.quick, &mut rng));
        }
    }
    if let Some(costs) = &record.costs {
        let of = |&(of, base, goal)| selection(costs, of, base, goal, record.settings.quick);
        outcomes.extend(SELECTION.iter().map(of));
    }
    outcomes
}

impl OfCell {
    fn judge(&self, cell: &Cell, quick: bool, rng: &mut Rng) -> Outcome {
        let found = self.figure.of(cell, self.of, rng);
        let because = cell.verdict.as_ref().map(|it| it.inconclusive_because.clone());
        let load = cell.load.map_or_else(String::new, |load| format!(" {:.0} %", load * 100.0));
        Outcome {
            cell: format!("{} {}{load}", cell.topology, cell.workload),
            what: self.figure.title(self.of),
            wanted: self.goal.to_string(),
            found,
            standing: found.filter(|_| !quick).map(|it| self.goal.judge(it.ci95)),
            inconclusive_because: because.unwrap_or_default(),
        }
    }
}

impl Figure {
    fn title(self, of: Mechanism) -> String {
        match self {
            Self::Rate(base) => format!("requests/s, {of} / {base}"),
            Self::P99(base) => format!("p99 latency, {of} / {base}"),
            Self::Cpu(base) => format!("CPU per request, {of} / {base}"),
            Self::Stuck(base) => format!("stuck requests, {of} / {base}"),
            Self::Failed => format!("lost requests, {of}"),
        }
    }

    fn of(self, cell: &Cell, mechanism: Mechanism, rng: &mut Rng) -> Option<Found> {
        type Of = fn(&Sample) -> Option<f64>;
        let (base, figure): (_, Of) = match self {
            Self::Rate(base) => (base, |it| Some(it.rate)),
            Self::P99(base) => (base, |it| it.answered(it.latency.p99)),
            Self::Cpu(base) => (base, |it| it.cpu_us),
            Self::Stuck(base) => (base, |it| Some(it.stuck as f64)),
            Self::Failed => return failed(cell, mechanism),
        };
        let estimate = Estimate::of(&pairs(cell, mechanism, base, &figure), rng)?;
        let (n, median, ci95) = (estimate.n, estimate.median(), estimate.ci95);
        Some(Found { n, median, ci95 })
    }
}

/// A count has no spread: one lost request is one too many.
fn failed(cell: &Cell, mechanism: Mechanism) -> Option<Found> {
    let runs: Vec<u64> = cell
        .samples
        .iter()
        .filter(|sample| sample.mechanism == mechanism)
        .map(Sample::failed)
        .collect();
    let all = runs.iter().sum::<u64>() as f64;
    let ci95 = Interval { low: all, high: all };
    (!runs.is_empty()).then_some(Found { n: runs.len(), median: all, ci95 })
}

/// Two costs that were not measured in pairs: the interval is as wide as theirs can make it.
fn selection(costs: &Costs, of: Selecting, base: Selecting, goal: Goal, quick: bool) -> Outcome {
    let cost = |which| {
        let mut all = costs.selection.iter();
        all.find(|it| (it.sockets, it.mechanism) == which).map(|it| &it.nanoseconds)
    };
    let found = cost(of).zip(cost(base)).filter(|(_, base)| base.ci95.low > 0.0);
    let found = found.map(|(of, base)| Found {
        n: of.n.min(base.n),
        median: of.median() / base.median(),
        ci95: Interval { low: of.ci95.low / base.ci95.high, high: of.ci95.high / base.ci95.low },
    });
    let [(sockets, mechanism), (others, other)] = [of, base];
    Outcome {
        cell: "costs".to_owned(),
        what: if sockets == others {
            format!("selection among {sockets}, {mechanism} / {other}")
        } else {
            format!("selection by {mechanism}, among {sockets} / {others}")
        },
        wanted: goal.to_string(),
        found,
        standing: found.filter(|_| !quick).map(|it| goal.judge(it.ci95)),
        inconclusive_because: match found {
            Some(_) => Vec::new(),
            None => vec!["not both were measured, and above that by the hash".to_owned()],
        },
    }
}

#[cfg(test)]
mod tests;
