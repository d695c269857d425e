//! A target on a rung below eBPF: its part of a tick.
//!
//! Nothing is pinned there. The listeners remember what was set on them, from which the next agent
//! tells who stands by for a newer generation ([`left_without`]). It sets the listeners anew when
//! one came or went, or its worker moved or stopped serving it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use super::generations::{Generations, Part, Verdict, stood_by};
use super::journal::{Journal, Topic};
use super::keeper::give_back;
use super::note::{Told, generations, latencies};
use super::recall::{Recall, members, pids};
use super::shared::Shared;
use super::sight::Sight;
use super::state::{Phase, SeatState};
use reuseport_common::abi::Role;

use crate::bpf::pins::{AgentLock, Pins, PinsError};
use crate::discover::acquire::with_listener;
use crate::model::{CpuSet, Group, GroupKey, Listener, Netns, Pid};
use crate::plan::NORMAL_WEIGHT;
use crate::rungs::{self, PassedOver, Rung, Trace, Why};
use crate::steer::SteerError;
use crate::steer::attach::{AttachOptions, AttachReport, Ladder, attach_below};
use crate::steer::fit::explain_alone;
use crate::sys::clock;
use crate::topology::Topology;

/// Least time from one classic program to the next: kernels with CVE-2026-52910 free the old one while
/// it may still run.
const REST: Duration = Duration::from_secs(1);

/// A target whose groups are kept on a rung below eBPF.
pub(super) struct Below {
    why_not_ebpf: Why,
    groups: BTreeMap<GroupKey, Known>,
    /// With whom the order of a group was lost: as long as one of them is there, it is not known.
    lost: HashSet<u64>,
    /// When the listeners were last set, and on which rung.
    set: Option<(Instant, Rung)>,
}

/// What is known of a group's workers.
pub(super) type Past = (Recall, Generations);

/// What is known of a group.
struct Known {
    netns: Netns,
    /// Where there can be no pins, there is no lock either.
    lock: Option<AgentLock>,
    recall: Recall,
    generations: Generations,
    stand_by: BTreeSet<u64>,
    /// What its listeners were last set by.
    facts: Facts,
}

/// By cookie: where the worker may run, and whether it is to get nothing.
type Facts = BTreeMap<u64, (CpuSet, bool)>;

/// What a group's listeners are to be set by.
struct Wanted {
    group: Group,
    facts: Facts,
    verdict: Verdict,
}

impl Below {
    pub(super) fn new(why_not_ebpf: Why) -> Self {
        Self { why_not_ebpf, groups: BTreeMap::new(), lost: HashSet::new(), set: None }
    }

    /// Who keeps a target on a rung that is asked for, where that is below eBPF.
    pub(super) fn asked_for(rung: Ladder) -> Option<Self> {
        match rung {
            Ladder::Auto | Ladder::Only(Rung::Ebpf) => None,
            Ladder::Only(_) => Some(Self::new(Why::Unfit("it was not asked for".to_owned()))),
        }
    }

    /// Why eBPF is not in force instead.
    pub(super) fn explain(&mut self, why_not_ebpf: Why) {
        self.why_not_ebpf = why_not_ebpf;
    }

    /// Lets go of the locks until the next tick, and says what whoever keeps the groups meanwhile should
    /// know of their workers.
    pub(super) fn hand_over(&mut self, options: &AttachOptions) -> BTreeMap<GroupKey, Past> {
        for known in self.groups.values_mut() {
            known.unlock(options);
        }
        let past = |known: &Known| (known.recall.clone(), known.generations.clone());
        self.groups.iter().map(|(key, known)| (*key, past(known))).collect()
    }

    /// Processes whose end matters.
    pub(super) fn workers(&self) -> impl Iterator<Item = Pid> {
        self.groups.values().flat_map(|known| known.recall.workers())
    }

