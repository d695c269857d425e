//! `test`: every test there is, with the set-up it needs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::packages;
use crate::shell::{Steps, cargo, program, root, run as execute};

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

fn integration(options: &Options) -> Result<()> {
    let target = target();
    let mut command = cargo(&["test", "--package", "reuseport-tests", "--test", "cases", "--"]);
    command.env("REUSEPORT_STEER", target.join("release/reuseport-steer"));
    command.arg(format!("--test-threads={}", options.threads.max(1)));
    execute(command.args(options.filter.as_deref()))
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
