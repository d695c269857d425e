//! A record as text.

use std::io::{self, Write};
use std::path::Path;

use super::super::output::{BOLD, table};
use crate::bench::Record;
use crate::bench::costs::{Costs, Selection};
use crate::bench::goals::Outcome;
use crate::bench::judge::{Figures, Headline, Verdict};
use crate::bench::mechanism::Mechanism;
use crate::bench::record::Cell;
use crate::bench::workload::Pace;
use crate::measure::{Estimate, Standing};

pub(super) fn print_into(out: &mut impl Write, record: &Record) -> io::Result<()> {
    let (settings, machine) = (&record.settings, &record.environment);
    writeln!(
        out,
        "{} repetitions of {} s, seed {}; Linux {}, {} on CPUs {}",
        settings.repetitions,
        settings.seconds,
        settings.seed,
        machine.kernel,
        machine.processor,
        machine.cpus,
    )?;
    for cell in &record.cells {
        if let Some(verdict) = &cell.verdict {
            print_cell(out, cell, verdict)?;
        }
    }
    if let Some(costs) = &record.costs {
        print_costs(out, costs)?;
    }
    print_goals(out, &record.goals)
}

fn print_goals(out: &mut impl Write, goals: &[Outcome]) -> io::Result<()> {
    if goals.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{BOLD}goals{BOLD:#}  set in advance; a star: not to be quoted, see its cell")?;
    let line = |it: &Outcome| {
        let star = if it.inconclusive_because.is_empty() { "" } else { " *" };
        vec![
            it.cell.clone(),
            it.what.clone(),
            it.wanted.clone(),
            it.found.map_or_else(|| "-".to_owned(), |found| found.to_string()),
            format!("{}{star}", it.standing.map_or("not judged", Standing::as_str)),
        ]
    };
    let heads = ["CELL", "FIGURE", "GOAL", "FOUND [95 % CI]", ""];
    table(out, &heads, goals.iter().map(line).collect())
}

fn print_costs(out: &mut impl Write, costs: &Costs) -> io::Result<()> {
    writeln!(out, "\n{BOLD}costs{BOLD:#}  of a selection, beyond that by the kernel's hash")?;
    let heads = ["SOCKETS", "MECHANISM", "NS [95 % CI]", "PROGRAM NS", "SET-UP ms", "MAPS KiB"];
    let line = |it: &Selection| {
        let ns = &it.nanoseconds;
        vec![
            it.sockets.to_string(),
            it.mechanism.to_string(),
            format!("{:.0} [{:.0}..{:.0}]", ns.median(), ns.ci95.low, ns.ci95.high),
            it.program_ns.map_or_else(|| "-".to_owned(), |ns| format!("{ns:.0}")),
            format!("{:.1}", it.setup_ms),
            (it.memory_bytes / 1024).to_string(),
        ]
    };
    table(out, &heads, costs.selection.iter().map(line).collect())?;
    for what in &costs.left_out {
        writeln!(out, "  not measured: {what}")?;
    }
    let times = [
        ("attach", Some(costs.attach_ms)),
        ("detach", Some(costs.detach_ms)),
        ("heal", costs.heal_ms),
    ];
    for (verb, it) in times.into_iter().filter_map(|(verb, it)| Some((verb, it?))) {
        writeln!(out, "  {verb}: {:.1} ms [{:.1}..{:.1}]", it.median(), it.ci95.low, it.ci95.high)?;
    }
    Ok(())
}

fn print_cell(out: &mut impl Write, cell: &Cell, verdict: &Verdict) -> io::Result<()> {
    let (topology, workload) = (cell.topology, cell.workload);
    writeln!(
        out,
        "\n{BOLD}{topology} {workload}{BOLD:#}  {}; {}; {}",
        topology.title(),
        workload.title(),
        pace(cell)
    )?;
    let headline = Headline::of(cell);
    let x = match headline {
        Headline::Rate => "REQ/S X HASH [95 % CI]",
        Headline::P99 => "P99 X HASH [95 % CI]",
        Headline::Stuck => "STUCK X HASH [95 % CI]",
    };
    let heads =
        ["MECHANISM", "REQ/S", x, "P50 us", "P99 us", "ACC P99", "REMOTE", "CPU us", "STUCK"];
    let lines = verdict.figures.iter().map(|it| line(headline, it)).collect();
    table(out, &heads, lines)?;
    for (mechanism, why) in &cell.excluded {
        writeln!(out, "  {mechanism}: not measured: {why}")?;
    }
    let failed = verdict.gates.iter().filter(|gate| !gate.passed).count();
    writeln!(out, "  gates: {} passed, {failed} failed", verdict.gates.len() - failed)?;
    let settled = |it: &Figures| {
        let seconds = it.settled_seconds?;
        Some(format!("{} {:.1} s", it.mechanism, seconds.median))
    };
    let settled: Vec<String> = verdict.figures.iter().filter_map(settled).collect();
    if !settled.is_empty() {
        writeln!(out, "  as fast as before after: {}", settled.join(", "))?;
    }
    for conclusion in conclusions(headline, verdict) {
        writeln!(out, "  {conclusion}")?;
    }
    Ok(())
}

fn pace(cell: &Cell) -> String {
    match (cell.pace, cell.load) {
        (Pace::Closed { connections }, _) if cell.workers > 1 => {
            format!("{connections} at a time, {} workers per CPU", cell.workers)
        }
        (Pace::Closed { connections }, _) => format!("{connections} at a time"),
        (Pace::Open { rate }, None) => format!("{rate:.0}/s"),
        (Pace::Open { rate }, Some(load)) => {
            format!("{rate:.0}/s, {:.0} % of what the hash serves", load * 100.0)
        }
    }
}

fn line(headline: Headline, figures: &Figures) -> Vec<String> {
    vec![
        figures.mechanism.to_string(),
        format!("{:.0}", figures.rate.median),
        ratio(headline.ratio(figures)),
        format!("{:.0}", figures.p50_us.median),
        format!("{:.0}", figures.p99_us.median),
        format!("{:.0}", figures.accept_p99_us.median),
        figures.remote.map_or_else(|| "-".to_owned(), |it| format!("{:.1} %", it.median * 100.0)),
        figures.cpu_us.map_or_else(|| "-".to_owned(), |cpu| format!("{:.1}", cpu.median)),
        format!("{:.0}", figures.stuck.median),
    ]
}

fn ratio(ratio: Option<Estimate>) -> String {
    ratio.map_or_else(
        || "-".to_owned(),
        |it| format!("{:.3} [{:.3}..{:.3}]", it.median(), it.ci95.low, it.ci95.high),
    )
}

/// What may be said of steering, or why nothing.
fn conclusions(headline: Headline, verdict: &Verdict) -> Vec<String> {
    if !verdict.is_conclusive() {
        return vec![format!("inconclusive, because {}", verdict.inconclusive_because.join("; "))];
    }
    let of = |mechanism| {
        let it = headline.ratio(verdict.of(mechanism)?)?;
        let what = headline.title();
        Some(format!("{mechanism}: {what} x{} of hash", ratio(Some(it))))
    };
    [Mechanism::Ebpf, Mechanism::EbpfSpill].into_iter().filter_map(of).collect()
}

pub(super) fn files_into(out: &mut impl Write, directory: &Path) -> io::Result<()> {
    let name = |file: &str| directory.join(file).display().to_string();
    writeln!(
        out,
        "\nwritten: {}, {}, {}",
        name("bench.json"),
        name("bench.csv"),
        name("bench.html")
    )
}