    /// Looks, compares, sets; says whether nothing is left to be seen to soon.
    pub(super) fn tick(
        &mut self,
        options: &AttachOptions,
        generation_timeout: Duration,
        sight: &mut Sight,
        told: &Told,
        shared: &Shared,
        journal: &mut Journal,
    ) -> Result<bool, SteerError> {
        let fresh = sight.refresh()?;
        self.forget(&sight.groups, options, shared, journal);
        let mut wanted = Vec::new();
        for group in &mut sight.groups {
            if group.listeners.len() < 2 && !self.groups.contains_key(&group.key) {
                continue;
            }
            let known = self.know(group, options, generation_timeout)?;
            wanted.push(known.want(group, options));
        }
        if wanted.is_empty() {
            return match &sight.groups[..] {
                [] => Ok(!fresh),
                alone => Err(explain_alone(alone)),
            };
        }
        let same = |it: &Wanted| self.groups[&it.group.key].facts == it.facts;
        if wanted.iter().all(same) {
            return Ok(!fresh);
        }
        if self.set.is_some_and(|(at, rung)| rung == Rung::ClassicBpf && at.elapsed() < REST) {
            return Ok(false);
        }
        for (report, wanted) in self.set(options, &wanted)?.iter().zip(&wanted) {
            self.note(report, wanted, told, shared, journal);
        }
        Ok(false)
    }

    /// The group's entry; a new one where it has none.
    fn know(
        &mut self,
        group: &Group,
        options: &AttachOptions,
        generation_timeout: Duration,
    ) -> Result<&mut Known, SteerError> {
        let entry = match self.groups.entry(group.key) {
            Entry::Occupied(entry) if entry.get().lock.is_some() => return Ok(entry.into_mut()),
            entry => entry,
        };
        let pins = Pins::at(&options.settings.bpffs).and_then(Pins::lock);
        let lock = match pins.and_then(|pins| pins.lock_agent(&group.key)) {
            Err(error @ (PinsError::Owned { .. } | PinsError::Locked { .. })) => {
                return Err(error.into());
            }
            lock => lock.ok(),
        };
        let known = entry.or_insert_with(|| Known {
            netns: group.netns.clone(),
            lock: None,
            recall: Recall::default(),
            generations: Generations::new(generation_timeout),
            stand_by: left_without(group),
            facts: Facts::new(),
        });
        known.lock = lock;
        Ok(known)
    }

    /// Sets the listeners of all groups.
    fn set(
        &mut self,
        options: &AttachOptions,
        wanted: &[Wanted],
    ) -> Result<Vec<AttachReport>, SteerError> {
        let groups: Vec<Group> = wanted.iter().map(|it| it.group.clone()).collect();
        let leave_out = |facts: &Facts| -> Vec<u64> {
            facts.iter().filter(|(_, (_, out))| *out).map(|(&cookie, _)| cookie).collect()
        };
        let leave_out = wanted.iter().flat_map(|it| leave_out(&it.facts)).collect();
        let mut cookies = wanted.iter().flat_map(|it| it.facts.keys().copied());
        let knows_order = !cookies.clone().any(|cookie| self.lost.contains(&cookie));
        let topology = Topology::read()?;
        let why = &self.why_not_ebpf;
        let reports = attach_below(options, &topology, groups, &leave_out, knows_order, why)?;
        let rung = reports.first().map_or(Rung::Hash, |report| report.rung.rung);
        let over_classic = |it: &PassedOver| it.rung == Rung::ClassicBpf;
        if knows_order && reports.iter().any(|it| it.rung.passed_over.iter().any(over_classic)) {
            self.lost = cookies.by_ref().collect();
        }
        self.set = Some((Instant::now(), rung));
        Ok(reports)
    }

    /// Takes down what was done for a group.
    fn note(
        &mut self,
        report: &AttachReport,
        wanted: &Wanted,
        told: &Told,
        shared: &Shared,
        journal: &mut Journal,
    ) {
        let key = report.group.key;
        let Some(known) = self.groups.get_mut(&key) else { return };
        let before = std::mem::replace(&mut known.facts, wanted.facts.clone());
        known.stand_by.clone_from(&wanted.verdict.stand_by);
        let mut state = shared.state();
        let entry = state.group(key, &report.group.netns);
        let changed = before.keys().chain(wanted.facts.keys());
        let changed = changed.filter(|it| before.contains_key(it) != wanted.facts.contains_key(it));
        let took = latencies(told, changed);
        for &took in &took {
            entry.latency.add(took);
        }
        let new_rung = entry.rung.as_ref() != Some(&report.rung);
        entry.rung = Some(report.rung.clone());
        entry.heals += 1;
        let mut lines = Vec::new();
        if new_rung {
            for PassedOver { rung, why } in &report.rung.passed_over {
                lines.push((Topic::Mapping, format!("not {rung}: {why}")));
            }
            lines.extend(report.notices.iter().map(|it| (Topic::Mapping, it.what.clone())));
        }
        let count = report.group.listeners.len();
        if report.rung.rung == Rung::Hash {
            let what = "not steered: the kernel's hash decides".to_owned();
            lines.push((Topic::Problem, what.clone()));
            entry.unsteered(Phase::Unsteered, Some(what));
            entry.rung = Some(report.rung.clone());
        } else {
            let after =
                took.into_iter().max().map_or(String::new(), |it| format!(", after {it:.1?}"));
            let rung = report.rung.rung;
            lines.push((Topic::Mapping, format!("set: {count} listeners, rung {rung}{after}")));
            (entry.phase, entry.problem) = (Phase::Steered, None);
            entry.seats = seats(report, wanted);
        }
        lines.extend(generations(entry, &report.group, &wanted.verdict));
        drop(state);
        for (topic, line) in lines {
            journal.say(topic, Some(key), line);
        }
    }

