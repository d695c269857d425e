//! What a tick did for a group, as state and in words.

use std::collections::HashMap;
use std::time::Duration;

use reuseport_common::abi::Role;

use super::generations::Verdict;
use super::journal::Topic;
use super::kept::Steered;
use super::recall::pids;
use super::state::{GroupState, Phase, SeatState};
use crate::bpf::pins::Pinned;
use crate::model::{Group, Listener};
use crate::plan::NORMAL_WEIGHT;
use crate::rungs::{Choice, Rung};
use crate::steer::fit::bound_beside;
use crate::sys::clock;

/// When listeners came and went, by cookie.
pub(super) type Told = HashMap<u64, Duration>;

/// Takes down a group whose mapping is right, and says what is worth a line.
pub(super) fn steered(
    entry: &mut GroupState,
    group: &Group,
    steered: &Steered,
    pinned: Option<&Pinned>,
    told: &Told,
) -> Vec<(Topic, String)> {
    let done = &steered.reconciled;
    let before = std::mem::replace(&mut entry.phase, Phase::Steered);
    entry.problem = None;
    let moved =
        steered.attached || done.published || !done.joined.is_empty() || !steered.left.is_empty();
    if !moved && before == Phase::Steered {
        return Vec::new();
    }
    entry.rung = Some(Choice { rung: Rung::Ebpf, passed_over: Vec::new() });
    entry.pins = pinned.and_then(|pinned| pinned.directory.clone());
    entry.program_id = pinned.map(|pinned| pinned.program_id);
    entry.seats = done.listeners.iter().map(|listener| seat(listener, steered)).collect();
    if !moved {
        return vec![(Topic::Mapping, format!("steered already: {}", standing(entry, steered)))];
    }
    entry.heals += 1;
    let latencies = latencies(told, done.joined.iter().chain(&steered.left));
    for &latency in &latencies {
        entry.latency.add(latency);
    }
    let how = if steered.attached {
        "attached".to_owned()
    } else {
        let after = latencies.into_iter().max();
        let after = after.map_or(String::new(), |after| format!(", after {after:.1?}"));
        let (joined, left) = (done.joined.len(), steered.left.len());
        format!("mapping changed (+{joined} -{left} listeners{after})")
    };
    let mut lines = vec![(Topic::Mapping, format!("{how}: {}", standing(entry, steered)))];
    lines.extend(generations(entry, group, &steered.verdict));
    lines
}

/// How long ago these listeners came or went, where the kernel told.
pub(super) fn latencies<'a>(told: &Told, cookies: impl Iterator<Item = &'a u64>) -> Vec<Duration> {
    let now = clock::kernel();
    cookies.filter_map(|cookie| Some(now.saturating_sub(*told.get(cookie)?))).collect()
}

/// That a group bound to a device takes what comes to this one, in words.
pub(super) fn beside(group: &Group, groups: &[Group]) -> Option<(Topic, String)> {
    let notice = bound_beside(&group.key, groups.iter().map(|group| group.key))?;
    Some((Topic::Problem, notice.what))
}

/// Takes down who superseded whom.
pub(super) fn generations(
    entry: &mut GroupState,
    group: &Group,
    verdict: &Verdict,
) -> Vec<(Topic, String)> {
    entry.superseded += verdict.superseded.len() as u64;
    entry.restored += verdict.restored.len() as u64;
    let who = |cookie: &u64| {
        let listener = group.listeners.iter().find(|it| it.cookie == *cookie);
        let pids = listener.map(|it| pids(it).map(|pid| pid.to_string()).collect::<Vec<_>>());
        pids.unwrap_or_default().join(", ")
    };
    let lines = |cookies: &[u64], what: &str| {
        let line = |cookie| (Topic::Generation, format!("worker {} {what}", who(cookie)));
        cookies.iter().map(line).collect::<Vec<_>>()
    };
    let mut all = lines(&verdict.superseded, "stands by: a newer one took over");
    all.extend(lines(&verdict.restored, "serves again"));
    all
}

/// How a steered group stands.
fn standing(entry: &GroupState, steered: &Steered) -> String {
    let done = &steered.reconciled;
    let program = entry.program_id.unwrap_or(0);
    let left_out = match steered.left_out.len() {
        0 => String::new(),
        count => format!(", {count} left out"),
    };
    let (count, generation) = (done.listeners.len(), done.config.generation);
    format!("{count} listeners{left_out}, program {program}, generation {generation}")
}

fn seat(listener: &Listener, steered: &Steered) -> SeatState {
    let slot = steered.reconciled.slots.get(&listener.cookie).copied().unwrap_or(0);
    let planned = steered.reconciled.plan.seats.iter().find(|seat| seat.slot == slot);
    SeatState {
        slot,
        cookie: listener.cookie,
        pids: pids(listener).collect(),
        cpus: listener.cpus(),
        weight: planned.map_or(NORMAL_WEIGHT, |seat| seat.weight),
        role: planned.map_or(Role::Active, |seat| seat.role),
        left_out: steered.left_out.contains(&listener.cookie),
    }
}
