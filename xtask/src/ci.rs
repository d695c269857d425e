//! `ci`: what `.ci/run` runs.

use anyhow::Result;

use crate::shell::Steps;
use crate::{bench, build_ebpf, lint, test};

/// No choices: the same everywhere.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: &Options) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("lint", || lint::run(&lint::Options {}));
    steps.step("build-ebpf --check", || build_ebpf::run(&build_ebpf::Options { check: true }));
    steps.step("test", || test::run(&test::Options::default()));
    steps.step("bench --quick", || bench::run(&bench::Options::quick()));
    steps.finish()
}
