//! How `top` looks: lines of text with styles, the same on a terminal and on paper.

use std::cmp::Ordering;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use reuseport_common::abi::Role;

use super::super::output::{age, count, list, percent};
use super::super::status::{headline, trace};
use super::app::{App, Happening, Sort};
use crate::observe::{GroupRates, Paths};
use crate::plan::role_str;
use crate::steer::GroupStatus;
use crate::steer::status::{ListenerStatus, RowStatus, Steering};

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const WARNING: Style = Style::new().fg(Color::Yellow);
const ALARM: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);

/// Cells of a queue's bar.
const BAR: u32 = 8;
/// Events that are shown.
const EVENTS: usize = 12;

const KEYS: &str = "q quit  p pause  <- -> sort by  r reverse  arrows, pages scroll";

/// Draws a frame.
pub(super) fn draw(app: &mut App, frame: &mut Frame<'_>) {
    let rows = [Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)];
    let [head, body, foot] = Layout::vertical(rows).areas(frame.area());
    let lines = lines(app);
    let height = usize::from(body.height);
    app.extent = (lines.len().saturating_sub(height), height);
    app.scroll = app.scroll.min(app.extent.0);
    let shown: Vec<_> = lines.into_iter().skip(app.scroll).take(height).collect();
    frame.render_widget(Paragraph::new(header(app)), head);
    frame.render_widget(Paragraph::new(shown), body);
    frame.render_widget(Paragraph::new(Line::styled(KEYS, DIM)), foot);
}

/// A frame as text, as long as it takes.
pub(super) fn text(app: &App) -> Vec<String> {
    let all = std::iter::once(header(app)).chain(lines(app));
    all.map(|line| line.to_string().trim_end().to_owned()).collect()
}

fn header(app: &App) -> Line<'static> {
    let mut spans = vec![
        Span::styled("reuseport-steer top", BOLD),
        Span::raw(format!("  {}  every {:?}", app.source, app.interval)),
    ];
    if app.paused {
        spans.push(Span::styled("  PAUSED", ALARM));
    }
    Line::from(spans)
}

fn lines(app: &App) -> Vec<Line<'static>> {
    // A terminal may be narrower than an error is long.
    let error = app.error.iter().flat_map(|error| error.split("; "));
    let mut lines: Vec<_> = error.map(|part| Line::styled(part.to_owned(), ALARM)).collect();
    if let Some(agent) = &app.latest.agent {
        let uptime = app.latest.taken_at.saturating_sub(agent.started_at);
        lines.push(Line::raw(format!(
            "agent {}, up {}: {} ticks, {} failed, the latest took {:.1?}; watching: {}",
            agent.pid,
            age(uptime),
            count(agent.ticks),
            count(agent.failed_ticks),
            agent.last_tick,
            agent.watching.name()
        )));
    }
    lines.extend(app.latest.unseen.iter().map(|why| Line::styled(format!("! {why}"), WARNING)));
    if app.latest.groups.is_empty() {
        lines.push(Line::raw("nothing is steered"));
    }
    for group in &app.latest.groups {
        let rates = app.rates.as_ref().and_then(|rates| rates.group(&group.group));
        lines.extend(of_group(app, group, rates));
        lines.push(Line::default());
    }
    lines.extend(events(app));
    lines
}

fn of_group(app: &App, group: &GroupStatus, rates: Option<&GroupRates>) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from(vec![
        Span::styled(group.group.to_string(), BOLD),
        Span::raw(format!("  {}", headline(group))),
    ])];
    // On eBPF the line above has said it.
    if group.steering.is_none()
        && let Some(rung) = group.rung.rung
    {
        lines.push(Line::raw(format!("  rung {rung}: {}", group.rung.why)));
    }
    if let Some(rates) = rates {
        lines.push(Line::raw(format!("  {}", summary(rates))));
    }
    lines.extend(workers(app, group, rates));
    if let Some(steering) = &group.steering {
        lines.extend(rows(steering, rates));
    }
    lines.extend(group.traced.iter().map(|it| Line::raw(format!("  {}", trace(it)))));
    for problem in &group.problems {
        lines.push(Line::styled(format!("  ! {}", problem.what), WARNING));
        lines.push(Line::raw(format!("    -> {}", problem.remedy)));
    }
    lines
}

fn summary(rates: &GroupRates) -> String {
    let Paths { first, second, spilled, migrated, missed } = rates.paths;
    let local = match rates.local {
        Some(local) => format!("{:.2} % local", floor(local * 100.0)),
        None => "locality -".to_owned(),
    };
    format!(
        "{}/s, {local}: first choice {}, second {}, spilled {}, migrated {}, missed {}",
        rate(rates.paths.runs()),
        rate(first),
        rate(second),
        rate(spilled),
        rate(migrated),
        rate(missed)
    )
}

/// Two decimals, never rounded up: 100.00 says all of it.
fn floor(percent: f64) -> f64 {
    (percent * 100.0).floor() / 100.0
}

/// `12,345`, `3.4`.
fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 10.0 {
        format!("{per_second:.1}")
    } else {
        count(per_second.round() as u64)
    }
}

