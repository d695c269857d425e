//! `status`: what is in force, read back from the kernel, and what is wrong with it. Changes
//! nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use reuseport_common::abi::{self, NO_SLOT, Policy, Role, Row, View};
use serde::{Deserialize, Deserializer, Serialize};

use crate::bpf::maps::Counts;
use crate::bpf::object::fingerprint;
use crate::bpf::owner::Attached;
use crate::bpf::pins::{Pinned, Pins};
use crate::discover::{DiscoverError, Target, discover};
use crate::model::{Cpu, Group, GroupKey, Listener, Pid};
use crate::plan::{role_name, role_of_name};
use crate::topology::Topology;
use crate::trace::{self, Locality, Running};

use super::fit::bound_beside;
use super::intent::{Intent, Intents};
use super::ownership::{self, Census};
use super::rung::{self, RungStatus, Traces};
use super::{Notice, Settings, SteerError, is_gone, named_netns};

mod counters;
mod pinned;
mod problems;

pub(crate) use counters::local;
pub use counters::{Cell, Counters, CpuCounters, SlotCounters};

use self::pinned::{has_pins, leftover, pinned_targets};

/// One group, steered or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupStatus {
    /// What sets it apart.
    pub group: GroupKey,
    /// A process in its network namespace, where that is not ours.
    pub netns_pid: Option<u32>,
    /// The program attached, as the kernel says.
    pub attached: Attached,
    /// By which mechanism a listener is picked.
    pub rung: RungStatus,
    /// What our pins hold; `None` for a group that we do not steer.
    pub steering: Option<Steering>,
    /// Its listeners and where they sit.
    pub listeners: Vec<ListenerStatus>,
    /// What a running `trace` sees of it; `None` where none runs.
    pub traced: Option<Traced>,
    /// What is wrong, and what to do about it.
    pub problems: Vec<Notice>,
}

/// As [`Policy::name`] gives it.
pub type PolicyName = &'static str;

/// What the pins of a group hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Steering {
    /// Where they are.
    pub pins: PathBuf,
    /// The pinned program, as `bpftool prog` shows it.
    pub program_id: u32,
    /// Whether it is the one attached.
    pub in_force: bool,
    /// Counts the plans since the first attach.
    pub generation: u32,
    /// Seconds since the epoch.
    pub attached_at: u64,
    /// What a row means.
    #[serde(deserialize_with = "known_policy")]
    pub policy: Option<PolicyName>,
    /// Whether connections of a closing listener move to another.
    pub migrates: bool,
    /// Whether the program logs what it cannot steer.
    pub logs: bool,
    /// Slots of the map, occupied or not.
    pub slots: u32,
    /// Rows of the live table: for policy `cpu`, one for each possible CPU.
    pub rows: Vec<RowStatus>,
    /// Runs of the program, by how they ended.
    pub counters: Counters,
}

/// One row of the live table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowStatus {
    /// The CPU for policy `cpu`, a position in the table otherwise.
    pub row: u32,
    /// First choices, without repetition.
    pub first: Vec<u32>,
    /// Second choices, without repetition.
    pub second: Vec<u32>,
}

/// A listener and its seat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its slot, read back by cookie; `None` when it is in no map of ours.
    pub slot: Option<u32>,
    /// Percent of a normal share that it is to get.
    pub weight: u32,
    /// What part it takes.
    #[serde(serialize_with = "role_name", deserialize_with = "role_of_name")]
    pub role: Role,
    /// The CPU that its `SO_INCOMING_CPU` prefers it for; not asked for on eBPF.
    pub incoming_cpu: Option<Cpu>,
    /// Whether an agent has taken it out because its worker did not accept: its rows go to their
    /// second choices.
    pub evicted: bool,
    /// The socket.
    #[serde(flatten)]
    pub listener: Listener,
    /// Selections of its slot so far; 0 without a slot.
    pub selections: u64,
    /// What a running `trace` counted of its connections; `None` for one that is not traced.
    pub traced: Option<Locality>,
}

/// What a running `trace` sees of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traced {
    /// Its process; where several trace the group, that of the first.
    pub pid: Pid,
    /// Connections that the listeners which are there accepted since they are traced.
    pub locality: Locality,
}

