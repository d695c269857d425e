//! The project's chores, at the desk and in CI alike: `cargo xtask --help`.
#![expect(clippy::print_stdout, reason = "a command line that reports its progress")]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

mod build_ebpf;

/// The project's chores
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    BuildEbpf(build_ebpf::Options),
}

fn main() -> Result<()> {
    match Verb::parse() {
        Verb::BuildEbpf(options) => build_ebpf::run(&options),
    }
}

/// The workspace's root: that of the checkout that runs us, also from a shared target directory.
fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    let xtask = manifest.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// Shows and runs a command; its failure is ours.
fn run_command(command: &mut Command) -> Result<()> {
    println!("+ {}", show(command));
    let status = command.status().with_context(|| show(command))?;
    ensure!(status.success(), "{} failed: {status}", show(command));
    Ok(())
}

/// First line of what a command prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| show(command))?;
    ensure!(output.status.success(), "{} failed: {}", show(command), output.status);
    Ok(String::from_utf8(output.stdout)?.lines().next().unwrap_or_default().to_owned())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
