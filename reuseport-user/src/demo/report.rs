//! What a demo saw, for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::DemoOptions;
use super::load::LoadResult;
use super::matrix::Matrix;
use super::rounds::Rounds;
use crate::measure::{Better, Comparison, Rng, Spread, Verdict};
use crate::model::{CpuSet, Pid};

/// One round: one mode, measured once.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Connections answered within the measured time.
    pub connections: u64,
    /// Of those, per second.
    pub connections_per_second: f64,
    /// Median of connect-to-reply, in microseconds.
    pub p50_us: f64,
    /// 99th percentile of connect-to-reply, in microseconds.
    pub p99_us: f64,
    /// [`Matrix::locality`] of the round, its warm-up included.
    pub locality: f64,
    /// Connections that failed, those of the warm-up included.
    pub errors: u64,
    /// Connections that the clients completed, those of the warm-up included.
    pub completed: u64,
    /// Connections that the workers accepted, those of the warm-up included.
    pub accepted: u64,
}

impl Sample {
    pub(super) fn of(load: &LoadResult, accepted: &Matrix) -> Self {
        let microseconds = |quantile| load.latency.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            connections: load.connections,
            connections_per_second: load.rate(),
            p50_us: microseconds(0.5),
            p99_us: microseconds(0.99),
            locality: accepted.locality(),
            errors: load.failed(),
            completed: load.connections + load.outside_window,
            accepted: accepted.total(),
        }
    }
}

/// Two rounds, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pair {
    /// The order.
    pub steered_first: bool,
    /// Without steering.
    pub before: Sample,
    /// With steering.
    pub after: Sample,
}

/// One figure over all pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Without steering.
    pub before: Spread,
    /// With steering.
    pub after: Spread,
    /// Of each pair, after / before.
    pub ratio: Spread,
}

impl Summary {
    fn of(pairs: &[Pair], figure: impl Fn(&Sample) -> f64) -> Option<Self> {
        let each =
            |of: &dyn Fn(&Pair) -> f64| Spread::of(&pairs.iter().map(of).collect::<Vec<_>>());
        Some(Self {
            before: each(&|pair| figure(&pair.before))?,
            after: each(&|pair| figure(&pair.after))?,
            ratio: each(&|pair| figure(&pair.after) / figure(&pair.before))?,
        })
    }
}

/// What a demo saw.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// CPUs with a worker and with clients.
    pub cpus: CpuSet,
    /// The workers, in the order of their CPUs; they are gone.
    pub workers: Vec<Pid>,
    /// What steered.
    pub mechanism: &'static str,
    /// Connections at a time, over all CPUs.
    pub concurrency: usize,
    /// Measured seconds of each round.
    pub seconds: f64,
    /// What the order within the pairs follows from.
    pub seed: u64,
    /// Without steering, warm-ups included.
    pub matrix_before: Matrix,
    /// With steering, warm-ups included.
    pub matrix_after: Matrix,
    /// Share of local connections.
    pub locality: Option<Summary>,
    /// Connections per second.
    pub connections_per_second: Option<Summary>,
    /// Median of connect-to-reply, in microseconds.
    pub p50_us: Option<Summary>,
    /// 99th percentile of connect-to-reply, in microseconds.
    pub p99_us: Option<Summary>,
    /// Connections that failed.
    pub errors: u64,
    /// Of connections per second.
    pub verdict: Verdict,
    /// What was seen, in words.
    pub conclusion: String,
    /// What it does not say.
    pub caveats: Vec<String>,
    /// Every round.
    pub pairs: Vec<Pair>,
}

/// Locality that steering must reach to be called in force.
const STEERED: f64 = 0.99;

/// Width of the text.
const COLUMNS: usize = 100;

impl Report {
    pub(super) fn new(
        options: &DemoOptions,
        cpus: &CpuSet,
        workers: Vec<Pid>,
        seed: u64,
        mechanism: &'static str,
        seen: Rounds,
    ) -> Self {
        let Rounds { pairs, before: matrix_before, after } = seen;
        let rate = |sample: &Sample| sample.connections_per_second;
        let before: Vec<f64> = pairs.iter().map(|pair| rate(&pair.before)).collect();
        let steered: Vec<f64> = pairs.iter().map(|pair| rate(&pair.after)).collect();
        let rng = &mut Rng::with_seed(seed);
        let compared = Comparison::of(&before, &steered, Better::More, rng).ok();
        let conclusion = conclusion(compared.as_ref(), after.locality());
        let errors = pairs.iter().map(|pair| pair.before.errors + pair.after.errors).sum();
        let caveats = caveats(cpus, errors, &pairs);
        Self {
            cpus: cpus.clone(),
            workers,
            mechanism,
            concurrency: cpus.len() * options.connections_per_cpu,
            seconds: options.duration.as_secs_f64(),
            seed,
            locality: Summary::of(&pairs, |sample| sample.locality),
            connections_per_second: Summary::of(&pairs, rate),
            p50_us: Summary::of(&pairs, |sample| sample.p50_us),
            p99_us: Summary::of(&pairs, |sample| sample.p99_us),
            matrix_before,
            matrix_after: after,
            errors,
            verdict: compared.map_or(Verdict::CannotTell, |it| it.verdict),
            conclusion,
            caveats,
            pairs,
        }
    }

