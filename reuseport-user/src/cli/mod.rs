//! The command line: what was typed, turned into calls of the library and their results into text.
//!
//! One file per verb. Nouns change nothing (`status`), verbs do. What a verb found goes to standard
//! output, everything else to standard error.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

mod agent;
mod args;
mod attach;
mod bench;
mod demo;
mod detach;
mod drain;
mod exit;
mod experiment;
mod generate;
mod log;
mod metrics;
mod output;
mod run;
mod screen;
mod status;
mod top;
mod trace;
mod undrain;
mod weight;

/// Steer SO_REUSEPORT listeners by the CPU that received the connection
///
/// Several listeners share one port with SO_REUSEPORT, and the kernel picks among them by a hash: a
/// connection received on one CPU is mostly served by a worker on another. `attach` finds the
/// listeners of a running, unmodified server and lets an eBPF program pick the worker that runs on
/// the CPU that received the connection. It then exits; steering goes on without it.
#[derive(Debug, Parser)]
#[command(name = "reuseport-steer", version, propagate_version = true, after_long_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
Examples:
  reuseport-steer demo                          See what steering does on this machine
  reuseport-steer attach --port 6432 --dry-run  Show the plan and its reasons, change nothing
  reuseport-steer attach --port 6432            Steer
  reuseport-steer agent --port 6432             Steer, and keep it right
  reuseport-steer run --port 6432 -- pgbouncer -u postgres /etc/pgbouncer/%i.ini
                                                Start one per core, steer them, keep them running
  reuseport-steer status                        What is steered, and what is wrong with it
  reuseport-steer drain --port 6432 --slot 1    Give a worker nothing new, before it is stopped
  reuseport-steer detach --port 6432            Give it back to the kernel's hash

Exit codes:
  0  done (also: already so)
  1  failed for another reason; the message says which
  2  the command line is wrong, or an option fits nothing that was found
  3  nothing to work on: nobody listens there, nothing is steered, or the choice is ambiguous
  4  found, but cannot be steered as it is: no SO_REUSEPORT, one listener, MPTCP, worker unknown,
     nobody left that would take connections
  5  not permitted: a capability, ptrace or seccomp rule is in the way
  6  the system lacks something: bpffs, a kernel feature, memory limits
  7  somebody else's: a foreign program or map, another instance or agent at work, a port in use
  8  run: a worker does not listen, or ended with status 0 where it should serve
  9  experiment: the load failed, took too long, printed no such figure, or did not reach the port
  126, 127  run: the program may not be executed, is not there
run ends with the status of the first worker that failed for good; 128 + N for signal N.

Needs CAP_BPF and CAP_SYS_PTRACE; CAP_PERFMON to trace, and to see whose program is attached;
CAP_SYS_ADMIN for other network namespaces; CAP_DAC_READ_SEARCH to see which thread of another
user's process accepts. Root has them all unless they were taken away. Other users also need a BPF
file system of their own: `mount -t bpf bpf DIR && chown USER DIR`, and --bpffs DIR.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Steer the listeners on a port; again: re-plan in place
    Attach(attach::Args),
    /// Give a port back to the kernel's hash
    Detach(detach::Args),
    /// Give a worker nothing new, and wait until it accepted what it had got
    Drain(drain::Args),
    /// Give a drained worker its share again
    Undrain(undrain::Args),
    /// Set workers' shares, for a canary or a slow one
    Weight(weight::Args),
    /// Keep ports steered while workers come, go, move and die
    Agent(agent::Args),
    /// Start copies of a program, one per CPU, steer them, and keep them running
    Run(run::Args),
    /// Show what is steered, by whom, and what is wrong with it
    Status(status::Args),
    /// Watch what is steered where, live
    Top(top::Args),
    /// See how long connections wait, and on which CPUs they come and are accepted
    Trace(trace::Args),
    /// Print metrics in Prometheus' text format
    Metrics(metrics::Args),
    /// Show what steering does on this machine, with a server of its own
    Demo(demo::Args),
    /// Compare steering with everything else on this machine, with controls
    Bench(bench::Args),
    /// Find out whether steering helps a load of yours
    Experiment(experiment::Args),
    /// Follow the program's log (after `attach --log-misses`)
    Log(log::Args),
    /// Print completions for a shell
    Completions(generate::CompletionsArgs),
    /// Print the manual page, or write all of them into a directory
    Man(generate::ManArgs),
    /// A worker of the demo
    #[command(hide = true)]
    DemoWorker,
    /// The server of the bench
    #[command(hide = true)]
    BenchServer,
    /// What ends the workers of `run` when it was killed
    #[command(hide = true)]
    RunGuard,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = match cli.verb {
        Verb::Attach(args) => attach::run(&args),
        Verb::Detach(args) => detach::run(&args),
        Verb::Drain(args) => drain::run(&args),
        Verb::Undrain(args) => undrain::run(&args),
        Verb::Weight(args) => weight::run(&args),
        Verb::Agent(args) => agent::run(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Top(args) => top::run(&args),
        Verb::Trace(args) => trace::run(&args),
        Verb::Metrics(args) => metrics::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Experiment(args) => experiment::run(&args),
        Verb::Log(args) => log::run(&args),
        Verb::Completions(args) => generate::completions(&args, Cli::command()),
        Verb::Man(args) => generate::man(&args, Cli::command()),
        Verb::DemoWorker => demo::worker(),
        Verb::BenchServer => bench::server(),
        Verb::RunGuard => run::guard(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads us has had enough (`| head`).
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let style = anstyle::AnsiColor::Red.on_default().bold();
            let mut stderr = anstream::stderr();
            let _nowhere_to_say_it = writeln!(stderr, "{style}error:{style:#} {}", message(&error));
            ExitCode::from(exit::code(&error))
        }
    }
}

/// The error and what caused it, each said once: many an error's own text tells its cause already.
fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Standard output that keeps colours only where they can be seen.
fn stdout() -> anstream::AutoStream<io::StdoutLock<'static>> {
    anstream::AutoStream::auto(io::stdout().lock())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_error_says_each_cause_once() {
        let cause = || io::Error::from_raw_os_error(2);
        let told = crate::sys::SyscallError { call: "open", source: cause() };
        assert_eq!(message(&told.into()), format!("open: {}", cause()));
        let untold = anyhow::Error::new(cause()).context("read x");
        assert_eq!(message(&untold), format!("read x: {}", cause()));
    }
}
