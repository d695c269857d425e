//! `experiment`.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use reuseport_common::abi::Policy;

use super::args::{CommonArgs, OverrideArgs, TargetArgs, duration};
use super::output::to_json;
use crate::experiment::{self, Ended, ExperimentError, ExperimentOptions, Metric, name};
use crate::steer::AttachOptions;
use crate::steer::loan::{Loan, Mode};

/// Find out whether steering helps a load of yours
///
/// Runs your load command again and again, in each round once with every way of steering that is
/// compared, in random order; reads figures from what it prints; and says with a confidence interval
/// whether they differ, or how many more rounds would show it. It changes how the port is steered
/// while clients use it: no connection is lost by that. At the end, also on Ctrl-C and whatever
/// fails, the port is steered as it was found (policy and weights; counters begin again). Only
/// SIGKILL leaves it as it is then. An agent that keeps the port must be stopped first. Who else
/// changes how it is steered meanwhile (`attach`, `drain`, `run` when a copy ends) ends the experiment.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Metrics: [NAME>=|NAME<=] and REGEX, json:POINTER or kernel:POINTER
  REGEX has one group, around the number; its last match counts, on standard output or else standard
  error. json:/a/0/b is a JSON pointer (RFC 6901) into a standard output that is one JSON value.
  kernel:/total/wait/p99_us is one into what `trace --json` says of the run: the accept latency as
  the kernel saw it, whatever the load prints. It is traced all the time then, in every mode.
  Of NAME>= more is better, of NAME<= less. Without a name more is better.

Examples:
  reuseport-steer experiment --port 6432 --load 'pgbench -C -T 3 -h 127.0.0.1 -p 6432 app' \\
    --metric 'tps = ([0-9.]+)' --metric 'latency<=latency average = ([0-9.]+)'
  reuseport-steer experiment --port 80 --compare hash,cpu,incoming-cpu,hash --rounds 40 \\
    --load 'wrk -d 3 -H \"Connection: close\" http://10.0.0.5/' --metric 'Requests/sec: +([0-9.]+)'
  reuseport-steer experiment --port 80 --load ./load.sh --metric 'p99<=json:/latency/p99' \\
    --metric 'wait<=kernel:/total/wait/p99_us' --json

Exit code 9: the load failed, took longer than --timeout, printed no such figure, or did not reach
the port. JSON (--json): `schema` is reuseport-steer/experiment/1; fields may be added to it.")]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Your load, run by /bin/sh; it must make new connections to the port, and end by itself
    #[arg(long, value_name = "COMMAND")]
    load: String,
    /// A figure of what the load prints, or the kernel sees of it (repeatable): see below
    #[arg(long, value_name = "METRIC", required = true)]
    metric: Vec<Metric>,
    /// What is compared; the first is what the others are compared with, and named again a control
    #[arg(long, value_enum, value_name = "MODE", value_delimiter = ',', default_values_t = [ModeArg::Hash, ModeArg::Cpu])]
    compare: Vec<ModeArg>,
    /// How often each is measured; 6 at least
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Runs of the load with each before the first round, which are not counted
    #[arg(long, value_name = "RUNS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=100))]
    warmup: u32,
    /// Longest that one run of the load may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    /// What the order follows from; printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    overrides: OverrideArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// `--compare`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArg {
    /// The kernel's hash: not steered
    Hash,
    /// The eBPF program: the worker on the CPU that received the connection
    Cpu,
    /// SO_INCOMING_CPU on each listener (Linux 6.2, or 6.1 with the fix)
    IncomingCpu,
    /// The eBPF program: by the connection's 4-tuple
    EbpfHash,
    /// The eBPF program: a random worker
    Random,
    /// The eBPF program: each CPU takes the workers in turn
    RoundRobin,
}

impl From<ModeArg> for Mode {
    fn from(arg: ModeArg) -> Self {
        match arg {
            ModeArg::Hash => Self::Hash,
            ModeArg::Cpu => Self::Ebpf(Policy::Cpu),
            ModeArg::IncomingCpu => Self::IncomingCpu,
            ModeArg::EbpfHash => Self::Ebpf(Policy::Hash),
            ModeArg::Random => Self::Ebpf(Policy::Random),
            ModeArg::RoundRobin => Self::Ebpf(Policy::RoundRobin),
        }
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let options = ExperimentOptions {
        attach: AttachOptions {
            overrides: args.overrides.overrides(),
            settings: args.common.settings(),
            ..AttachOptions::new(args.target.target())
        },
        modes: args.compare.iter().map(|&mode| mode.into()).collect(),
        rounds: args.rounds,
        warmup: args.warmup,
        load: args.load.clone(),
        timeout: args.timeout,
        metrics: args.metric.clone(),
        seed: args.seed,
    };
    let terminal = std::io::stderr().is_terminal();
    let ended = experiment::run(&options, terminal, |loan, seed| announce(loan, &options, seed))?;
    let Ended { report, failure } = ended;
    if let Some(report) = &report {
        let mut out = super::stdout();
        if args.common.json {
            to_json(&mut out, report)?;
        } else {
            report.print_into(&mut out)?;
        }
    }
    failure.map_or(Ok(()), |failure: ExperimentError| Err(failure.into()))
}

/// Whose connections are going to be steered otherwise.
fn announce(loan: &Loan, options: &ExperimentOptions, seed: u64) {
    let group = loan.group();
    let mut who: Vec<String> = group.listeners.iter().map(|it| it.served.to_string()).collect();
    who.dedup();
    let more = who.len().saturating_sub(4);
    who.truncate(4);
    let who = who.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() };
    let modes: Vec<&str> = options.modes.iter().map(|&mode| name(mode)).collect();
    let _nowhere_to_say_it = writeln!(
        anstream::stderr(),
        "{}, {} listeners ({who}), is {} now. Its connections, also those of others than your load, go by \
         {} in turn; none is lost by it, and at the end it is again as it is now. Seed {seed}.",
        group.key,
        group.listeners.len(),
        loan.found(),
        modes.join(", "),
    );
}
