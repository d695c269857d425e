//! `attach`.

use std::io::{self, Write};

use anyhow::Result;
use reuseport_common::abi::Policy;

use super::args::{CommonArgs, OfWorker, OverrideArgs, Percent, PolicyArg, RungArg, TargetArgs};
use super::output::{BOLD, notices, table, to_json};
use crate::plan::{Plan, SeatPlan};
use crate::rungs::{PassedOver, Rung};
use crate::steer::{AttachOptions, AttachReport, attach};

/// Steer the listeners on a port; again: re-plan in place
///
/// Finds the SO_REUSEPORT listeners on the port, who serves each and on which CPUs, and gives every
/// CPU's connections to the worker that runs there or nearest. No connection is lost by it. Run it
/// again after workers came, went or moved: the new plan is switched in without a gap.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "one per flag")]
#[command(after_long_help = "\
Examples:
  reuseport-steer attach --port 6432
  reuseport-steer attach --port 6432 --dry-run --json
  reuseport-steer attach --port 443 --addr 10.0.0.5 --pin
  reuseport-steer attach --port 8080 --worker 4711=0 --worker 4712=1
  reuseport-steer attach --port 8080 --rung auto
  reuseport-steer attach --port 8080 --policy round-robin --weight 4712=25")]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Print the plan with its reasons and change nothing
    #[arg(long)]
    dry_run: bool,
    /// What decides where a connection goes
    #[arg(long, value_enum, default_value_t = PolicyArg::Cpu)]
    policy: PolicyArg,
    /// A worker's share in percent of a normal one; 0 takes none; remembered (repeatable)
    #[arg(long, value_name = "PID[/TID]=PERCENT")]
    weight: Vec<OfWorker<Percent>>,
    #[command(flatten)]
    overrides: OverrideArgs,
    /// Pin workers that may run on several CPUs to the one the plan gives them
    #[arg(long)]
    pin: bool,
    /// Replace a program that somebody else attached; detaching does not bring it back
    #[arg(long)]
    takeover: bool,
    /// The mechanism; auto takes the best that is permitted and fits, and says why not a better one
    #[arg(long, value_enum, default_value_t = RungArg::Ebpf)]
    rung: RungArg,
    /// Let the program log the connections it cannot steer; `reuseport-steer log` shows them
    #[arg(long)]
    log_misses: bool,
    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    fn options(&self) -> AttachOptions {
        AttachOptions {
            overrides: self.overrides.overrides(),
            policy: self.policy.into(),
            weights: self.weight.iter().map(Into::into).collect(),
            pin: self.pin,
            takeover: self.takeover,
            rung: self.rung.into(),
            dry_run: self.dry_run,
            log: self.log_misses,
            settings: self.common.settings(),
            ..AttachOptions::new(self.target.target())
        }
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let reports = attach(&args.options())?;
    let mut out = super::stdout();
    if args.common.json {
        return to_json(&mut out, &reports);
    }
    for report in &reports {
        print(report, &mut out)?;
    }
    Ok(())
}

fn headline(report: &AttachReport) -> String {
    let policy = report.plan.policy.name();
    let rung = report.rung.rung;
    match (report.attached, report.applied, rung) {
        (Some(attached), _, _) => format!(
            "{}: policy {policy}, program {}, generation {}, {}",
            if attached.in_place { "re-planned in place" } else { "attached" },
            attached.program_id,
            attached.generation,
            if attached.migrates {
                "connections of a closing listener migrate"
            } else {
                "no migration on this kernel"
            }
        ),
        (None, Some(_), Rung::Hash) => "not steered: the kernel's hash decides".to_owned(),
        (None, Some(applied), Rung::IncomingCpu) => {
            format!("attached: rung {rung}, SO_INCOMING_CPU set on {} listeners", applied.set)
        }
        (None, Some(applied), _) => {
            format!("attached: rung {rung}, a program for {} listeners", applied.set)
        }
        (None, None, Rung::Ebpf) => {
            format!("would be steered (nothing was changed): policy {policy}")
        }
        (None, None, _) => {
            format!("would be steered (nothing was changed): policy {policy}, rung {rung}")
        }
    }
}

fn print(report: &AttachReport, out: &mut impl Write) -> io::Result<()> {
    let plan = &report.plan;
    writeln!(out, "{BOLD}{}{BOLD:#}  {}", report.group.key, headline(report))?;
    for PassedOver { rung, why } in &report.rung.passed_over {
        writeln!(out, "  not {rung}: {why}")?;
    }
    let seats = report.group.listeners.iter().zip(&report.slots).map(|(listener, slot)| {
        let seat = plan.seats.iter().find(|seat| seat.slot == *slot);
        let home =
            seat.and_then(|seat| seat.home).map_or_else(|| "-".to_owned(), |it| it.to_string());
        let gets = match report.rung.rung {
            Rung::Ebpf | Rung::ClassicBpf => seat.map_or_else(String::new, |it| share(plan, it)),
            Rung::IncomingCpu => home.clone(),
            Rung::Hash => "hashed".to_owned(),
        };
        vec![slot.to_string(), listener.served.to_string(), listener.cpus().to_string(), home, gets]
    });
    let gets = if plan.policy == Policy::Cpu { "GETS CPUS" } else { "GETS" };
    table(out, &["SLOT", "WORKER", "MAY RUN ON", "COUNTED ON", gets], seats.collect())?;
    if report.attached.is_none() && report.applied.is_none() {
        for row in &plan.rows_explained {
            writeln!(out, "  {row}")?;
        }
    }
    for worker in &report.pinned {
        let name = worker.tid.map_or(String::new(), |tid| format!("/{tid}"));
        writeln!(
            out,
            "  pinned {}{name} to CPU {} (was {})",
            worker.pid, worker.cpu, worker.before
        )?;
    }
    for warning in &plan.warnings {
        writeln!(out, "  note: {warning}")?;
    }
    notices(out, &report.notices)
}

/// What a seat gets: CPUs, or a part of the table where rows are no CPUs.
fn share(plan: &Plan, seat: &SeatPlan) -> String {
    if plan.policy == Policy::Cpu {
        return seat.cpus.to_string();
    }
    let percent = 100.0 * f64::from(seat.entries) / plan.table.len().max(1) as f64;
    format!("{percent:.0} %")
}
