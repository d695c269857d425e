//! `reuseport-steer experiment`: does steering help this server under this load? The user's own load
//! command is run again and again, each round once in each way of steering, in random order; what it
//! prints is compared in pairs. However it ends, the group is steered as it was found.

use std::io;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::measure::{FEWEST_PAIRS, Rng, Ticks, draw_seed, orders};
use crate::steer::loan::{Loan, Mode};
use crate::steer::{AttachOptions, SteerError};
use crate::trace::{Reading, Trace, TraceError};

mod load;
mod metric;
mod report;

use self::load::Interrupts;
pub use self::load::LoadError;
pub use self::metric::{Metric, MetricError};
pub use self::report::{Arm, Compared, MetricReport, Report, Run};

/// What to run.
#[derive(Clone, Debug)]
pub struct ExperimentOptions {
    /// Which group; overrides and settings hold for every mode.
    pub attach: AttachOptions,
    /// What is compared; the first is what the others are compared with. A mode that is named again
    /// is a control: it should not differ.
    pub modes: Vec<Mode>,
    /// How often each mode is measured.
    pub rounds: u32,
    /// Runs of the load in each mode before the first round, which are not counted.
    pub warmup: u32,
    /// The load, for `/bin/sh -c`.
    pub load: String,
    /// Longest that a run of it may take.
    pub timeout: Duration,
    /// What to read from its output.
    pub metrics: Vec<Metric>,
    /// What the order of the runs follows from; `None` draws one.
    pub seed: Option<u64>,
}

/// Most rounds.
const MOST_ROUNDS: u32 = 10_000;

/// Why an experiment did not end as it should. The group is steered as it was found all the same,
/// unless it is [`ExperimentError::NotGivenBack`].
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// `--rounds` out of range.
    #[error(
        "{0} rounds: expected {FEWEST_PAIRS} to {MOST_ROUNDS}; fewer never tell a difference from chance"
    )]
    Rounds(u32),
    /// `--compare` names one.
    #[error("one way of steering cannot be compared with itself alone: name two or more")]
    Modes,
    /// No `--metric`.
    #[error("no metric: name at least one figure to read from what the load prints")]
    NoMetric,
    /// Signals cannot be caught, so nothing was begun.
    #[error("cannot catch signals: {0}")]
    Signals(#[source] io::Error),
    /// The group cannot be borrowed, or a mode not be put in force.
    #[error("{source}")]
    Steer {
        /// Why.
        #[source]
        source: SteerError,
    },
    /// The load gave nothing.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// What the kernel sees cannot be had, and a metric is of that.
    #[error("a metric of the kernel's takes a trace: {0}")]
    Trace(#[from] TraceError),
    /// The load ran, but a figure is missing.
    #[error("--metric {name}: {source}; {tail}")]
    Metric {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: MetricError,
        /// The end of what the load printed.
        tail: String,
    },
    /// The load is for somebody else.
    #[error(
        "the load made no connection to {group} while it was steered: does it connect to this port, in \
         this network namespace, and make new connections in every run?"
    )]
    NotReached {
        /// The group.
        group: String,
    },
    /// Somebody else steers the group too.
    #[error(
        "{group}: after a run of the load {mode}, which had been put in force for it, was not in force any \
         more: somebody else attached or detached (`run` does, when a copy ends), or the server began to \
         listen anew; nothing else may change how the port is steered meanwhile"
    )]
    Changed {
        /// The group.
        group: String,
        /// What was put in force.
        mode: &'static str,
    },
    /// A signal.
    #[error("ended by {0}")]
    Interrupted(&'static str),
    /// The group is not steered as it was found.
    #[error(
        "{}it could not be steered again as it was found: {then}; `status` shows how it is now",
        first.as_ref().map_or(String::new(), |first| format!("{first}; and then "))
    )]
    NotGivenBack {
        /// What failed before, if anything did.
        first: Option<Box<Self>>,
        /// Why it could not.
        then: SteerError,
    },
}

impl From<SteerError> for ExperimentError {
    fn from(source: SteerError) -> Self {
        Self::Steer { source }
    }
}

/// How an experiment ended.
#[derive(Debug)]
pub struct Ended {
    /// What was seen; where it ended early, in the rounds that were whole, if they are enough.
    pub report: Option<Report>,
    /// Why it ended early.
    pub failure: Option<ExperimentError>,
}