    /// Writes it as text, 100 columns wide for up to seven workers.
    pub fn print_into(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "{} workers and {} connections at a time on CPUs {}; {} pairs of rounds of {} s, seed {}",
            self.workers.len(),
            self.concurrency,
            self.cpus,
            self.pairs.len(),
            self.seconds,
            self.seed,
        )?;
        writeln!(
            out,
            "\nConnections before (kernel's hash), by receiving CPU and the worker's CPU:"
        )?;
        self.matrix_before.print_into(out)?;
        writeln!(out, "\nConnections after ({}):", self.mechanism)?;
        self.matrix_after.print_into(out)?;
        writeln!(
            out,
            "\n{:<18} {:>27} {:>27} {:>20}",
            "median [p10..p90]", "before", "after", "after / before"
        )?;
        row(out, "locality, %", self.locality.as_ref(), 100.0, 1)?;
        row(out, "connections/s", self.connections_per_second.as_ref(), 1.0, 0)?;
        row(out, "p50, us", self.p50_us.as_ref(), 1.0, 0)?;
        row(out, "p99, us", self.p99_us.as_ref(), 1.0, 0)?;
        writeln!(out)?;
        paragraph(out, &self.conclusion)?;
        for caveat in &self.caveats {
            paragraph(out, &format!("Note: {caveat}"))?;
        }
        Ok(())
    }
}

fn row(
    out: &mut impl Write,
    name: &str,
    summary: Option<&Summary>,
    scale: f64,
    digits: usize,
) -> io::Result<()> {
    let Some(Summary { before, after, ratio }) = summary else {
        return writeln!(out, "{name:<18} {:>27}", "not measured");
    };
    let cell = |spread: &Spread, scale: f64, digits: usize| {
        let [p10, median, p90] = [spread.p10, spread.median, spread.p90].map(|value| value * scale);
        format!("{median:.digits$} [{p10:.digits$}..{p90:.digits$}]")
    };
    writeln!(
        out,
        "{name:<18} {:>27} {:>27} {:>20}",
        cell(before, scale, digits),
        cell(after, scale, digits),
        cell(ratio, 1.0, 2),
    )
}

/// Breaks lines at spaces, for terminals and log files alike.
fn paragraph(out: &mut impl Write, text: &str) -> io::Result<()> {
    let mut column = 0;
    for word in text.split(' ') {
        if column > 0 && column + 1 + word.len() > COLUMNS {
            writeln!(out)?;
            column = 0;
        } else if column > 0 {
            write!(out, " ")?;
            column += 1;
        }
        write!(out, "{word}")?;
        column += word.len();
    }
    writeln!(out)
}

fn conclusion(compared: Option<&Comparison>, locality: f64) -> String {
    if locality < STEERED || locality.is_nan() {
        return format!(
            "Steering was not in force: only {:.1} % of the connections were accepted on the CPU that \
             received them. The figures say nothing about it.",
            locality * 100.0
        );
    }
    let Some((compared, ratio)) = compared.and_then(|it| Some((it, it.ratio.as_ref()?))) else {
        return "There is nothing to compare.".to_owned();
    };
    let figures = format!(
        "connections/s x{:.2}, 95 % confidence x{:.2}..x{:.2} over {} pair{}",
        ratio.median(),
        ratio.ci95.low,
        ratio.ci95.high,
        ratio.n,
        if ratio.n == 1 { "" } else { "s" },
    );
    match compared.verdict {
        Verdict::Helps => format!("Steering helped here: {figures}."),
        Verdict::Hurts => format!("Steering hurt here: {figures}."),
        Verdict::CannotTell | Verdict::Inconclusive => {
            format!("No difference can be told from the noise: {figures}.")
        }
    }
}

fn caveats(cpus: &CpuSet, errors: u64, pairs: &[Pair]) -> Vec<String> {
    let mut caveats = vec![
        format!(
            "clients and workers share {} CPUs of one host over the loopback, and the clients gain from \
             locality too: the figures are about this machine and this load only. Measure your own server \
             before you decide.",
            cpus.len()
        ),
        "latencies are those of a closed loop at saturation, mostly time spent waiting for a CPU."
            .to_owned(),
    ];
    if errors > 0 {
        caveats.push(format!("{errors} connections failed; treat the figures with suspicion."));
    }
    let stranger = pairs
        .iter()
        .flat_map(|pair| [&pair.before, &pair.after])
        .any(|sample| sample.errors == 0 && sample.accepted != sample.completed);
    if stranger {
        caveats.push(
            "the workers did not accept as many connections as the clients made: someone else used the port."
                .to_owned(),
        );
    }
    caveats
}
