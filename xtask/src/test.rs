//! `test`: every test there is, with the set-up it needs.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::packages;
use crate::shell::{Steps, cargo, line, program, root, run as execute};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only unit and documentation tests: quick; all but a few pass without root
    #[arg(long)]
    unit: bool,
    /// Tests on the real kernel at a time
    #[arg(long, default_value_t = 2, value_name = "N")]
    threads: usize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let filter = options.filter.as_deref();
    if !options.unit {
        require_root()?;
        packages::install()?;
        mount_bpffs()?;
    }
    let mut steps = Steps::default();
    steps.step("unit and documentation tests", || {
        let mut command =
            cargo(&["test", "--workspace", "--exclude", "reuseport-tests", "--quiet"]);
        execute(command.args(filter))
    });
    if !options.unit {
        // What is tested on the kernel is what users run: the release build.
        let mut built = false;
        steps.step("build", || {
            execute(&mut cargo(&["build", "--release", "--package", "reuseport-user"]))?;
            built = true;
            Ok(())
        });
        if built {
            steps.step("tests on the real kernel", || integration(options));
        }
    }
    steps.finish()
}

/// How often a test that failed beside another must pass alone.
const ALONE: usize = 3;

/// Two at a time on a busy machine disturb each other now and then. What failed is run again, alone:
/// if it passes every time the run goes on, and says so; if not, it is the test or what it tests.
fn integration(options: &Options) -> Result<()> {
    let mut command = cases();
    command.arg(format!("--test-threads={}", options.threads.max(1)));
    let (failed, result) = tee(command.args(options.filter.as_deref()))?;
    if failed.is_empty() {
        return result;
    }
    for round in 1..=ALONE {
        println!("\nalone, {round} of {ALONE}: {}", failed.join(" "));
        execute(cases().args(["--test-threads=1", "--exact"]).args(&failed))?;
    }
    println!(
        "\nDISTURBED: failed beside another, passed {ALONE} times alone: {}",
        failed.join(" ")
    );
    Ok(())
}

fn cases() -> Command {
    let mut command = cargo(&["test", "--package", "reuseport-tests", "--test", "cases", "--"]);
    command.env("REUSEPORT_STEER", target().join("release/reuseport-steer"));
    command
}

/// Runs a command whose output is shown; the tests that failed.
fn tee(command: &mut Command) -> Result<(Vec<String>, Result<()>)> {
    println!("$ {}", line(command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("start the tests")?;
    let output = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let mut failed = Failed::default();
    for text in output.split(b'\n') {
        let text = String::from_utf8_lossy(&text?).into_owned();
        println!("{text}");
        failed.read(&text);
    }
    let status = child.wait()?;
    if status.success() {
        return Ok((Vec::new(), Ok(())));
    }
    Ok((failed.names, Err(anyhow!("the tests failed: {status}"))))
}

/// The names in the last list of failures that a test runner printed.
#[derive(Default)]
struct Failed {
    names: Vec<String>,
    listing: bool,
}

impl Failed {
    fn read(&mut self, line: &str) {
        match line.strip_prefix("    ") {
            Some(name) if self.listing => self.names.push(name.to_owned()),
            _ if line == "failures:" => (self.names, self.listing) = (Vec::new(), true),
            _ => self.listing &= line.is_empty() && self.names.is_empty(),
        }
    }
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    target.map_or_else(|| root().join("target"), |dir| root().join(dir))
}

pub(crate) fn require_root() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Real, effective, saved, file system.
    if uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0") {
        return Ok(());
    }
    bail!(
        "the tests on the real kernel need root: run `sudo -E env PATH=$PATH cargo xtask test`, \
         or only the others with `cargo xtask test --unit`"
    )
}

pub(crate) fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        return Ok(());
    }
    println!("bpffs is not mounted, which the tests need: mounting it");
    execute(&mut program("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"]))
}

impl Default for Options {
    /// As without arguments.
    fn default() -> Self {
        Self { filter: None, unit: false, threads: 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_list_counts_and_not_what_tests_said() {
        let output = "failures:\n\n---- a::b stdout ----\nfailures were:\n    seven\n\n\nfailures:\n    \
                      a::b\n    c::d\n\ntest result: FAILED. 1 passed; 2 failed\n    other";
        let mut failed = Failed::default();
        output.lines().for_each(|line| failed.read(line));
        assert_eq!(failed.names, ["a::b", "c::d"]);
    }
}