/// Runs it. `announce` is told what is going to happen to whom, before anything is changed. An error
/// means that nothing was changed.
pub fn run(
    options: &ExperimentOptions,
    progress: bool,
    announce: impl FnOnce(&Loan, u64),
) -> Result<Ended, ExperimentError> {
    if !(FEWEST_PAIRS as u32..=MOST_ROUNDS).contains(&options.rounds) {
        return Err(ExperimentError::Rounds(options.rounds));
    }
    if options.modes.len() < 2 {
        return Err(ExperimentError::Modes);
    }
    if options.metrics.is_empty() {
        return Err(ExperimentError::NoMetric);
    }
    let interrupts = Interrupts::catch().map_err(ExperimentError::Signals)?;
    let seed = options.seed.unwrap_or_else(draw_seed);
    let kernels = options.metrics.iter().any(Metric::is_kernels);
    let target = &options.attach.target;
    let trace = kernels.then(|| Trace::start(target, false)).transpose()?;
    let mut loan = Loan::take(&options.attach, &options.modes)?;
    announce(&loan, seed);
    let mut rng = Rng::with_seed(seed);
    let bar = bar(options, progress);
    let mut seen = Seen { options, interrupts, trace, bar, runs: Vec::new() };
    let before = Ticks::now().ok();
    let outcome = seen.rounds(&mut loan, &mut rng);
    seen.bar.finish_and_clear();
    let steal = before.zip(Ticks::now().ok()).map(|(then, now)| then.busy_and_steal(&now).1);
    let (group, found) = (loan.group().key, loan.found().clone());
    let failure = match (outcome, loan.give_back()) {
        (outcome, Ok(())) => outcome.err(),
        (outcome, Err(then)) => {
            Some(ExperimentError::NotGivenBack { first: outcome.err().map(Box::new), then })
        }
    };
    let report = Report::new(options, group, found, seed, seen.runs, steal, &mut rng);
    Ok(Ended { report, failure })
}

/// The runs so far.
struct Seen<'a> {
    options: &'a ExperimentOptions,
    interrupts: Interrupts,
    /// Of the whole experiment, where a metric is the kernel's: its cost is the same in every mode.
    trace: Option<Trace>,
    bar: ProgressBar,
    runs: Vec<Run>,
}

impl Seen<'_> {
    fn rounds(&mut self, loan: &mut Loan, rng: &mut Rng) -> Result<(), ExperimentError> {
        let arms: Vec<usize> = (0..self.options.modes.len()).collect();
        for warmup in orders(&arms, self.options.warmup as usize, rng) {
            for arm in warmup {
                self.bar.set_message(format!("warm-up, {}", name(self.options.modes[arm])));
                self.measure(loan, 0, arm)?;
            }
        }
        for (round, order) in (1..).zip(orders(&arms, self.options.rounds as usize, rng)) {
            for arm in order {
                let mode = name(self.options.modes[arm]);
                self.bar.set_message(format!("round {round} of {}, {mode}", self.options.rounds));
                let run = self.measure(loan, round, arm)?;
                self.runs.push(run);
            }
        }
        Ok(())
    }

    /// One mode, one run of the load.
    fn measure(&mut self, loan: &mut Loan, round: u32, arm: usize) -> Result<Run, ExperimentError> {
        if let Some(signal) = self.interrupts.came() {
            return Err(ExperimentError::Interrupted(signal));
        }
        let mode = self.options.modes[arm];
        loan.put_on(mode)?;
        let before = loan.look()?;
        let traced = self.reading()?;
        let begin = Instant::now();
        let output = match load::run(&self.options.load, self.options.timeout, &self.interrupts) {
            Err(LoadError::Interrupted) => {
                return Err(ExperimentError::Interrupted(
                    self.interrupts.came().unwrap_or("a signal"),
                ));
            }
            output => output?,
        };
        let seconds = begin.elapsed().as_secs_f64();
        let kernel = self.kernel(&traced)?;
        let read = |metric: &Metric| {
            metric.read(&output, &kernel).map_err(|source| {
                let name = metric.name.clone();
                ExperimentError::Metric { name, source, tail: output.tail() }
            })
        };
        let values = self.options.metrics.iter().map(read).collect::<Result<Vec<f64>, _>>()?;
        let after = loan.look()?;
        if !after.is_still(&before, mode) {
            let group = loan.group().key.to_string();
            return Err(ExperimentError::Changed { group, mode: name(mode) });
        }
        let (selections, local) = after.grown(&before);
        if matches!(mode, Mode::Ebpf(_)) && selections == Some(0) {
            return Err(ExperimentError::NotReached { group: loan.group().key.to_string() });
        }
        self.bar.inc(1);
        Ok(Run { round, arm, seconds, values, selections, local })
    }
}

impl Seen<'_> {
    /// All that the kernel saw so far.
    fn reading(&mut self) -> Result<Reading, TraceError> {
        self.trace.as_mut().map_or_else(|| Ok(Reading::default()), Trace::read)
    }

    /// What it saw since then; nothing where no metric is the kernel's.
    fn kernel(&mut self, since: &Reading) -> Result<Value, ExperimentError> {
        let now = self.reading()?;
        let summary = self.trace.as_ref().map(|trace| trace.summary(&now.since(since)));
        Ok(serde_json::to_value(summary).unwrap_or_default())
    }
}

/// As `--compare` has it.
pub fn name(mode: Mode) -> &'static str {
    use reuseport_common::abi::Policy;
    match mode {
        Mode::Hash => "hash",
        Mode::IncomingCpu => "incoming-cpu",
        // Not to be mistaken for the kernel's.
        Mode::Ebpf(Policy::Hash) => "ebpf-hash",
        Mode::Ebpf(policy) => policy.name(),
    }
}

/// Hidden unless standard error is a terminal.
fn bar(options: &ExperimentOptions, progress: bool) -> ProgressBar {
    let runs = u64::from(options.rounds + options.warmup) * options.modes.len() as u64;
    let target = if progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(runs), target);
    bar.enable_steady_tick(Duration::from_secs(1));
    match ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
