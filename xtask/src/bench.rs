//! `bench`: builds what users run and measures it.

use std::path::PathBuf;

use anyhow::Result;

use crate::shell::{cargo, program, read, root, run as execute};
use crate::{packages, test};

/// What `steer-bench` measures.
const SUBJECTS: [&str; 6] = ["pgbench", "selection", "attach", "trace", "http", "all"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// pgbench, selection, attach, trace, http or all
    #[arg(default_value = "all", value_parser = SUBJECTS)]
    subject: String,
    /// In a few minutes: do the gates hold, do the signs agree? Figures count for nothing
    #[arg(long)]
    quick: bool,
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Repeat the order of an earlier run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    test::require_root()?;
    packages::install()?;
    test::mount_bpffs()?;
    // Always what users run; who drives it need be fast only where figures count.
    execute(&mut cargo(&["build", "--release", "--package", "reuseport-user"]))?;
    let (profile, directory) =
        if options.quick { ("dev", "debug") } else { ("release", "release") };
    let drivers = ["build", "--package", "reuseport-tests", "--bins", "--profile", profile];
    execute(&mut cargo(&drivers))?;
    let driver = test::target().join(directory).join("steer-bench");
    let mut command = program(&driver.to_string_lossy(), &[&options.subject]);
    command.env("REUSEPORT_STEER", test::target().join("release/reuseport-steer"));
    if let Some(commit) = commit() {
        command.env("STEER_BENCH_COMMIT", commit);
    }
    if options.quick {
        command.arg("--quick");
    }
    if let Some(file) = &options.json {
        // Relative to where the user is, not to the repository's root.
        command.arg("--json").arg(std::path::absolute(file)?);
    }
    if let Some(seed) = options.seed {
        command.arg("--seed").arg(seed.to_string());
    }
    execute(&mut command)
}

/// The commit that is measured; `None` outside a checkout.
fn commit() -> Option<String> {
    if !root().join(".git").exists() {
        return None;
    }
    let description = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
    read(&mut program("git", &description)).ok().map(|text| text.trim().to_owned())
}
