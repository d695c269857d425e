//! `ci`: what `.ci/run` runs. The README's own commands, as it prints them.

use anyhow::{Context as _, Result};

use crate::shell::{Steps, program, run as execute};

/// No choices: the same everywhere.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

/// Cheapest first. A test compares this list with the README.
const COMMANDS: [&str; 6] = [
    "cargo xtask lint",
    "cargo xtask build-ebpf --check",
    "cargo build --release",
    "cargo install --locked --path reuseport-user",
    "cargo xtask test",
    "cargo xtask bench --quick",
];

pub(crate) fn run(_: &Options) -> Result<()> {
    let mut steps = Steps::default();
    for command in COMMANDS {
        steps.step(command, || {
            let (name, args) = command.split_once(' ').context("a command with arguments")?;
            let args: Vec<_> = args.split(' ').collect();
            let mut command = program(name, &args);
            if args.first() == Some(&"install") {
                // Where it leaves the caller's own installation alone.
                command.args(["--root", "target/install"]);
            }
            execute(&mut command)
        });
    }
    steps.finish()
}
