//! `status`.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::args::{CommonArgs, WhereArgs};
use super::output::{BOLD, count, list, notices, percent, served, table, to_json};
use crate::bpf::owner::Attached;
use crate::steer::status;
use crate::steer::status::{GroupStatus, Steering};

/// Show what is steered, by whom, and what is wrong with it
///
/// Slots are read back from the kernel by socket cookie, ownership is asked of the kernel with a BPF
/// iterator. Counters count runs of the program, not connections. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer status                Every group that is steered
  reuseport-steer status --port 6432    The groups on a port, steered or not
  reuseport-steer status --json | jq '.[].problems'")]
pub(super) struct Args {
    /// Only the groups on this port, also those that are not steered
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    place: WhereArgs,
    #[command(flatten)]
    common: CommonArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let target = args.port.map(|port| args.place.target(port));
    let groups = status(target.as_ref(), &args.common.settings())?;
    let mut out = super::stdout();
    if args.common.json {
        return to_json(&mut out, &groups);
    }
    if groups.is_empty() {
        writeln!(out, "nothing is steered")?;
    }
    for group in &groups {
        print(group, &mut out)?;
    }
    Ok(())
}

fn print(group: &GroupStatus, out: &mut impl Write) -> io::Result<()> {
    write!(out, "{BOLD}{}{BOLD:#}", group.group)?;
    if let Some(pid) = group.netns_pid {
        write!(out, " (namespace of process {pid})")?;
    }
    match (&group.steering, &group.attached) {
        (Some(steering), _) => write!(out, "  {}", headline(steering))?,
        (None, Attached::Nothing) => match group.listeners.len() {
            0 => write!(out, "  gone: nobody listens")?,
            1 => write!(out, "  not steered: there is one listener")?,
            _ => write!(out, "  not steered: the kernel's hash decides")?,
        },
        (None, _) => write!(out, "  not steered by us")?,
    }
    writeln!(out)?;
    listeners(group, out)?;
    if let Some(steering) = &group.steering {
        rows(steering, out)?;
        counters(steering, out)?;
        writeln!(out, "  pins {}", steering.pins.display())?;
    }
    notices(out, &group.problems)
}

fn headline(steering: &Steering) -> String {
    format!(
        "{}: policy {}, program {}, generation {}, {}, attached {} ago",
        if steering.in_force { "steered" } else { "NOT IN FORCE" },
        steering.policy.unwrap_or("unknown"),
        steering.program_id,
        steering.generation,
        if steering.migrates { "migration on" } else { "no migration" },
        age(steering.attached_at)
    )
}

/// `3d`, `5h`, `12m`, `40s`.
fn age(since: u64) -> String {
    let since = UNIX_EPOCH + Duration::from_secs(since);
    let seconds = SystemTime::now().duration_since(since).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn listeners(group: &GroupStatus, out: &mut impl Write) -> io::Result<()> {
    let total: u64 = group.listeners.iter().map(|it| it.selections).sum();
    let lines = group.listeners.iter().map(|it| {
        let listener = &it.listener;
        vec![
            it.slot.map_or_else(|| "-".to_owned(), |slot| slot.to_string()),
            served(&listener.served),
            listener.cpus().to_string(),
            format!("{}/{}", listener.queued, listener.backlog),
            count(it.selections),
            percent(it.selections, total),
        ]
    });
    let heads = ["SLOT", "WORKER", "CPUS", "QUEUED", "SELECTED", "SHARE"];
    table(out, &heads, lines.collect())
}

fn rows(steering: &Steering, out: &mut impl Write) -> io::Result<()> {
    let by_cpu = steering.policy == Some("cpu");
    let selected = |row: u32| {
        let cpu = steering.counters.by_cpu.iter().find(|it| it.cpu == row)?;
        let cells = cpu.slots.iter().map(|(slot, runs)| format!("{slot}: {}", count(*runs)));
        Some(cells.collect::<Vec<_>>().join("  "))
    };
    if !by_cpu {
        return Ok(());
    }
    let lines = steering.rows.iter().map(|row| {
        vec![
            row.row.to_string(),
            list(&row.first),
            list(&row.second),
            selected(row.row).unwrap_or_default(),
        ]
    });
    table(out, &["CPU", "SLOT", "THEN", "SELECTED THERE, BY SLOT"], lines.collect())
}

fn counters(steering: &Steering, out: &mut impl Write) -> io::Result<()> {
    let it = &steering.counters;
    write!(
        out,
        "  {} runs: first choice {}, second {}, spilled {}, migrated {}",
        count(it.runs),
        count(it.first),
        count(it.second),
        count(it.spilled),
        count(it.migrated)
    )?;
    for (name, misses) in [
        ("no config", it.no_config),
        ("no row", it.no_row),
        ("empty row", it.empty_row),
        ("no socket", it.no_socket),
    ] {
        if misses > 0 {
            write!(out, ", {name} {}", count(misses))?;
        }
    }
    if let Some(local) = it.local.filter(|_| it.runs > 0) {
        let selected = it.first + it.second + it.spilled + it.migrated;
        write!(out, "; {} to a worker of the receiving CPU", percent(local, selected))?;
    }
    writeln!(out)
}
