//! The command line: what was typed, turned into calls of the library and their results into text.
//!
//! One file per verb. Nouns change nothing (`status`), verbs do. What a verb found goes to standard
//! output, everything else to standard error.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

mod args;
mod attach;
mod demo;
mod detach;
mod exit;
mod generate;
mod log;
mod output;
mod status;

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
  reuseport-steer status                        What is steered, and what is wrong with it
  reuseport-steer detach --port 6432            Give it back to the kernel's hash

Exit codes:
  0  done (also: already so)
  1  failed for another reason; the message says which
  2  the command line is wrong, or an option fits nothing that was found
  3  nothing to work on: nobody listens there, or the choice is ambiguous
  4  found, but cannot be steered as it is: no SO_REUSEPORT, one listener, MPTCP, worker unknown
  5  not permitted: a capability, ptrace or seccomp rule is in the way
  6  the system lacks something: bpffs, a kernel feature, memory limits
  7  somebody else's: a foreign program or map, or another instance at work

Needs CAP_BPF and CAP_SYS_PTRACE; CAP_PERFMON to see whose program is attached; CAP_SYS_ADMIN
for other network namespaces; CAP_DAC_READ_SEARCH to see which thread of another user's process
accepts. Root has them all unless they were taken away. Other users also need a BPF file system
of their own: `mount -t bpf bpf DIR && chown USER DIR`, and --bpffs DIR.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Steer the listeners on a port; again: re-plan in place
    Attach(attach::Args),
    /// Give a port back to the kernel's hash
    Detach(detach::Args),
    /// Show what is steered, by whom, and what is wrong with it
    Status(status::Args),
    /// Show what steering does on this machine, with a server of its own
    Demo(demo::Args),
    /// Follow the program's log (after `attach --log-misses`)
    Log(log::Args),
    /// Print completions for a shell
    Completions(generate::CompletionsArgs),
    /// Print the manual page, or write all of them into a directory
    Man(generate::ManArgs),
    /// A worker of the demo
    #[command(hide = true)]
    DemoWorker,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = match cli.verb {
        Verb::Attach(args) => attach::run(&args),
        Verb::Detach(args) => detach::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Log(args) => log::run(&args),
        Verb::Completions(args) => generate::completions(&args, Cli::command()),
        Verb::Man(args) => generate::man(&args, Cli::command()),
        Verb::DemoWorker => demo::worker(),
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
