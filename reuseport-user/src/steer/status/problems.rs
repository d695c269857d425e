//! What is wrong with a group's steering, found by comparing what is with what should be.

use std::collections::BTreeSet;

use reuseport_common::abi::{Role, Row};

use crate::bpf::owner::{self, Attached};
use crate::model::{CpuSet, Listener, Served};
use crate::rungs::{self, Place, Rung};
use crate::topology::Topology;

use super::{GroupStatus, ListenerStatus, Notice, RungStatus, Traces};

const AGAIN: &str = "run `reuseport-steer attach` again";
const LOWER_AGAIN: &str = "run `reuseport-steer attach` again, with the same --rung";

/// Adds the problems of `status`, whose live table is `rows`.
pub(super) fn find(status: &mut GroupStatus, rows: &[Row], topology: &Topology, stale: bool) {
    let mut problems = std::mem::take(&mut status.problems);
    problems.extend(owner_problem(status));
    if let Some(steering) = &status.steering {
        if stale {
            problems.push(Notice::new(
                "the program in force is another version's",
                "`attach` again to bring it up to date, at any time, under load",
            ));
        }
        if steering.policy.is_none() {
            problems.push(Notice::new("the table's policy is not one this version knows", AGAIN));
        }
        problems.extend(seat_problems(status, rows));
    }
    problems.extend(worker_problems(status, topology));
    status.problems = problems;
}

/// Adds what is wrong on the rungs below eBPF, as their listeners tell.
pub(super) fn on_lower_rungs(status: &mut GroupStatus, traces: &Traces) {
    let RungStatus { rung, ours, .. } = status.rung;
    if !ours {
        return;
    }
    let mut problems = Vec::new();
    if rung == Some(Rung::IncomingCpu) {
        let without = status.listeners.iter().filter(|it| it.incoming_cpu.is_none()).count();
        if without > 0 {
            problems.push(Notice::new(
                format!("{without} listeners have no CPU: they joined since, or have weight 0"),
                LOWER_AGAIN,
            ));
        }
        for it in &status.listeners {
            let cpus = it.listener.cpus();
            if let Some(cpu) =
                it.incoming_cpu.filter(|&cpu| !cpus.is_empty() && !cpus.contains(cpu))
            {
                problems.push(Notice::new(
                    format!("a listener gets the connections of CPU {cpu}, but its worker may run on {cpus}: it moved"),
                    LOWER_AGAIN,
                ));
            }
        }
    }
    if rung == Some(Rung::ClassicBpf) {
        let places: Vec<_> = status.listeners.iter().map(|it| traces.place(&it.listener)).collect();
        let as_left =
            |place: &Option<Place>| place.is_some_and(|it| usize::from(it.of) == places.len());
        match rungs::keep(&places) {
            _ if places.iter().all(as_left) => {}
            Ok(_) => problems.push(Notice::new(
                "a listener joined or left since: connections go to wrong workers",
                LOWER_AGAIN,
            )),
            Err(error) => problems.push(Notice::new(
                format!("connections go to wrong workers: {error}"),
                "`detach`, or restart the whole group and attach again",
            )),
        }
    }
    status.problems.extend(problems);
}

/// Who is attached, against who should be.
fn owner_problem(status: &GroupStatus) -> Option<Notice> {
    let ours = status.steering.as_ref();
    match (&status.attached, ours) {
        (Attached::Nothing, Some(_)) => Some(Notice::new(
            "no program is attached: the whole group was restarted, or somebody detached ours",
            AGAIN,
        )),
        (Attached::Program { id }, _) if !ours.is_some_and(|ours| ours.in_force) => {
            if status.rung.elsewhere {
                return Some(Notice::new(
                    format!(
                        "program {id} steers it, reuseport-steer's own, without pins here: they are on \
                         another BPF file system (a container's, `ip netns exec`'s) or gone, or the \
                         server keeps it itself"
                    ),
                    "leave it to whoever keeps it; where nobody does, `attach --takeover` replaces it",
                ));
            }
            let name = owner::program_name(*id).unwrap_or_default();
            Some(Notice::new(
                format!("another program is attached: {id} `{name}`"),
                "find out whose it is (`bpftool prog show`); `attach --takeover` replaces it",
            ))
        }
        (Attached::Classic, _) if !status.rung.ours => Some(Notice::new(
            "a classic BPF program is attached",
            "the server itself attached it, most likely; `attach --takeover` replaces it",
        )),
        // Nothing is wrong then; how the rung is known says it.
        _ => None,
    }
}

