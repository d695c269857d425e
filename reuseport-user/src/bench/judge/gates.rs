//! What has to hold before a figure counts.

use serde::{Deserialize, Serialize};

use super::{Figures, Headline, of};
use crate::bench::mechanism::Mechanism;
use crate::bench::record::{Cell, Sample, Settings};
use crate::bench::topology::Topology;
use crate::bench::workload::{Pace, Workload};
use crate::measure::{Estimate, Interval};

/// Something that had to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// What.
    pub what: String,
    /// Whether it does.
    pub passed: bool,
    /// Whether the machine's noise alone may break it; otherwise something is wrong.
    pub noise: bool,
    /// What was found.
    pub found: String,
}

/// Connections that show where they arrive.
const ENOUGH: u64 = 100;
/// Most that a local mechanism may serve remotely, and least that the wrong CPU must.
const REMOTE: f64 = 0.01;
/// How far the hash's remote part may be from what chance gives.
const BLIND: f64 = 0.02;
/// How far two ways to count the remote part may lie apart.
const AGREE: f64 = 0.01;
/// Most steal, and most that others use.
const STEAL: f64 = 0.01;
const BACKGROUND: f64 = 0.02;
/// How far two that are the same may lie apart.
const SAME: f64 = 0.02;
/// The same of latencies and of what is stuck, which a few requests decide.
const SAME_TAIL: f64 = 0.05;

/// Gates under construction.
struct Gates(Vec<Gate>);

impl Gates {
    fn firm(&mut self, what: impl Into<String>, passed: bool, found: String) {
        self.0.push(Gate { what: what.into(), passed, noise: false, found });
    }

    fn noise(&mut self, what: impl Into<String>, passed: bool, found: String) {
        self.0.push(Gate { what: what.into(), passed, noise: true, found });
    }
}

pub(super) fn check(cell: &Cell, settings: &Settings, figures: &[Figures]) -> Vec<Gate> {
    let mut gates = Gates(Vec::new());
    answered(&mut gates, cell);
    arrival(&mut gates, cell, settings);
    locality(&mut gates, cell, settings);
    counters(&mut gates, cell);
    machine(&mut gates, cell);
    controls(&mut gates, cell, settings, figures);
    gates.0
}

fn answered(gates: &mut Gates, cell: &Cell) {
    // What is lost when a server is replaced is what that workload is about.
    if cell.workload == Workload::W7 {
        return;
    }
    let failed: u64 = cell.samples.iter().map(Sample::failed).sum();
    let first = cell.samples.iter().flat_map(|it| it.errors.keys()).next();
    let example = first.map_or_else(String::new, |error| format!(", such as `{error}`"));
    gates.firm("every request is answered", failed == 0, format!("{failed} were not{example}"));
    let idle = cell.samples.iter().filter(|sample| sample.requests == 0).count();
    // On a machine that is busy with other things; what is never answered is told above.
    gates.noise("every run answers something", idle == 0, format!("{idle} did not"));
}

/// Whether packets arrive where the topology has them arrive.
fn arrival(gates: &mut Gates, cell: &Cell, settings: &Settings) {
    // A few long flows arrive where they happen to; and W8 changes it.
    if matches!(cell.workload, Workload::W4 | Workload::W5 | Workload::W8) {
        return;
    }
    // All runs together: on a busy machine one of them may have hardly a connection.
    let flows = || of(cell, Mechanism::Hash).flat_map(|sample| &sample.flows);
    let count =
        |cpu| -> u64 { flows().filter(|flow| flow.received == cpu).map(|flow| flow.count).sum() };
    let all: u64 = flows().map(|flow| flow.count).sum();
    let shares = settings.cpus.iter().map(|&cpu| count(cpu) as f64 / all.max(1) as f64);
    let (least, most) =
        shares.fold((1.0f64, 0.0f64), |(least, most), it| (least.min(it), most.max(it)));
    // On a busy machine a new server may come too late to be asked for much.
    let gate = if all < ENOUGH { Gates::noise } else { Gates::firm };
    if cell.topology.is_spread() {
        let wanted = 0.5 / settings.cpus.len() as f64;
        let found = format!("{:.1} % on the CPU with the fewest", least * 100.0);
        gate(gates, "packets arrive on every CPU".to_owned(), least >= wanted, found);
    } else {
        let found = format!("{:.1} % on the CPU with the most", most * 100.0);
        gate(gates, "packets arrive on one CPU".to_owned(), most >= 0.98, found);
    }
    if cell.topology.is_veth() {
        let served = cell.samples.iter().filter(|sample| sample.requests > 0);
        let napi = served.map(|it| it.napi_seconds).fold(f64::INFINITY, f64::min);
        gates.firm("NAPI threads poll the queues", napi > 0.0, format!("they ran {napi:.3} s"));
    }
}

