//! The benchmarks; `cargo xtask bench` builds and runs them, as root.
//!
//! Every figure is a ratio or a difference of pairs that were taken next to each other, in random
//! order, and comes with its spread. Absolute numbers are for the machine they were taken on.
#![expect(clippy::print_stdout, reason = "a command-line program speaks on stdout")]

mod attach;
mod http;
mod pgbench;
mod report;
mod selection;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use reuseport_tests::measure::Rng;

use crate::report::Report;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// `pgbench -C` through PgBouncers, steered against the kernel's hash
    Pgbench,
    /// What the program costs for each packet
    Selection,
    /// How long attach, status and detach take
    Attach,
    /// What `trace` costs while it runs
    Trace,
    /// The library's per-core HTTP server against tokio's usual one
    Http,
    /// All of them
    All,
}

/// Benchmarks of reuseport-steer
#[derive(Debug, Parser)]
struct Options {
    /// What to measure
    #[arg(value_enum, default_value_t = Subject::All)]
    subject: Subject,
    /// In two minutes: do the gates hold, do the signs agree? Figures count for nothing
    #[arg(long)]
    quick: bool,
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Repeat the order of an earlier run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// What every subject works with.
struct Bench {
    quick: bool,
    rng: Rng,
    report: Report,
}

impl Bench {
    /// One number for the full run, another for a quick one.
    fn choose<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// What measures a subject.
type Run = fn(&mut Bench);

fn main() -> ExitCode {
    let options = Options::parse();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seed = options.seed.unwrap_or_else(|| u64::from(now.subsec_nanos()));
    let report = Report::new(seed, options.quick);
    let mut bench = Bench { quick: options.quick, rng: Rng::with_seed(seed), report };
    let subjects: [(Subject, Run); 5] = [
        (Subject::Selection, selection::run),
        (Subject::Attach, attach::run),
        (Subject::Trace, trace::run),
        (Subject::Http, http::run),
        (Subject::Pgbench, pgbench::run),
    ];
    for (subject, run) in subjects {
        if options.subject == subject || options.subject == Subject::All {
            let start = Instant::now();
            bench.report.begin(name(subject));
            run(&mut bench);
            bench.report.end(start.elapsed());
        }
    }
    if bench.report.finish(options.json.as_deref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn name(subject: Subject) -> &'static str {
    match subject {
        Subject::Pgbench => "pgbench",
        Subject::Selection => "selection",
        Subject::Attach => "attach",
        Subject::Trace => "trace",
        Subject::Http => "http",
        Subject::All => "all",
    }
}
