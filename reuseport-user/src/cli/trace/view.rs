//! A summary as text.

use std::io::{self, Write};

use crate::cli::output::{BOLD, count, notices, percent, table as columns};
use crate::steer::Notice;
use crate::trace::{Locality, Measures, Percentiles, Summary};

/// Names of the distances, nearest first.
const DISTANCES: [&str; 5] = ["SAME CPU", "CORE", "LLC", "NODE", "FARTHER"];

/// What was counted, and what to know about it.
pub(super) fn text(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    table(out, summary)?;
    for note in notes(summary) {
        writeln!(out, "  note: {note}")?;
    }
    notices(out, &remarks(summary))
}

/// Why a column is empty.
fn notes(summary: &Summary) -> Vec<String> {
    let listeners = summary.groups.iter().flat_map(|it| &it.listeners);
    let defers: Vec<_> = listeners.map(|it| it.defers).collect();
    let reasons = [
        (
            Some(true),
            "they defer accepting until the first data (TCP_DEFER_ACCEPT), for which the kernel drops \
             the last segment of each handshake and counts it like any other",
        ),
        (
            None,
            "they could not be asked whether they defer accepting (TCP_DEFER_ACCEPT), which the kernel \
             counts as drops; it takes what attaching takes",
        ),
    ];
    let of = |(kind, why): (Option<bool>, &str)| {
        let count = defers.iter().filter(|&&it| it == kind).count();
        let s = if count == 1 { "" } else { "s" };
        (count > 0)
            .then(|| format!("what was dropped of {count} listener{s} cannot be told: {why}"))
    };
    reasons.into_iter().filter_map(of).collect()
}

/// What was counted.
pub(super) fn table(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let distances = distances(&summary.total.locality);
    for group in &summary.groups {
        let accepted = group.total.accepted;
        let s = if accepted == 1 { "" } else { "s" };
        let accepted = count(accepted);
        let seconds = summary.seconds;
        writeln!(out, "{BOLD}{}{BOLD:#}: {accepted} connection{s} in {seconds:.1} s", group.group)?;
        let mut heads = vec!["LISTENER", "SERVED BY"];
        heads.extend(measure_heads(&distances));
        heads.extend(["QUEUE", "DEEPEST", "DROPPED"]);
        // One that is gone and had nothing is of no interest: there may be very many.
        let told = group.listeners.iter().filter(|it| it.listens || it.measures.accepted > 0);
        let lines = told.map(|it| {
            let mut line = vec![it.cookie.to_string(), it.served.to_string()];
            line.extend(measures(&it.measures, &distances));
            let queue = format!("{} of {}", it.queue, it.backlog);
            line.push(if it.listens { queue } else { "gone".to_owned() });
            let dropped = it.dropped.map_or_else(|| "-".to_owned(), count);
            line.extend([it.deepest_queue.to_string(), dropped]);
            line
        });
        columns(out, &heads, lines.collect())?;
    }
    let mut heads = vec!["CPU", "RECEIVED"];
    heads.extend(measure_heads(&distances));
    let lines = summary.cpus.iter().map(|it| {
        let mut line = vec![it.cpu.to_string(), count(it.received)];
        line.extend(measures(&it.measures, &distances));
        line
    });
    columns(out, &heads, lines.collect())?;
    // Also between: what goes to those that are not traced looks like an outage.
    notices(out, &no_room(summary.no_room))
}

fn no_room(listeners: u64) -> Vec<Notice> {
    let s = if listeners == 1 { "" } else { "s" };
    let what = || format!("no room for {listeners} listener{s}: their connections are not counted");
    let notice = || Notice { what: what(), remedy: "start trace again".to_owned() };
    (listeners > 0).then(notice).into_iter().collect()
}

/// One CPU, and those that there are of the others.
fn distances(locality: &Locality) -> Vec<usize> {
    let counts = locality.counts();
    (0..counts.len()).filter(|&it| it == 0 || counts[it] > 0).collect()
}

