//! `attach`.

use std::io::{self, Write};

use anyhow::Result;

use super::args::{CommonArgs, CpuOrder, Cpus, OfWorker, Percent, PolicyArg, TargetArgs};
use super::output::{BOLD, notices, served, table, to_json};
use crate::discover::overrides::Overrides;
use crate::plan::policy_str;
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
    /// A worker's share in percent of a normal one; 0 takes none (repeatable)
    #[arg(long, value_name = "PID[/TID]=PERCENT")]
    weight: Vec<OfWorker<Percent>>,
    /// The CPUs a worker runs on, where that cannot be seen (repeatable)
    #[arg(long, value_name = "PID[/TID]=CPUS")]
    worker: Vec<OfWorker<Cpus>>,
    /// CPUs of the listeners in order of their creation, where that cannot be seen
    #[arg(long, value_name = "CPUS")]
    order: Option<CpuOrder>,
    /// Pin workers that may run on several CPUs to the one the plan gives them
    #[arg(long)]
    pin: bool,
    /// Replace a program that somebody else attached; detaching does not bring it back
    #[arg(long)]
    takeover: bool,
    /// Let the program log the connections it cannot steer; `reuseport-steer log` shows them
    #[arg(long)]
    log_misses: bool,
    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    fn options(&self) -> AttachOptions {
        let workers = self.worker.iter().map(|it| (it.pid, it.tid, it.value.0.clone())).collect();
        AttachOptions {
            overrides: Overrides { workers, order: self.order.as_ref().map(|cpus| cpus.0.clone()) },
            policy: self.policy.into(),
            weights: self.weight.iter().map(Into::into).collect(),
            pin: self.pin,
            takeover: self.takeover,
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

fn print(report: &AttachReport, out: &mut impl Write) -> io::Result<()> {
    let plan = &report.plan;
    let key = &report.group.key;
    match report.attached {
        Some(attached) => {
            let how = if attached.in_place { "re-planned in place" } else { "attached" };
            writeln!(
                out,
                "{BOLD}{key}{BOLD:#}  {how}: policy {}, program {}, generation {}, {}",
                policy_str(plan.policy),
                attached.program_id,
                attached.generation,
                if attached.migrates {
                    "connections of a closing listener migrate"
                } else {
                    "no migration on this kernel"
                }
            )?;
        }
        None => writeln!(
            out,
            "{BOLD}{key}{BOLD:#}  would be steered (nothing was changed): policy {}",
            policy_str(plan.policy)
        )?,
    }
    let seats = report.group.listeners.iter().zip(&report.slots).map(|(listener, slot)| {
        let seat = plan.seats.iter().find(|seat| seat.slot == *slot);
        let home = seat.and_then(|seat| seat.home);
        vec![
            slot.to_string(),
            served(&listener.served),
            listener.cpus().to_string(),
            home.map_or_else(|| "-".to_owned(), |cpu| cpu.to_string()),
            seat.map_or_else(String::new, |seat| seat.cpus.to_string()),
        ]
    });
    table(out, &["SLOT", "WORKER", "MAY RUN ON", "COUNTED ON", "GETS CPUS"], seats.collect())?;
    if report.attached.is_none() {
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