/// A policy by its name; `None` for a name that this version does not know.
fn known_policy<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PolicyName>, D::Error> {
    let name = Option::<String>::deserialize(from)?;
    Ok(Policy::ALL.map(Policy::name).into_iter().find(|&known| name.as_deref() == Some(known)))
}

/// Looks at the groups of `target`, or at every group that has pins.
pub fn status(
    target: Option<&Target>,
    settings: &Settings,
) -> Result<Vec<GroupStatus>, SteerError> {
    let mut unseen = None;
    let pins = match Pins::at(&settings.bpffs).and_then(|pins| pins.list().map(|_| pins)) {
        Ok(pins) => Some(pins),
        // A group that is named may be on a rung that has none.
        Err(error) if target.is_some() && error.is_out_of_reach() => {
            unseen = Some(Notice::new(
                format!("whether it has pins of ours cannot be seen: {error}"),
                "on a rung below eBPF it has none",
            ));
            None
        }
        Err(error) => return Err(error.into()),
    };
    let topology = Topology::read()?;
    let running = trace::running();
    let mut statuses = Vec::new();
    let mut seen: BTreeSet<PathBuf> = BTreeSet::new();
    let mut look = |target: &Target, groups: Vec<Group>| -> Result<(), SteerError> {
        let census = match Census::ask(&groups, target, settings) {
            // Reading pins takes less than loading programs.
            Err(SteerError::Bpf { source, .. }) => Census::unknown(&source),
            census => census?,
        };
        for group in &groups {
            let mut status = examine(pins.as_ref(), group, &census, &topology, settings)?;
            status.problems.extend(unseen.clone());
            status.traced = traced(&running, &mut status.listeners, &topology);
            status.problems.extend(bound_beside(&group.key, groups.iter().map(|it| it.key)));
            seen.extend(pins.as_ref().map(|pins| pins.place(&group.key)));
            statuses.push(status);
        }
        Ok(())
    };
    if let Some(target) = target {
        let groups = match discover(target) {
            Err(DiscoverError::NobodyListens { .. }) if has_pins(pins.as_ref(), target)? => {
                Vec::new()
            }
            groups => groups?,
        };
        look(target, groups)?;
    } else if let Some(pins) = &pins {
        for (target, groups) in pinned_targets(pins)? {
            look(&target, groups)?;
        }
    }
    let Some(pins) = pins else { return Ok(statuses) };
    let netns = target.map_or(Ok(None), named_netns)?;
    for (directory, pinned) in pins.list()? {
        if !seen.contains(&directory) {
            let leftover = leftover(&directory, pinned, target);
            statuses.extend(leftover.filter(|it| {
                netns.is_none_or(|netns| it.group.netns == netns) && is_gone(&it.group, target)
            }));
        }
    }
    Ok(statuses)
}

/// Looks at one live group.
fn examine(
    pins: Option<&Pins>,
    group: &Group,
    census: &Census,
    topology: &Topology,
    settings: &Settings,
) -> Result<GroupStatus, SteerError> {
    let of = SteerError::of(&group.key);
    let attached = census.attached(group);
    let ownership::Ours { pinned, in_force, notices } = match pins {
        Some(pins) => ownership::examine(pins, group, &attached)?,
        None => ownership::Ours::nothing(),
    };
    let mut listeners: Vec<_> = group.listeners.iter().cloned().map(unseated).collect();
    let mut steering = None;
    let mut rows = Vec::new();
    if let Some(pinned) = &pinned {
        let cookies = pinned.maps.sockets.cookies().map_err(&of)?;
        let counts = pinned.maps.counts().map_err(&of)?;
        seat(&mut listeners, &cookies, &counts);
        let intents = Intents::read(&pinned.maps).map_err(&of)?;
        for it in &mut listeners {
            let Intent { weight, role, .. } = intents.get(it.listener.cookie);
            (it.weight, it.role) = (weight, role);
            it.evicted = match it.slot {
                Some(slot) => pinned.maps.load(slot).is_evicted(),
                None => false,
            };
        }
        rows = pinned.maps.rows().map_err(&of)?;
        steering = Some(read(pinned, in_force, &rows, &counts, &listeners).map_err(&of)?);
    }
    // On eBPF the listeners have nothing to add, and to ask them takes a privilege.
    let traces = if in_force { Ok(Traces::default()) } else { Traces::read(group) };
    for listener in &mut listeners {
        listener.incoming_cpu = traces.as_ref().ok().and_then(|it| it.cpu(&listener.listener));
    }
    let mut rung = rung::in_force(group, &attached, in_force, &traces);
    if let Ok(traces) = &traces {
        rung.auto = rung::auto(group, &attached, &rung, traces, settings);
    }
    let mut status = GroupStatus {
        rung,
        group: group.key,
        netns_pid: group.netns.pid.filter(|_| !group.netns.own),
        attached,
        steering,
        listeners,
        traced: None,
        problems: notices,
    };
    let stale = match &pinned {
        Some(pinned) => pinned.maps.config().map_err(&of)?.object != fingerprint(),
        None => false,
    };
    problems::find(&mut status, &rows, topology, stale);
    if let Ok(traces) = &traces {
        problems::on_lower_rungs(&mut status, traces);
    }
    Ok(status)
}

