//! The page: one file, nothing loaded from elsewhere, readable on a phone.

use askama::Template;

use super::plots;
use crate::bench::costs::{Costs, Selection};
use crate::bench::goals::Outcome;
use crate::bench::judge::{Figures, Gate, Headline};
use crate::bench::record::{Cell, Record, RecordError};
use crate::bench::workload::Pace;
use crate::measure::{Estimate, Standing};

/// What `page.html` is filled with.
#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    record: &'a Record,
    mechanisms: String,
    cells: Vec<Part<'a>>,
    costs: Option<Spent>,
    goals: Vec<Aim<'a>>,
}

/// One goal.
struct Aim<'a> {
    outcome: &'a Outcome,
    found: String,
    standing: &'static str,
}

/// What steering costs by itself.
struct Spent {
    plot: String,
    rows: Vec<[String; 7]>,
    attach: String,
    detach: String,
    heal: String,
    left_out: Vec<String>,
}

/// One cell of it.
struct Part<'a> {
    cell: &'a Cell,
    headline: &'static str,
    pace: String,
    because: &'a [String],
    gates: &'a [Gate],
    rows: Vec<Row>,
    ratios: String,
    latencies: String,
    locality: String,
    over_time: String,
    settled: String,
}

/// One line of a cell's table.
struct Row {
    colour: String,
    name: &'static str,
    title: &'static str,
    ratio: String,
    rate: String,
    p50: String,
    p99: String,
    accept: String,
    remote: String,
    cpu: String,
    stuck: String,
}

/// The report on a record as a page.
pub fn to_html(record: &Record) -> Result<String, RecordError> {
    let cells = record.cells.iter().filter(|cell| cell.verdict.is_some());
    let cells: Result<Vec<_>, _> = cells.map(|cell| part(record, cell)).collect();
    let names: Vec<_> = record.settings.mechanisms.iter().map(|it| it.name()).collect();
    let costs = record.costs.as_ref().map(spent).transpose()?;
    let page = Page {
        record,
        mechanisms: names.join(", "),
        cells: cells?,
        costs,
        goals: record.goals.iter().map(aim).collect(),
    };
    page.render().map_err(|error| RecordError::Draw(error.to_string()))
}

fn aim(outcome: &Outcome) -> Aim<'_> {
    Aim {
        outcome,
        found: outcome.found.map_or_else(|| "–".to_owned(), |found| found.to_string()),
        standing: outcome.standing.map_or("not judged", Standing::as_str),
    }
}

fn spent(costs: &Costs) -> Result<Spent, RecordError> {
    let row = |it: &Selection| {
        let ns = &it.nanoseconds;
        [
            plots::css_colour(it.mechanism),
            it.mechanism.name().to_owned(),
            it.sockets.to_string(),
            format!("{:.0} [{:.0}, {:.0}]", ns.median(), ns.ci95.low, ns.ci95.high),
            it.program_ns.map_or_else(|| "–".to_owned(), |ns| format!("{ns:.0}")),
            format!("{:.1}", it.setup_ms),
            (it.memory_bytes / 1024).to_string(),
        ]
    };
    let ms =
        |it: &Estimate| format!("{:.1} [{:.1}, {:.1}]", it.median(), it.ci95.low, it.ci95.high);
    Ok(Spent {
        plot: plots::costs(costs)?,
        rows: costs.selection.iter().map(row).collect(),
        attach: ms(&costs.attach_ms),
        detach: ms(&costs.detach_ms),
        left_out: costs.left_out.clone(),
        heal: costs.heal_ms.as_ref().map_or_else(|| "–".to_owned(), ms),
    })
}

fn part<'a>(record: &Record, cell: &'a Cell) -> Result<Part<'a>, RecordError> {
    let Some(verdict) = &cell.verdict else {
        return Err(RecordError::Draw("a cell was not judged".to_owned()));
    };
    let headline = Headline::of(cell);
    let pace = match cell.pace {
        Pace::Closed { connections } if cell.workers > 1 => {
            format!("{connections} at a time, {} workers per CPU", cell.workers)
        }
        Pace::Closed { connections } => format!("{connections} at a time"),
        Pace::Open { rate } => format!("{rate:.0} requests/s at random times"),
    };
    let settled =
        |it: &Figures| Some(format!("{} {:.1} s", it.mechanism, it.settled_seconds?.median));
    let settled: Vec<String> = verdict.figures.iter().filter_map(settled).collect();
    Ok(Part {
        settled: settled.join(", "),
        cell,
        headline: headline.title(),
        pace,
        because: &verdict.inconclusive_because,
        gates: &verdict.gates,
        rows: verdict.figures.iter().map(|figures| row(headline, figures)).collect(),
        ratios: plots::ratios(headline, verdict)?,
        latencies: plots::latencies(cell)?,
        locality: plots::locality(cell, &record.settings.cpus)?,
        over_time: match cell.workload.event() {
            Some(_) => plots::over_time(cell)?,
            None => String::new(),
        },
    })
}

fn row(headline: Headline, figures: &Figures) -> Row {
    let ratio = |ratio: Option<Estimate>| {
        ratio.map_or_else(
            || "–".to_owned(),
            |it| format!("{:.3} [{:.3}, {:.3}]", it.median(), it.ci95.low, it.ci95.high),
        )
    };
    Row {
        colour: plots::css_colour(figures.mechanism),
        name: figures.mechanism.name(),
        title: figures.mechanism.title(),
        ratio: ratio(headline.ratio(figures)),
        rate: format!("{:.0}", figures.rate.median),
        p50: format!("{:.0}", figures.p50_us.median),
        p99: format!("{:.0}", figures.p99_us.median),
        accept: format!("{:.0}", figures.accept_p99_us.median),
        remote: figures
            .remote
            .map_or_else(|| "–".to_owned(), |it| format!("{:.1}", it.median * 100.0)),
        cpu: figures.cpu_us.map_or_else(|| "–".to_owned(), |it| format!("{:.1}", it.median)),
        stuck: format!("{:.0}", figures.stuck.median),
    }
}
