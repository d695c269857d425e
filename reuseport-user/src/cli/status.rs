//! `status`.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::args::{CommonArgs, WhereArgs};
use super::output::{BOLD, age, count, list, notices, percent, table, to_json};
use crate::bpf::owner::Attached;
use crate::plan::role_str;
use crate::rungs::Rung;
use crate::steer::status::{GroupStatus, ListenerStatus, Steering, Traced};
use crate::steer::{RungStatus, status};

/// Where connections are accepted, by distance from where they were received.
const NEARNESS: [&str; 5] = [
    "on the receiving CPU",
    "elsewhere on its core",
    "elsewhere on its last-level cache",
    "elsewhere on its node",
    "farther",
];

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
    writeln!(out, "  {}", headline(group))?;
    listeners(group, out)?;
    if let Some(steering) = &group.steering {
        rows(steering, out)?;
        counters(steering, out)?;
        writeln!(out, "  pins {}", steering.pins.display())?;
    }
    if let Some(traced) = &group.traced {
        writeln!(out, "  {}", trace(traced))?;
    }
    let rung = group.rung.rung.map_or("unknown", Rung::name);
    writeln!(out, "  rung {rung}: {}", group.rung.why)?;
    if let Some(auto) = &group.rung.auto {
        writeln!(out, "  `attach --rung auto`, run like this now, would take {auto}")?;
        if group.rung.ours && Some(auto.rung) != group.rung.rung {
            writeln!(out, "  (why {rung} was taken when it was attached is not remembered)")?;
        }
    }
    notices(out, &group.problems)
}

/// What a running `trace` sees: of the distances those that there are.
pub(super) fn trace(traced: &Traced) -> String {
    let Traced { pid, locality } = traced;
    let all = locality.total();
    let s = if all == 1 { "" } else { "s" };
    let mut text = format!("trace (process {pid}): {} connection{s} accepted", count(all));
    let told = NEARNESS.into_iter().zip(locality.counts());
    for (how, connections) in told.filter(|&(_, connections)| connections > 0) {
        _ = write!(text, ", {} {how}", percent(connections, all));
    }
    text
}

/// Whether it is steered, and not by eBPF.
fn lower_rung(status: &RungStatus) -> bool {
    match status.rung {
        Some(Rung::IncomingCpu) => true,
        // A server's own classic program may do anything.
        Some(Rung::ClassicBpf) => status.ours,
        Some(Rung::Ebpf | Rung::Hash) | None => false,
    }
}

/// Whether and how the group is steered.
pub(super) fn headline(group: &GroupStatus) -> String {
    let Some(steering) = &group.steering else {
        return match (&group.attached, group.listeners.len()) {
            _ if lower_rung(&group.rung) && group.rung.ours => "steered by us",
            _ if lower_rung(&group.rung) => "steered by the server",
            _ if group.rung.elsewhere => "steered by reuseport-steer, without pins here",
            (Attached::Nothing, 0) => "gone: nobody listens",
            (Attached::Nothing, 1) => "not steered: there is one listener",
            (Attached::Nothing, _) => "not steered: the kernel's hash decides",
            _ => "not steered by us",
        }
        .to_owned();
    };
    let attached_at = UNIX_EPOCH + Duration::from_secs(steering.attached_at);
    let attached = SystemTime::now().duration_since(attached_at).unwrap_or_default();
    format!(
        "{}: policy {}, program {}, generation {}, {}, attached {} ago",
        if steering.in_force { "steered" } else { "NOT IN FORCE" },
        steering.policy.unwrap_or("unknown"),
        steering.program_id,
        steering.generation,
        if steering.migrates { "migration on" } else { "no migration" },
        age(attached.as_secs())
    )
}

fn listeners(group: &GroupStatus, out: &mut impl Write) -> io::Result<()> {
    let total: u64 = group.listeners.iter().map(|it| it.selections).sum();
    let prefers = group.listeners.iter().any(|it| it.incoming_cpu.is_some());
    let lines = group.listeners.iter().map(|it| {
        let listener = &it.listener;
        let number = |it: Option<u32>| it.map_or_else(|| "-".to_owned(), |it| it.to_string());
        let mut line = vec![
            number(it.slot),
            it.slot.map_or_else(|| "-".to_owned(), |_| format!("{}%", it.weight)),
            it.slot.map_or_else(|| "-".to_owned(), |_| part(it)),
            listener.served.to_string(),
            listener.cpus().to_string(),
            format!("{}/{}", listener.queued, listener.backlog),
            count(it.selections),
            percent(it.selections, total),
        ];
        line.extend(prefers.then(|| number(it.incoming_cpu)));
        line
    });
    let mut heads = vec!["SLOT", "WEIGHT", "ROLE", "WORKER", "CPUS", "QUEUED", "SELECTED", "SHARE"];
    heads.extend(prefers.then_some("GETS CPU"));
    table(out, &heads, lines.collect())
}

/// Its role, and whether it may play it.
fn part(it: &ListenerStatus) -> String {
    format!("{}{}", role_str(it.role), if it.evicted { ", evicted" } else { "" })
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