fn locality(gates: &mut Gates, cell: &Cell, settings: &Settings) {
    // While a server is replaced, the old one's workers serve what is on its way.
    if cell.workload == Workload::W7 {
        return;
    }
    for mechanism in Mechanism::ALL {
        let remote = |worst: fn(f64, f64) -> f64| {
            of(cell, mechanism).filter_map(Sample::remote).reduce(worst)
        };
        if mechanism.is_local()
            && let Some(most) = remote(f64::max)
        {
            let found = format!("{:.2} % of a run's connections were not", most * 100.0);
            let what = format!("{mechanism} serves where it receives");
            // What a full queue drops is sent again, perhaps from another CPU.
            let stalls = cell.workload == Workload::W6;
            let gate = if stalls { Gates::noise } else { Gates::firm };
            gate(gates, what, most <= REMOTE, found);
        }
        if mechanism == Mechanism::EbpfWrongCpu
            && let Some(least) = remote(f64::min)
        {
            let found = format!("{:.2} % of a run's connections were", least * 100.0);
            let passed = least >= 1.0 - REMOTE;
            gates.firm(format!("{mechanism} serves where it does not receive"), passed, found);
        }
    }
    if cell.workload == Workload::W5 {
        return;
    }
    // Chance: so many connections, each remote by the number of CPUs.
    let connections: u64 = of(cell, Mechanism::Hash).map(Sample::connections).sum();
    let remote =
        of(cell, Mechanism::Hash).filter_map(|it| Some(it.remote()? * it.connections() as f64));
    let remote = remote.sum::<f64>() / connections.max(1) as f64;
    let cpus = settings.cpus.len() as f64;
    let expected = (cpus - 1.0) / cpus;
    let deviation = (expected * (1.0 - expected) / connections.max(1) as f64).sqrt();
    let passed = (remote - expected).abs() <= BLIND.max(4.0 * deviation);
    let found = format!("{:.1} % remote, {:.1} % expected", remote * 100.0, expected * 100.0);
    gates.firm("the hash is blind to CPUs", passed, found);
}

/// Where connections went, by `SO_INCOMING_CPU` of what was accepted and by our program's counters.
fn counters(gates: &mut Gates, cell: &Cell) {
    // The counters tell of the new server only.
    if cell.workload == Workload::W7 {
        return;
    }
    for mechanism in Mechanism::ALL {
        let runs = || {
            of(cell, mechanism)
                .filter_map(|it| Some((it.connections() as f64, it.remote()?, it.chosen_remote?)))
        };
        // All runs together: what is on its way when one begins and ends is more of a short one.
        let all: f64 = runs().map(|it| it.0).sum();
        if all > 0.0 {
            let accepted = runs().map(|it| it.0 * it.1).sum::<f64>() / all;
            let chosen = runs().map(|it| it.0 * it.2).sum::<f64>() / all;
            let found = format!("{:.2} % remote, and {:.2} %", accepted * 100.0, chosen * 100.0);
            let passed = (accepted - chosen).abs() <= AGREE;
            gates.firm(format!("{mechanism}: socket and program agree"), passed, found);
        }
    }
}

fn machine(gates: &mut Gates, cell: &Cell) {
    let steal = mean(cell.samples.iter().map(|sample| sample.steal));
    let found = format!("{:.1} % of the time was stolen", steal * 100.0);
    gates.noise("the hypervisor gives the CPUs", steal <= STEAL, found);
    let busy = mean(cell.background.iter().copied());
    let found = format!("{:.1} % busy before the runs", busy * 100.0);
    gates.noise("nothing else runs", busy < BACKGROUND, found);
}

fn mean(of: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = of.fold((0.0, 0), |(sum, count), it| (sum + it, count + 1));
    sum / f64::from(count.max(1))
}

fn controls(gates: &mut Gates, cell: &Cell, settings: &Settings, figures: &[Figures]) {
    let headline = Headline::of(cell);
    let ratio = |mechanism| {
        let figures = figures.iter().find(|it| it.mechanism == mechanism)?;
        headline.ratio(figures)
    };
    // Of a few pairs, an interval says nothing.
    if !settings.quick
        && let Some(same) = ratio(Mechanism::HashAgain)
    {
        let apart = if headline == Headline::Rate { SAME } else { SAME_TAIL };
        let passed = same.ci95.contains(1.0) && (same.median() - 1.0).abs() <= apart;
        gates.noise("hash against hash is the same", passed, show(&same));
    }
    if !matches!(cell.pace, Pace::Closed { .. }) || cell.workload.is_udp() {
        return;
    }
    let alike = Mechanism::ALL.into_iter().filter(|it| it.is_local()).filter_map(ratio);
    let alike: Vec<f64> = alike.map(|ratio| ratio.median()).collect();
    if !settings.quick && alike.len() > 1 {
        let (low, high) = alike
            .iter()
            .fold((f64::INFINITY, 0.0f64), |(low, high), &it| (low.min(it), high.max(it)));
        let found = format!("x{low:.3} to x{high:.3} of hash");
        gates.noise("all that steer by CPU are the same", high - low <= SAME, found);
    }
    let Some(wrong) = ratio(Mechanism::EbpfWrongCpu) else { return };
    let Interval { low, high } = wrong.ci95;
    match cell.topology {
        Topology::T1 | Topology::T3 => {
            let passed = if settings.quick { wrong.median() < 1.0 } else { high < 1.0 };
            gates.noise("the wrong CPU is worse than hash", passed, show(&wrong));
        }
        Topology::T2 => {
            let passed = if settings.quick { wrong.median() > 1.0 } else { low > 1.0 };
            gates.noise("under skew the other CPU is better than hash", passed, show(&wrong));
        }
        Topology::T4 | Topology::T5 => {}
    }
}

/// `x1.07 [1.05..1.09]`.
fn show(ratio: &Estimate) -> String {
    format!("x{:.3} [{:.3}..{:.3}]", ratio.median(), ratio.ci95.low, ratio.ci95.high)
}
