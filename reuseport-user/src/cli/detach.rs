//! `detach`.

use std::io::Write as _;

use anyhow::Result;

use super::args::{CommonArgs, TargetArgs};
use super::output::{BOLD, notices, to_json};
use crate::steer::{DetachReport, Detached, SteerError, detach};

/// Give a port back to the kernel's hash
///
/// Takes our program off and removes its pins, or undoes what `attach --rung` set instead; connections
/// go on, new ones are picked by hash. Done already is done; what is not ours, a program (exit code 7) or
/// a server's own SO_INCOMING_CPU, is left as it is. Pins of a group that is gone are removed too.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer detach --port 6432
  reuseport-steer detach --port 443 --addr 10.0.0.5")]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    common: CommonArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let reports = detach(&args.target.target(), &args.common.settings())?;
    let mut out = super::stdout();
    if args.common.json {
        to_json(&mut out, &reports)?;
        return left_attached(&reports);
    }
    let port = args.target.target().port;
    for report in &reports {
        let group = report.group.map_or_else(|| format!("port {port}"), |it| it.to_string());
        let outcome = match report.outcome {
            Detached::Detached => "detached: the kernel's hash decides again",
            Detached::Already => "already detached",
            Detached::Cleared => "the group is gone, or its pins unreadable; they were removed",
            Detached::Foreign => "not ours, left alone",
        };
        writeln!(out, "{BOLD}{group}{BOLD:#}  {outcome}")?;
        notices(&mut out, &report.notices)?;
    }
    left_attached(&reports)
}

/// Who asks for the kernel's hash and does not get it is told by the exit code, too.
fn left_attached(reports: &[DetachReport]) -> Result<()> {
    let mut left = reports.iter().filter(|it| it.outcome == Detached::Foreign);
    match left.find_map(|it| it.group) {
        Some(group) => Err(SteerError::LeftAttached { group }.into()),
        None => Ok(()),
    }
}
