//! The project's chores, each a verb with a file of its own: `cargo xtask --help`.
#![expect(clippy::print_stdout, reason = "a command-line program speaks on stdout")]

mod bench;
mod build_ebpf;
mod ci;
mod lint;
mod packages;
mod shell;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's chores
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Compile the BPF objects, or check that the committed ones are those of the sources
    BuildEbpf(build_ebpf::Options),
    /// Run every test: unit, documentation, and on the real kernel (as root)
    Test(test::Options),
    /// Measure: what steering gains, what it costs
    Bench(bench::Options),
    /// Check format, lints, documentation and the rules of the house
    Lint(lint::Options),
    /// Everything that must pass before a change goes in
    Ci(ci::Options),
    Vm(vm::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::BuildEbpf(options) => build_ebpf::run(&options),
        Verb::Test(options) => test::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Lint(options) => lint::run(&options),
        Verb::Ci(options) => ci::run(&options),
        Verb::Vm(options) => vm::run(&options),
    };
    if let Err(error) = done {
        println!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