    /// What is gone is not ours any more.
    fn forget(
        &mut self,
        groups: &[Group],
        options: &AttachOptions,
        shared: &Shared,
        journal: &mut Journal,
    ) {
        let is_gone = |key: &GroupKey| !groups.iter().any(|group| group.key == *key);
        for (key, mut known) in self.groups.extract_if(.., |key, _| is_gone(key)) {
            journal.say(Topic::Mapping, Some(key), "nobody listens any more".to_owned());
            journal.forget(&key);
            shared.forget(&key);
            shared.state().group(key, &known.netns).unsteered(Phase::Gone, None);
            known.unlock(options);
        }
    }

    /// Gives everything back: the groups to the kernel's hash if `all`, the locks in any case.
    pub(super) fn stop(
        self,
        options: &AttachOptions,
        all: bool,
        journal: &mut Journal,
    ) -> Result<(), SteerError> {
        let outcome =
            if all && !self.groups.is_empty() { give_back(options, journal) } else { Ok(()) };
        for mut known in self.groups.into_values() {
            known.unlock(options);
        }
        outcome
    }
}

impl Known {
    fn unlock(&mut self, options: &AttachOptions) {
        // Best effort: the kernel drops the lock with the descriptor, and an empty directory stays.
        if let Some(lock) = self.lock.take()
            && let Ok(pins) = Pins::at(&options.settings.bpffs).and_then(Pins::lock)
        {
            let _left_over = lock.release(&pins);
        }
    }

    /// What the group's listeners are to be set by; fills in who serves them.
    fn want(&mut self, group: &mut Group, options: &AttachOptions) -> Wanted {
        let mut out = self.recall.fill_in(group, options.policy);
        let part =
            |cookie| if self.stand_by.contains(&cookie) { Part::StandsBy } else { Part::Serves };
        let members = members(group, part);
        let verdict = self.generations.observe(clock::monotonic(), &members);
        out.extend(&verdict.stand_by);
        // With nobody left, everybody is better than the kernel's hash.
        if group.listeners.iter().all(|listener| out.contains(&listener.cookie)) {
            out.clear();
        }
        let fact = |it: &Listener| (it.cookie, (it.cpus(), out.contains(&it.cookie)));
        let facts = group.listeners.iter().map(fact).collect();
        Wanted { group: group.clone(), facts, verdict }
    }
}

/// Who stood by when another agent set these listeners: where it gave a CPU to a newer worker of the
/// same class and none to this one. Who joined since has none either, but is no older. On classic BPF
/// the listeners do not tell.
fn left_without(group: &Group) -> BTreeSet<u64> {
    let prefers = |listener: &Listener| {
        let trace = with_listener(listener, &group.key, rungs::inspect);
        match trace.ok()?.ok()? {
            Trace::IncomingCpu { .. } => Some(true),
            Trace::Nothing => Some(false),
            Trace::Place(_) => None,
        }
    };
    let traces: BTreeMap<u64, bool> =
        group.listeners.iter().filter_map(|it| Some((it.cookie, prefers(it)?))).collect();
    stood_by(&members(group, |_| Part::Serves), &traces)
}

fn seats(report: &AttachReport, wanted: &Wanted) -> Vec<SeatState> {
    let seats =
        report.group.listeners.iter().zip(&report.slots).map(|(listener, &slot)| SeatState {
            slot,
            cookie: listener.cookie,
            pids: pids(listener).collect(),
            cpus: listener.cpus(),
            weight: NORMAL_WEIGHT,
            role: if wanted.verdict.stand_by.contains(&listener.cookie) {
                Role::Standby
            } else {
                Role::Active
            },
            left_out: wanted.facts.get(&listener.cookie).is_some_and(|(_, out)| *out),
        });
    seats.collect()
}
