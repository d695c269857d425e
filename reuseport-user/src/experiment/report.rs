//! What an experiment saw, for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::{ExperimentOptions, name};
use crate::measure::{Better, Comparison, FEWEST_PAIRS, Rng, Spread};
use crate::model::GroupKey;
use crate::steer::loan::Found;

/// Version of [`Report`] as JSON. Fields may be added to a version; a new one changes their meaning.
const SCHEMA: &str = "reuseport-steer/experiment/1";

/// Percent of the CPUs' time that the hypervisor took, from which on it is told.
const STEAL: f64 = 1.0;

/// One run of the load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Which round, from 1.
    pub round: u32,
    /// Index into [`Report::arms`]. Within a round, runs are in the order in which they were.
    pub arm: usize,
    /// How long the load took.
    pub seconds: f64,
    /// The metrics' figures, in their order and units.
    pub values: Vec<f64>,
    /// Selections that our program made meanwhile; `None` where none of ours was in force.
    pub selections: Option<u64>,
    /// Those of a worker pinned to the receiving CPU; `None` where that cannot be said.
    pub local: Option<u64>,
}

/// One of the things that are compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Arm {
    /// As `--compare` has it.
    pub name: String,
    /// Whether it is the same as one before: a control, which should not differ from that.
    pub control: bool,
    /// Selections by our program over all rounds; `None` where it is not in force.
    pub selections: Option<u64>,
    /// Share of those that were of a worker pinned to the receiving CPU.
    pub locality: Option<f64>,
}

/// One arm beside the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Index into [`Report::arms`].
    pub arm: usize,
    /// The figures.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// What they say, in words.
    pub says: String,
}

/// One metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetricReport {
    /// Its name.
    pub name: String,
    /// Which way it should go.
    pub better: Better,
    /// Each arm's figures, in the order of [`Report::arms`].
    pub spreads: Vec<Spread>,
    /// Every arm but the first, beside the first.
    pub compared: Vec<Compared>,
}

/// What an experiment saw.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Version of this JSON.
    pub schema: &'static str,
    /// The group.
    pub group: GroupKey,
    /// How it was steered before, and is again.
    pub found: Found,
    /// The load.
    pub load: String,
    /// Rounds that were whole.
    pub rounds: u32,
    /// What the order of the runs, and the resampling, follow from.
    pub seed: u64,
    /// What was compared; the first is what the others are compared with.
    pub arms: Vec<Arm>,
    /// What was read.
    pub metrics: Vec<MetricReport>,
    /// Percent of the CPUs' time that the hypervisor took.
    pub steal_percent: Option<f64>,
    /// What to keep in mind.
    pub notes: Vec<String>,
    /// Every run of the rounds that were whole.
    pub runs: Vec<Run>,
}

impl Report {
    /// `None` where too few rounds were whole to say anything.
    pub(super) fn new(
        options: &ExperimentOptions,
        group: GroupKey,
        found: Found,
        seed: u64,
        mut runs: Vec<Run>,
        steal_percent: Option<f64>,
        rng: &mut Rng,
    ) -> Option<Self> {
        let rounds = runs.len() / options.modes.len();
        if rounds < FEWEST_PAIRS {
            return None;
        }
        runs.truncate(rounds * options.modes.len());
        let arms: Vec<Arm> = (0..options.modes.len()).map(|it| arm(options, &runs, it)).collect();
        let metrics = (0..options.metrics.len())
            .map(|index| metric(options, &arms, &runs, index, rng))
            .collect::<Option<Vec<_>>>()?;
        Some(Self {
            schema: SCHEMA,
            group,
            found,
            load: options.load.clone(),
            rounds: rounds as u32,
            seed,
            notes: notes(options, &arms, &metrics, steal_percent),
            arms,
            metrics,
            steal_percent,
            runs,
        })
    }

