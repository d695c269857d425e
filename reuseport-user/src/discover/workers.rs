//! Who serves each listener, concluded from who holds it and what they were seen doing.
//!
//! - One process holds it: that process serves it. Which of its threads matters only when they run
//!   on different CPUs, or when the process has several listeners of the group (one per thread).
//! - Several hold it (nginx, pre-forked families): those that were seen waiting for it or whose epoll
//!   set watches it, not the parent that opened it for them.
//! - What cannot be known is said to be unknown, with the way to tell us.

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::sample::{self, Process};
use crate::model::{Evidence, Group, Holder, Pid, Served, Worker};

/// What to do where discovery cannot know.
const REMEDY: &str = "say who does: --worker PID[/TID]=CPU, or --order CPUS";
/// What it takes to look at threads. `/proc/PID/task/TID/syscall` is its user's to read.
const POWER: &str = "CAP_SYS_PTRACE is missing or, where another user runs it, CAP_DAC_READ_SEARCH";

/// Fills in `served` for the listeners of `groups`. `unheld` explains listeners nobody holds.
pub(crate) fn assign(groups: &mut [Group], unheld: &str) {
    let processes = examine(groups);
    for group in groups {
        let peers: Vec<u64> = group.listeners.iter().map(|listener| listener.inode).collect();
        let shares: Shares = processes
            .values()
            .filter(|process| process.threads.len() > 1)
            .map(|process| (process.pid, Share::of(process, &peers)))
            .collect();
        for listener in &mut group.listeners {
            listener.served = if listener.holders.is_empty() {
                Served::Unknown(unheld.to_owned())
            } else {
                served(listener.inode, &shares, &listener.holders, &processes)
            };
        }
    }
}

/// What a process with several threads has of one group. It gives each listener to threads of its own
/// when it has several and no thread was seen at more than one; one listener, or one event loop for
/// all, is no sharding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// Listeners it holds.
    listeners: usize,
    /// Listeners that each thread was seen at.
    seen: BTreeMap<Pid, usize>,
}

/// By process.
pub(crate) type Shares = BTreeMap<Pid, Share>;

impl Share {
    /// Counts for the group with the listeners `peers`.
    pub(crate) fn of(process: &Process, peers: &[u64]) -> Self {
        let held: BTreeSet<u64> = process.held.iter().map(|&(_, inode)| inode).collect();
        let mut share = Self::default();
        for &peer in peers.iter().filter(|peer| held.contains(peer)) {
            share.listeners += 1;
            for (thread, _) in process.seen(peer) {
                *share.seen.entry(thread.tid).or_default() += 1;
            }
        }
        share
    }
}

/// Describes the holders, and looks closer at those where it matters.
fn examine(groups: &[Group]) -> BTreeMap<Pid, Process> {
    let mut held: BTreeMap<Pid, Vec<(i32, u64)>> = BTreeMap::new();
    let mut inodes = Vec::new();
    let mut shared: Vec<Pid> = Vec::new();
    for listener in groups.iter().flat_map(|group| &group.listeners) {
        inodes.push(listener.inode);
        for holder in &listener.holders {
            held.entry(holder.pid).or_default().push((holder.fd, listener.inode));
        }
        if distinct(&listener.holders).count() > 1 {
            shared.extend(distinct(&listener.holders));
        }
    }
    inodes.sort_unstable();
    shared.sort_unstable();
    shared.dedup();
    let mut processes: BTreeMap<Pid, Process> = held
        .into_iter()
        .map(|(pid, mut held)| {
            held.sort_unstable();
            (pid, Process::describe(pid, held))
        })
        .collect();
    let close = processes.values_mut().filter(|process| {
        let threaded = process.threads.len() > 1;
        shared.binary_search(&process.pid).is_ok()
            || (threaded && (process.held.len() > 1 || !process.is_uniform()))
    });
    sample::observe(close, &inodes);
    processes
}

/// The processes among holders.
fn distinct(holders: &[Holder]) -> impl Iterator<Item = Pid> + '_ {
    let first = |index: usize| index == 0 || holders[index - 1].pid != holders[index].pid;
    holders.iter().enumerate().filter(move |(index, _)| first(*index)).map(|(_, holder)| holder.pid)
}

/// Who serves listener `inode`; `shares` are those of its group.
pub(crate) fn served(
    inode: u64,
    shares: &Shares,
    holders: &[Holder],
    processes: &BTreeMap<Pid, Process>,
) -> Served {
    let holding: Vec<&Process> = distinct(holders).filter_map(|pid| processes.get(&pid)).collect();
    match holding.as_slice() {
        [] => Served::Unknown("the processes that held it are gone; try again".into()),
        [process] => in_process(process, inode, shares, Evidence::SoleHolder),
        family => in_family(family, inode, shares),
    }
}