fn workers(app: &App, group: &GroupStatus, rates: Option<&GroupRates>) -> Vec<Line<'static>> {
    let rate_of = |it: &ListenerStatus| {
        it.slot.and_then(|slot| rates?.slots.get(&slot).copied()).unwrap_or_default()
    };
    let full =
        |it: &ListenerStatus| f64::from(it.listener.queued) / f64::from(it.listener.backlog.max(1));
    let mut listeners: Vec<_> = group.listeners.iter().collect();
    // What there is most of comes first, what is named comes in its order.
    listeners.sort_by(|left, right| {
        let order = match app.sort {
            Sort::Slot => Ordering::Equal,
            Sort::Worker => {
                left.listener.served.to_string().cmp(&right.listener.served.to_string())
            }
            Sort::Queue => full(right).total_cmp(&full(left)),
            Sort::Rate => rate_of(right).total_cmp(&rate_of(left)),
            Sort::Total => right.selections.cmp(&left.selections),
        };
        let seat = |it: &ListenerStatus| it.slot.unwrap_or(u32::MAX);
        let order = order.then(seat(left).cmp(&seat(right)));
        if app.reverse { order.reverse() } else { order }
    });
    let sum: f64 = listeners.iter().map(|it| rate_of(it)).sum();
    let line = |it: &&ListenerStatus| {
        let listener = &it.listener;
        let style = if full(it) >= 0.75 { ALARM } else { Style::new() };
        let queue = format!("{} {}/{}", bar(full(it)), listener.queued, listener.backlog);
        let share = if sum > 0.0 { rate_of(it) / sum } else { 0.0 };
        vec![
            Span::raw(it.slot.map_or_else(|| "-".to_owned(), |slot| slot.to_string())),
            Span::raw(listener.served.to_string()),
            Span::raw(match it.role {
                Role::Active => format!("{} %", it.weight),
                role => role_str(role).to_owned(),
            }),
            Span::raw(listener.cpus().to_string()),
            Span::styled(queue, style),
            Span::raw(rate(rate_of(it))),
            Span::raw(if sum > 0.0 { format!("{:.1} %", share * 100.0) } else { "-".to_owned() }),
            Span::raw(count(it.selections)),
        ]
    };
    let head = |name: &'static str, sort: Option<Sort>| match sort {
        Some(sort) if sort == app.sort => Span::styled(format!("{name}*"), BOLD),
        _ => Span::styled(name, DIM),
    };
    let heads = vec![
        head("SLOT", Some(Sort::Slot)),
        head("WORKER", Some(Sort::Worker)),
        head("WEIGHT", None),
        head("CPUS", None),
        head("QUEUED", Some(Sort::Queue)),
        head("PER S", Some(Sort::Rate)),
        head("SHARE", None),
        head("SELECTED", Some(Sort::Total)),
    ];
    table(heads, listeners.iter().map(line).collect())
}

/// `[###     ]`
fn bar(full: f64) -> String {
    let filled = (full.clamp(0.0, 1.0) * f64::from(BAR)).ceil() as usize;
    format!("[{:<width$}]", "#".repeat(filled), width = BAR as usize)
}

fn rows(steering: &Steering, rates: Option<&GroupRates>) -> Vec<Line<'static>> {
    if steering.policy != Some("cpu") {
        return Vec::new();
    }
    let of_cpu = |row: u32| steering.counters.by_cpu.iter().find(|it| it.cpu == row);
    let (used, idle): (Vec<_>, Vec<_>) =
        steering.rows.iter().partition(|row| of_cpu(row.row).is_some());
    let line = |row: &&RowStatus| {
        let total = of_cpu(row.row).map_or(0, |it| it.slots.iter().map(|(_, runs)| runs).sum());
        let per_second = rates.and_then(|rates| rates.cpus.get(&row.row).copied());
        vec![
            Span::raw(row.row.to_string()),
            Span::raw(list(&row.first)),
            Span::raw(list(&row.second)),
            Span::raw(rate(per_second.unwrap_or_default())),
            Span::raw(percent(total, steering.counters.selections())),
            Span::raw(count(total)),
        ]
    };
    let heads = ["CPU", "SLOT", "THEN", "PER S", "OF ALL", "SELECTED"];
    let heads = heads.into_iter().map(|head| Span::styled(head, DIM)).collect();
    let mut lines = table(heads, used.iter().map(line).collect());
    if !idle.is_empty() {
        let text = format!("  {} CPUs that received nothing yet are not shown", idle.len());
        lines.push(Line::styled(text, DIM));
    }
    lines
}

fn events(app: &App) -> Vec<Line<'static>> {
    let happenings = app.happenings();
    if happenings.is_empty() {
        return Vec::new();
    }
    let line = |it: &Happening| {
        let ago = age(app.latest.taken_at.saturating_sub(it.at));
        vec![
            Span::raw(format!("{ago} ago")),
            Span::raw(it.group.map_or_else(String::new, |group| group.to_string())),
            Span::raw(it.what.clone()),
        ]
    };
    let heads = ["EVENTS", "", ""].into_iter().map(|head| Span::styled(head, DIM)).collect();
    table(heads, happenings.iter().take(EVENTS).map(line).collect())
}

/// Columns as wide as their widest cell; nothing where there are no lines.
fn table(heads: Vec<Span<'static>>, lines: Vec<Vec<Span<'static>>>) -> Vec<Line<'static>> {
    if lines.is_empty() {
        return Vec::new();
    }
    let all: Vec<_> = std::iter::once(heads).chain(lines).collect();
    let columns = all[0].len();
    let width = |column: usize| all.iter().map(|line| line[column].width()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: Vec<Span<'static>>| {
        let mut spans = Vec::new();
        for (cell, &width) in cells.into_iter().zip(&widths) {
            let pad = width - cell.width();
            spans.extend([Span::raw("  "), cell, Span::raw(" ".repeat(pad))]);
        }
        Line::from(spans)
    };
    all.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests;