    /// Writes it as text.
    pub fn print_into(&self, out: &mut impl Write) -> io::Result<()> {
        let names: Vec<&str> = self.arms.iter().map(|arm| arm.name.as_str()).collect();
        writeln!(
            out,
            "{}: {} rounds of {} in random order, seed {}",
            self.group,
            self.rounds,
            names.join(", "),
            self.seed
        )?;
        for metric in &self.metrics {
            let better = match metric.better {
                Better::More => "more",
                Better::Less => "less",
            };
            writeln!(out, "\n{}, {better} is better; median [p10..p90]:", metric.name)?;
            for (index, (arm, spread)) in self.arms.iter().zip(&metric.spreads).enumerate() {
                let compared = metric.compared.iter().find(|it| it.arm == index);
                let ratio = compared.and_then(|it| it.comparison.ratio.as_ref());
                let ratio = ratio.map_or_else(String::new, |it| {
                    format!(
                        "x{:.3}, 95 % confidence x{:.3}..x{:.3}",
                        it.median(),
                        it.ci95.low,
                        it.ci95.high
                    )
                });
                let figures = format!(
                    "{} [{}..{}]",
                    figure(spread.median),
                    figure(spread.p10),
                    figure(spread.p90)
                );
                writeln!(
                    out,
                    "{}",
                    format!("  {:<18} {figures:<30} {ratio}", arm.name).trim_end()
                )?;
            }
        }
        writeln!(out)?;
        for (metric, compared) in self
            .metrics
            .iter()
            .flat_map(|it| it.compared.iter().map(move |compared| (it, compared)))
        {
            writeln!(out, "{}: {} {}.", metric.name, names[compared.arm], compared.says)?;
        }
        for arm in &self.arms {
            if let (Some(selections), Some(locality)) = (arm.selections, arm.locality) {
                writeln!(
                    out,
                    "{}: {selections} connections, {:.1} % to a worker of the receiving CPU.",
                    arm.name,
                    locality * 100.0
                )?;
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(out, "Note: {note}."))
    }
}

fn arm(options: &ExperimentOptions, runs: &[Run], index: usize) -> Arm {
    let mode = options.modes[index];
    let control = options.modes[..index].contains(&mode);
    let of = |figure: fn(&Run) -> Option<u64>| -> Option<u64> {
        runs.iter().filter(|run| run.arm == index).map(figure).sum()
    };
    let selections = of(|run| run.selections);
    let share = |(local, all): (u64, u64)| local as f64 / all as f64;
    Arm {
        name: if control { format!("{} again", name(mode)) } else { name(mode).to_owned() },
        control,
        selections,
        locality: of(|run| run.local).zip(selections.filter(|&it| it > 0)).map(share),
    }
}

fn metric(
    options: &ExperimentOptions,
    arms: &[Arm],
    runs: &[Run],
    index: usize,
    rng: &mut Rng,
) -> Option<MetricReport> {
    let metric = &options.metrics[index];
    // Every round has one run of each arm, so all lists are in the order of the rounds.
    let of = |arm: usize| -> Vec<f64> {
        runs.iter().filter(|run| run.arm == arm).map(|run| run.values[index]).collect()
    };
    let baseline = of(0);
    let mut compare = |arm: usize| {
        let comparison = Comparison::of(&baseline, &of(arm), metric.better, rng).ok()?;
        let says = comparison.in_words();
        Some(Compared { arm, comparison, says })
    };
    Some(MetricReport {
        name: metric.name.clone(),
        better: metric.better,
        compared: (1..arms.len()).map(&mut compare).collect::<Option<_>>()?,
        spreads: (0..arms.len()).map(|arm| Spread::of(&of(arm))).collect::<Option<_>>()?,
    })
}

fn notes(
    options: &ExperimentOptions,
    arms: &[Arm],
    metrics: &[MetricReport],
    steal: Option<f64>,
) -> Vec<String> {
    use crate::measure::Verdict;
    let mut notes = Vec::new();
    let differs = |it: &&Compared| {
        let told_apart = matches!(it.comparison.verdict, Verdict::Helps | Verdict::Hurts);
        told_apart && options.modes[it.arm] == options.modes[0]
    };
    for metric in metrics {
        if metric.compared.iter().any(|it| differs(&it)) {
            notes.push(format!(
                "{}: the control differs from its like, so something else than steering moves this \
                 figure; do not trust the others",
                metric.name
            ));
        }
    }
    if let Some(steal) = steal.filter(|&it| it > STEAL) {
        notes.push(format!("the hypervisor took {steal:.1} % of the CPUs' time meanwhile"));
    }
    if metrics.len() * (arms.len() - 1) > 2 {
        notes.push("of many comparisons, 1 in 20 can look like a difference by chance".to_owned());
    }
    notes
}

/// Four digits that count.
fn figure(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        10.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