/// Who of several holders serves a listener.
fn in_family(family: &[&Process], inode: u64, shares: &Shares) -> Served {
    let is_seen = |process: &Process| process.seen(inode).next().is_some();
    let polls = |process: &Process| process.polls(inode) && !process.is_supervisor();
    let proven: Vec<&Process> =
        family.iter().copied().filter(|process| is_seen(process) || polls(process)).collect();
    let chosen: Vec<&Process> = if proven.is_empty() {
        if let Some(process) = family.iter().find(|process| process.io_uring) {
            return Served::Unknown(format!(
                "process {} ({}) uses io_uring, which does not show who accepts; {REMEDY}",
                process.pid, process.name
            ));
        }
        if let Some(process) = family.iter().find(|process| process.denied) {
            return Served::Unknown(format!(
                "{} processes hold it and process {} ({}) may not be looked at ({POWER}); {REMEDY}",
                family.len(),
                process.pid,
                process.name
            ));
        }
        // All were busy each time: everyone but those who only supervise, or who were seen attending
        // to other listeners. Where that leaves nobody, its worker is gone and the family has it open.
        let is_parent = |process: &Process| family.iter().any(|other| other.parent == process.pid);
        let working = |process: &&&Process| {
            !process.is_supervisor() && !is_parent(process) && !process.attends_elsewhere(inode)
        };
        family.iter().filter(working).copied().collect()
    } else if proven.iter().any(|process| process.polls(inode)) {
        // Epoll sets are conclusive: they show busy processes too.
        proven
    } else {
        // Being blocked in accept or poll is not: a busy sibling of those seen is one of them.
        let parents: Vec<Pid> = proven.iter().map(|process| process.parent).collect();
        let sibling = |process: &Process| {
            parents.contains(&process.parent)
                && !process.is_supervisor()
                && !family.iter().any(|other| other.parent == process.pid)
        };
        let belongs = |process: &&&Process| is_seen(process) || sibling(process);
        family.iter().filter(belongs).copied().collect()
    };
    let mut workers = Vec::new();
    for process in chosen {
        match in_process(process, inode, shares, Evidence::Family) {
            Served::By(more) => workers.extend(more),
            unknown @ Served::Unknown(_) => return unknown,
        }
    }
    if workers.is_empty() {
        return Served::Unknown(format!(
            "{} processes hold it and none was seen accepting from it; {REMEDY}",
            family.len()
        ));
    }
    Served::By(workers)
}

/// The worker within a process that is known to serve the listener; `weakest` is the evidence when
/// nothing in the process itself shows it.
fn in_process(process: &Process, inode: u64, shares: &Shares, weakest: Evidence) -> Served {
    let seen: Vec<_> = process.seen(inode).collect();
    let strongest = seen.iter().map(|(_, evidence)| *evidence).min();
    let polls = process.polls(inode).then_some(Evidence::EpollSet);
    let whole = |evidence| {
        let cpus = process.threads.iter().flat_map(|thread| thread.cpus.iter());
        Served::By(vec![Worker {
            pid: process.pid,
            tid: None,
            name: process.name.clone(),
            cpus: cpus.collect(),
            evidence,
        }])
    };
    let evidence = strongest.or(polls).unwrap_or(weakest);
    match process.threads.as_slice() {
        [] => return Served::Unknown(format!("process {} is gone; try again", process.pid)),
        [_] => return whole(evidence),
        _ => {}
    }
    // Several threads that wait on one set take turns: any of them may accept.
    let takes_turns = process.sets.iter().any(|set| {
        let waiting = process.threads.iter().filter(|thread| thread.epfds.contains(&set.fd));
        set.watches(inode) && waiting.count() > 1
    });
    let uniform = process.is_uniform();
    let share = shares.get(&process.pid).cloned().unwrap_or_default();
    let sharded = share.listeners > 1
        && !seen.is_empty()
        && seen.iter().all(|(thread, _)| share.seen.get(&thread.tid) == Some(&1));
    if takes_turns || (uniform && !sharded) {
        if process.io_uring && share.listeners > 1 && strongest.or(polls).is_none() {
            return Served::Unknown(format!(
                "process {} ({}) uses io_uring, which does not show which thread accepts; {REMEDY}",
                process.pid, process.name
            ));
        }
        return whole(evidence);
    }
    if seen.is_empty() {
        let why = if process.io_uring {
            "it uses io_uring, which does not show which thread accepts"
        } else if process.denied {
            &format!("they may not be looked at ({POWER})")
        } else {
            "no thread was seen waiting for it, they are busy"
        };
        return Served::Unknown(format!(
            "the threads of process {} ({}) run on different CPUs and {why}; {REMEDY}",
            process.pid, process.name
        ));
    }
    Served::By(
        seen.into_iter()
            .map(|(thread, evidence)| Worker {
                pid: process.pid,
                tid: Some(thread.tid),
                name: thread.name.clone(),
                cpus: thread.cpus.clone(),
                evidence,
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests;