fn unseated(listener: Listener) -> ListenerStatus {
    let Intent { weight, role, .. } = Intent::default();
    let (incoming_cpu, evicted) = (None, false);
    let (slot, selections, traced) = (None, 0, None);
    ListenerStatus { slot, weight, role, incoming_cpu, evicted, listener, selections, traced }
}

/// Takes down what the first trace of these listeners has counted.
fn traced(
    running: &[Running],
    listeners: &mut [ListenerStatus],
    topology: &Topology,
) -> Option<Traced> {
    let of = |trace: &Running, it: &ListenerStatus| trace.locality(it.listener.cookie, topology);
    let trace = running.iter().find(|trace| listeners.iter().any(|it| of(trace, it).is_some()))?;
    let mut locality = Locality::default();
    for it in listeners {
        it.traced = of(trace, it);
        it.traced.iter().for_each(|own| locality.merge(own));
    }
    Some(Traced { pid: trace.pid, locality })
}

/// Reads slots back by cookie.
fn seat(listeners: &mut [ListenerStatus], cookies: &[Option<u64>], counts: &[Counts]) {
    for listener in listeners {
        let cookie = Some(listener.listener.cookie);
        listener.slot = cookies.iter().position(|&it| it == cookie).map(|slot| slot as u32);
        let of_slot = |slot: u32| counts.iter().filter_map(move |cpu| cpu.slots.get(slot as usize));
        listener.selections =
            listener.slot.map_or(0, |slot| of_slot(slot).flatten().copied().sum());
    }
}

/// What the pins say.
fn read(
    pinned: &Pinned,
    in_force: bool,
    rows: &[Row],
    counts: &[Counts],
    listeners: &[ListenerStatus],
) -> Result<Steering, crate::bpf::BpfError> {
    let config = pinned.maps.config()?;
    let view = config.live();
    let policy = Policy::from_u32(view.policy);
    Ok(Steering {
        pins: pinned.directory.clone().unwrap_or_default(),
        program_id: pinned.program_id,
        in_force,
        generation: config.generation,
        attached_at: config.attached_at,
        policy: policy.map(Policy::name),
        migrates: config.flags & abi::FLAG_MIGRATES != 0,
        logs: config.flags & abi::FLAG_LOGS != 0,
        slots: config.slots,
        rows: compress(view, rows),
        counters: counters::count(policy.map(Policy::name), counts, listeners),
    })
}

/// Rows with their lanes' choices, each once.
fn compress(view: View, entries: &[Row]) -> Vec<RowStatus> {
    let choices = |entries: &[Row], which: fn(&Row) -> u32| -> Vec<u32> {
        let slots: BTreeSet<u32> =
            entries.iter().map(which).filter(|&slot| slot != NO_SLOT).collect();
        slots.into_iter().collect()
    };
    let row = |(row, entries): (u32, &[Row])| RowStatus {
        row,
        first: choices(entries, |row| row.first),
        second: choices(entries, |row| row.second),
    };
    (0..).zip(entries.chunks(view.lanes.max(1) as usize)).map(row).collect()
}