/// Listeners without a seat, seats without a listener.
fn seat_problems(status: &GroupStatus, rows: &[Row]) -> Vec<Notice> {
    let mut problems = Vec::new();
    let unseated = status.listeners.iter().filter(|listener| listener.slot.is_none()).count();
    if unseated > 0 {
        problems.push(Notice::new(
            format!("{unseated} listeners joined since and get nothing, or hash leftovers"),
            AGAIN,
        ));
    }
    let seated: BTreeSet<u32> = status.listeners.iter().filter_map(|it| it.slot).collect();
    let named: BTreeSet<u32> = rows.iter().map(|row| row.first).collect();
    if status.steering.as_ref().is_some_and(|it| it.policy == Some("cpu")) {
        problems.extend(status.listeners.iter().filter_map(|it| moved(it, status)));
    }
    problems.extend(status.listeners.iter().filter(|it| it.evicted).filter_map(evicted));
    // Who is evicted for long is planned around, which is told already.
    let active = |it: &&ListenerStatus| it.weight > 0 && it.role == Role::Active && !it.evicted;
    let missed = |it: &ListenerStatus| it.slot.is_some_and(|slot| !named.contains(&slot));
    let unnamed = status.listeners.iter().filter(active).filter(|it| missed(it)).count();
    if unnamed > 0 && !rows.is_empty() {
        problems.push(Notice::new(
            format!("{unnamed} seated listeners are in no row and get nothing"),
            AGAIN,
        ));
    }
    let empty: Vec<_> = named.difference(&seated).map(u32::to_string).collect();
    if !empty.is_empty() && !rows.is_empty() {
        problems.push(Notice::new(
            format!(
                "the table points at empty slots ({}): second choices serve them",
                empty.join(", ")
            ),
            AGAIN,
        ));
    }
    problems
}

/// A worker that an agent took out, and why that is as far as its queue tells.
fn evicted(it: &ListenerStatus) -> Option<Notice> {
    let Listener { queued, backlog, served, .. } = &it.listener;
    let why = match queued {
        0 => "its worker did not accept, and nothing waits any more".to_owned(),
        _ if u64::from(*queued) * 4 > u64::from(*backlog) * 3 => {
            format!("its accept queue is nearly full ({queued} of {backlog})")
        }
        _ => format!("its worker does not accept ({queued} wait)"),
    };
    let slot = it.slot?;
    Some(Notice::new(
        format!("slot {slot} ({served}) is evicted, and second choices serve its rows: {why}"),
        "an agent puts it back when it accepts again; where none runs any more, `attach` again does",
    ))
}

/// A worker that gets connections of CPUs it may not run on, and none of those it may.
fn moved(it: &ListenerStatus, status: &GroupStatus) -> Option<Notice> {
    let (slot, cpus) = (it.slot?, it.listener.cpus());
    let rows = &status.steering.as_ref()?.rows;
    let served: CpuSet =
        rows.iter().filter(|row| row.first.contains(&slot)).map(|row| row.row).collect();
    (!cpus.is_empty() && !served.is_empty() && served.intersection(&cpus).is_empty()).then(|| {
        Notice::new(
            format!("slot {slot} gets the connections of CPU {served}, but its worker may run on {cpus}: it moved"),
            AGAIN,
        )
    })
}

/// Workers that are not where steering wants them, or do not keep up.
fn worker_problems(status: &GroupStatus, topology: &Topology) -> Vec<Notice> {
    let mut problems = Vec::new();
    let online = topology.online();
    let all = || status.listeners.iter();
    let floats = |cpus: &CpuSet| online.len() > 1 && online.is_subset(cpus);
    let floating = all().filter(|it| floats(&it.listener.cpus())).count();
    if floating > 0 && status.steering.as_ref().is_some_and(|it| it.policy == Some("cpu")) {
        problems.push(Notice::new(
            format!("{floating} workers may run on any CPU: locality is then luck"),
            "`attach --pin`, or pin them in the server or its unit (CPUAffinity=)",
        ));
    }
    let unknown = all().filter(|it| matches!(it.listener.served, Served::Unknown(_))).count();
    if unknown > 0 {
        problems.push(Notice::new(
            format!("it cannot be seen who serves {unknown} listeners"),
            "name them to `attach` with --worker or --order",
        ));
    }
    for it in all() {
        let listener = &it.listener;
        if listener.backlog > 0 && listener.queued >= listener.backlog {
            let workers = match &listener.served {
                Served::By(workers) => {
                    workers.iter().map(|it| format!("{} {}", it.pid, it.name)).collect::<Vec<_>>()
                }
                Served::Unknown(_) => Vec::new(),
            };
            problems.push(Notice::new(
                format!(
                    "the accept queue of {} is full ({} of {}): new connections to it time out",
                    if workers.is_empty() { "a listener".to_owned() } else { workers.join(", ") },
                    listener.queued,
                    listener.backlog
                ),
                "the worker hangs or is overloaded: restart it, or give others its share \
                 (`drain --pid PID --no-wait`)",
            ));
        }
    }
    problems
}
