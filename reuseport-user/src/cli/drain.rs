//! `drain`, and what it shares with the other verbs that change what a worker gets.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::args::{CommonArgs, OverrideArgs, PortArgs, WorkerId};
use super::output::{BOLD, count, notices, table, to_json};
use crate::plan::role_str;
use crate::steer::change::{ChangeOptions, ChangeReport, Drained, SeatReport, Waiting, Who, drain};

/// Give a worker nothing new, and wait until it accepted what it had got
///
/// Its rows go to others in one step; it stays in the group, for taken out it would still get its
/// part of what the kernel's hash decides. Then waits until its accept queue is empty and no handshake
/// is left that was under way: from then on it can be stopped without a reset. It stays drained,
/// also when `attach` is run again, until `undrain` or its end.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer drain --port 6432 --pid 4711 && kill 4711
  reuseport-steer drain --port 443 --slot 3 --no-wait
  reuseport-steer drain --port 8080 --pid 4711/4713 --timeout 10")]
pub(super) struct Args {
    #[command(flatten)]
    who: WhoArgs,
    /// How long to wait, in seconds; a lost client's handshake takes a minute to end
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    timeout: u32,
    /// Do not wait
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
}

/// A worker or a slot of a port, and where all that is.
#[derive(Debug, clap::Args)]
pub(super) struct WhoArgs {
    #[command(flatten)]
    port: PortArgs,
    /// The worker: a process, or one thread of it; without --netns its namespace is looked into
    #[arg(long, value_name = "PID[/TID]", required_unless_present = "slot")]
    pid: Option<WorkerId>,
    /// The slot, as `status` shows it
    #[arg(long, value_name = "SLOT", conflicts_with = "pid")]
    slot: Option<u32>,
    #[command(flatten)]
    overrides: OverrideArgs,
    #[command(flatten)]
    common: CommonArgs,
}

impl WhoArgs {
    pub(super) fn options(&self) -> ChangeOptions {
        ChangeOptions {
            target: self.port.target(self.pid.map(|worker| worker.pid)),
            overrides: self.overrides.overrides(),
            settings: self.common.settings(),
        }
    }

    pub(super) fn who(&self) -> Result<Who> {
        let worker = self.pid.map(|WorkerId { pid, tid }| Who::Worker { pid, tid });
        worker.or(self.slot.map(Who::Slot)).context("neither --pid nor --slot is given")
    }

    pub(super) fn show(&self, reports: &[ChangeReport]) -> Result<()> {
        show(reports, &self.common)
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let patience = (!args.no_wait).then(|| Duration::from_secs(args.timeout.into()));
    let reports = drain(&args.who.options(), args.who.who()?, patience, &mut tell)?;
    args.who.show(&reports)
}

/// What there is to wait for, for whoever watches.
fn tell(waiting: &Waiting) {
    let Waiting { slot, queued, handshakes } = waiting;
    let mut stderr = anstream::stderr();
    let _nowhere_to_say_it = writeln!(
        stderr,
        "slot {slot}: {} to be accepted, {} handshakes under way",
        count(u64::from(*queued)),
        count(*handshakes as u64)
    );
}

/// What was changed.
pub(super) fn show(reports: &[ChangeReport], common: &CommonArgs) -> Result<()> {
    let mut out = super::stdout();
    if common.json {
        return to_json(&mut out, &reports);
    }
    for report in reports {
        print(report, &mut out)?;
    }
    Ok(())
}

fn print(report: &ChangeReport, out: &mut impl Write) -> io::Result<()> {
    let how = if report.changed { "re-planned in place" } else { "nothing to change" };
    let (key, generation) = (report.group, report.generation);
    writeln!(out, "{BOLD}{key}{BOLD:#}  {how}: generation {generation}")?;
    let seat = |it: &SeatReport| {
        let drained = it.drained.map(|drained| match drained {
            Drained::Empty => "empty",
            Drained::Gone => "gone",
        });
        vec![
            it.slot.to_string(),
            format!("{}%", it.weight),
            role_str(it.role).to_owned(),
            it.served.to_string(),
            drained.unwrap_or("-").to_owned(),
        ]
    };
    let lines = report.seats.iter().map(seat).collect();
    table(out, &["SLOT", "WEIGHT", "ROLE", "WORKER", "QUEUE"], lines)?;
    notices(out, &report.notices)
}