fn measure_heads(distances: &[usize]) -> Vec<&'static str> {
    let mut heads = vec!["ACCEPTED"];
    heads.extend(distances.iter().map(|&it| DISTANCES[it]));
    heads.extend(["WAIT p50", "p90", "p99", "MAX", "HANDSHAKE p50", "p99"]);
    heads
}

fn measures(of: &Measures, distances: &[usize]) -> Vec<String> {
    let counts = of.locality.counts();
    let mut cells = vec![count(of.accepted)];
    cells.extend(distances.iter().map(|&it| percent(counts[it], of.locality.total())));
    cells.extend(times(of.wait, |it| vec![it.p50_us, it.p90_us, it.p99_us, it.max_us], 4));
    cells.extend(times(of.handshake, |it| vec![it.p50_us, it.p99_us], 2));
    cells
}

fn times(
    of: Option<Percentiles>,
    which: impl Fn(Percentiles) -> Vec<f64>,
    columns: usize,
) -> Vec<String> {
    let all = of.map(which).map(|all| all.into_iter().map(time).collect());
    all.unwrap_or_else(|| vec!["-".to_owned(); columns])
}

/// Microseconds in the unit that reads well.
fn time(microseconds: f64) -> String {
    match microseconds {
        ..100.0 => format!("{microseconds:.1} us"),
        ..1000.0 => format!("{microseconds:.0} us"),
        ..100_000.0 => format!("{:.1} ms", microseconds / 1e3),
        ..1_000_000.0 => format!("{:.0} ms", microseconds / 1e3),
        _ => format!("{:.1} s", microseconds / 1e6),
    }
}

/// What is missing from the tables.
fn remarks(summary: &Summary) -> Vec<Notice> {
    let lost = &summary.lost;
    let remarks = [
        (
            summary.total.unseen,
            "were not seen to come",
            "they waited already when the trace began, or were accepted before their handshake ended \
             (TCP Fast Open); nothing is known of how long they waited",
        ),
        (
            lost.other_listeners,
            "were accepted from listeners that are not traced",
            "they are on other addresses (leave out --addr), or came since the last look",
        ),
        (
            lost.events,
            "are counted, but were not printed",
            "who reads the lines is too slow; filter or write them into a file",
        ),
        (lost.pairs, "are in no count by CPU", "trace fewer listeners with --addr"),
        (
            lost.missed,
            "or fewer were not seen",
            "the kernel left out so many runs of the programs, for any socket on the host",
        ),
    ];
    let told = remarks.into_iter().filter(|(connections, ..)| *connections > 0);
    let notice = |(connections, what, remedy): (u64, &str, &str)| Notice {
        what: format!("{} connections {what}", count(connections)),
        remedy: remedy.to_owned(),
    };
    told.map(notice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(time(0.064), "0.1 us");
        assert_eq!(time(512.0), "512 us");
        assert_eq!(time(1500.0), "1.5 ms");
        assert_eq!(time(300_000.0), "300 ms");
        assert_eq!(time(2_500_000.0), "2.5 s");
    }

    #[test]
    fn who_has_no_room_is_told() {
        assert_eq!(no_room(0), []);
        assert!(no_room(1)[0].what.starts_with("no room for 1 listener:"));
    }

    #[test]
    fn distances_that_nobody_has_are_left_out() {
        let locality = Locality { same: 0, node: 3, remote: 1, ..Locality::default() };
        assert_eq!(distances(&locality), [0, 3, 4]);
        assert_eq!(distances(&Locality::default()), [0]);
        let cells = measures(&Measures { locality, ..Measures::default() }, &[0, 3, 4]);
        assert_eq!(cells, ["0", "0.00 %", "75.00 %", "25.00 %", "-", "-", "-", "-", "-", "-"]);
        assert_eq!(cells.len(), measure_heads(&[0, 3, 4]).len());
    }
}
