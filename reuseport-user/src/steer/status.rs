//! `status`: what is in force, read back from the kernel, and what is wrong with it. Changes
//! nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reuseport_common::abi::{self, NO_SLOT, Policy, Row, View};
use serde::Serialize;

use crate::bpf::maps::Counts;
use crate::bpf::object::fingerprint;
use crate::bpf::owner::Attached;
use crate::bpf::pins::{Pinned, Pins, PinsError};
use crate::discover::{DiscoverError, NetnsChoice, Target, discover};
use crate::model::{Cpu, Group, GroupKey, Listener, Protocol};
use crate::plan::policy_str;
use crate::topology::Topology;

use super::ownership::{self, Census};
use super::{Notice, Settings, SteerError, discover_everywhere, is_gone, named_netns};

mod problems;

/// One group, steered or not.
#[derive(Clone, Debug, Serialize)]
pub struct GroupStatus {
    /// What sets it apart.
    pub group: GroupKey,
    /// A process in its network namespace, where that is not ours.
    pub netns_pid: Option<u32>,
    /// The program attached, as the kernel says.
    pub attached: Attached,
    /// What our pins hold; `None` for a group that we do not steer.
    pub steering: Option<Steering>,
    /// Its listeners and where they sit.
    pub listeners: Vec<ListenerStatus>,
    /// What is wrong, and what to do about it.
    pub problems: Vec<Notice>,
}

/// What the pins of a group hold.
#[derive(Clone, Debug, Serialize)]
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
    pub policy: Option<&'static str>,
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
#[derive(Clone, Debug, Serialize)]
pub struct RowStatus {
    /// The CPU for policy `cpu`, a position in the table otherwise.
    pub row: u32,
    /// First choices, without repetition.
    pub first: Vec<u32>,
    /// Second choices, without repetition.
    pub second: Vec<u32>,
}

/// Runs of the program. Not connections: a SYN cookie takes two, a stray segment one.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    /// All of them.
    pub runs: u64,
    /// A slot was selected, by how.
    pub first: u64,
    /// The second choice, because the first was empty.
    pub second: u64,
    /// The second choice, because the first was over its limit.
    pub spilled: u64,
    /// For a connection whose listener closed.
    pub migrated: u64,
    /// `CONFIG` was not filled.
    pub no_config: u64,
    /// The CPU has no row.
    pub no_row: u64,
    /// The row points nowhere.
    pub empty_row: u64,
    /// Both choices were empty.
    pub no_socket: u64,
    /// Selections of a worker that is pinned to the receiving CPU, as it is now; `None` where workers
    /// are not pinned or rows are no CPUs.
    pub local: Option<u64>,
    /// Selections by receiving CPU (outer) and slot (inner); CPUs without any are left out.
    pub by_cpu: Vec<CpuCounters>,
}

/// Selections on one receiving CPU.
#[derive(Clone, Debug, Serialize)]
pub struct CpuCounters {
    /// The CPU.
    pub cpu: Cpu,
    /// By slot; slots without any are left out.
    pub slots: Vec<(u32, u64)>,
}

/// A listener and its seat.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerStatus {
    /// Its slot, read back by cookie; `None` when it is in no map of ours.
    pub slot: Option<u32>,
    /// The socket.
    #[serde(flatten)]
    pub listener: Listener,
    /// Selections of its slot so far; 0 without a slot.
    pub selections: u64,
}

/// Looks at the groups of `target`, or at every group that has pins.
pub fn status(
    target: Option<&Target>,
    settings: &Settings,
) -> Result<Vec<GroupStatus>, SteerError> {
    let pins = Pins::at(&settings.bpffs)?;
    let topology = Topology::read()?;
    let mut statuses = Vec::new();
    let mut seen: BTreeSet<PathBuf> = BTreeSet::new();
    let mut look = |target: &Target, groups: Vec<Group>| -> Result<(), SteerError> {
        let census = match Census::ask(&groups, target, settings) {
            // Reading pins takes less than loading programs.
            Err(SteerError::Bpf { source, .. }) => Census::unknown(&source),
            census => census?,
        };
        for group in groups {
            let status = examine(&pins, &group, &census, &topology)?;
            seen.insert(pins.place(&group.key));
            statuses.push(status);
        }
        Ok(())
    };
    if let Some(target) = target {
        let groups = match discover(target) {
            Err(DiscoverError::NobodyListens { .. }) if has_pins(&pins, target)? => Vec::new(),
            groups => groups?,
        };
        look(target, groups)?;
    } else {
        for (target, groups) in pinned_targets(&pins)? {
            look(&target, groups)?;
        }
    }
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

/// Every (port, protocol) that pins speak of, with the groups that live there, steered ones only.
fn pinned_targets(pins: &Pins) -> Result<Vec<(Target, Vec<Group>)>, SteerError> {
    let mut keys = Vec::new();
    for (_, pinned) in pins.list()? {
        let Ok(pinned) = pinned else { continue };
        let config = pinned.maps.config().map_err(PinsError::from)?;
        keys.extend(GroupKey::from_raw(&config.group));
    }
    let ports: BTreeSet<(Protocol, u16)> =
        keys.iter().map(|key| (key.protocol, key.address.port())).collect();
    let mut found = Vec::new();
    for (protocol, port) in ports {
        let all = Target { port, addrs: Vec::new(), netns: NetnsChoice::Auto, protocol };
        let targets = discover_everywhere(&all)?;
        for (target, mut groups) in targets {
            groups.retain(|group| keys.contains(&group.key));
            found.push((target, groups));
        }
    }
    Ok(found)
}

fn has_pins(pins: &Pins, target: &Target) -> Result<bool, SteerError> {
    Ok(pins.list()?.iter().any(|(_, pinned)| {
        let key = pinned.as_ref().ok().and_then(key_of);
        key.is_some_and(|key| key.address.port() == target.port && key.protocol == target.protocol)
    }))
}

fn key_of(pinned: &Pinned) -> Option<GroupKey> {
    GroupKey::from_raw(&pinned.maps.config().ok()?.group)
}

/// Looks at one live group.
fn examine(
    pins: &Pins,
    group: &Group,
    census: &Census,
    topology: &Topology,
) -> Result<GroupStatus, SteerError> {
    let of = SteerError::of(&group.key);
    let attached = census.attached(group);
    let ownership::Ours { pinned, in_force, notices } = ownership::examine(pins, group, &attached)?;
    let mut listeners: Vec<_> = group.listeners.iter().cloned().map(unseated).collect();
    let mut steering = None;
    let mut rows = Vec::new();
    if let Some(pinned) = &pinned {
        let cookies = pinned.maps.sockets.cookies().map_err(&of)?;
        let counts = pinned.maps.counts().map_err(&of)?;
        seat(&mut listeners, &cookies, &counts);
        rows = pinned.maps.rows().map_err(&of)?;
        steering = Some(read(pinned, in_force, &rows, &counts, &listeners).map_err(&of)?);
    }
    let mut status = GroupStatus {
        group: group.key,
        netns_pid: group.netns.pid.filter(|_| !group.netns.own),
        attached,
        steering,
        listeners,
        problems: notices,
    };
    let stale = match &pinned {
        Some(pinned) => pinned.maps.config().map_err(&of)?.object != fingerprint(),
        None => false,
    };
    problems::find(&mut status, &rows, topology, stale);
    Ok(status)
}

fn unseated(listener: Listener) -> ListenerStatus {
    ListenerStatus { slot: None, listener, selections: 0 }
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
        pins: pinned.directory.clone(),
        program_id: pinned.program_id,
        in_force,
        generation: config.generation,
        attached_at: config.attached_at,
        policy: policy.map(policy_str),
        migrates: config.flags & abi::FLAG_MIGRATES != 0,
        logs: config.flags & abi::FLAG_LOGS != 0,
        slots: config.slots,
        rows: compress(view, rows),
        counters: count(policy, counts, listeners),
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

fn count(policy: Option<Policy>, counts: &[Counts], listeners: &[ListenerStatus]) -> Counters {
    let mut total = Counts::default();
    for cpu in counts {
        total.add(cpu);
    }
    let hits = |hit: usize| total.slots.iter().map(|slot| slot[hit]).sum();
    let by_cpu: Vec<CpuCounters> = (0..)
        .zip(counts)
        .map(|(cpu, counts)| CpuCounters {
            cpu,
            slots: (0..)
                .zip(&counts.slots)
                .map(|(slot, hits)| (slot, hits.iter().sum()))
                .filter(|&(_, selections)| selections > 0)
                .collect(),
        })
        .filter(|cpu| !cpu.slots.is_empty())
        .collect();
    let runs_here = |cpu: Cpu, slot: u32| {
        let worker = listeners.iter().find(|listener| listener.slot == Some(slot));
        worker.is_some_and(|listener| listener.listener.cpus().contains(cpu))
    };
    // Of workers that may run on several CPUs it cannot be said where they ran.
    let pinned = listeners.iter().all(|it| it.slot.is_none() || it.listener.cpus().len() == 1);
    let local = (policy == Some(Policy::Cpu) && pinned).then(|| {
        let cells = by_cpu.iter().flat_map(|cpu| cpu.slots.iter().map(|cell| (cpu.cpu, cell)));
        cells.filter(|(cpu, cell)| runs_here(*cpu, cell.0)).map(|(_, cell)| cell.1).sum()
    });
    let [no_config, no_row, empty_row, no_socket] = total.misses;
    Counters {
        runs: total.runs(),
        first: hits(0),
        second: hits(1),
        spilled: hits(2),
        migrated: hits(3),
        no_config,
        no_row,
        empty_row,
        no_socket,
        local,
        by_cpu,
    }
}

/// Pins without a live group.
fn leftover(
    directory: &Path,
    pinned: Result<Pinned, PinsError>,
    target: Option<&Target>,
) -> Option<GroupStatus> {
    let pinned = pinned.ok()?;
    let group = key_of(&pinned)?;
    let asked = target.is_none_or(|target| {
        target.port == group.address.port() && target.protocol == group.protocol
    });
    let netns_differs = target.is_some_and(|target| !target.addrs.is_empty());
    let empty = pinned.maps.sockets.cookies().ok()?.iter().all(Option::is_none);
    (asked && empty && !netns_differs).then(|| GroupStatus {
        group,
        netns_pid: None,
        attached: Attached::Nothing,
        steering: None,
        listeners: Vec::new(),
        problems: vec![Notice::new(
            format!("the group is gone, its pins are left in {}", directory.display()),
            "start the server and `attach` again, or `detach` to remove them",
        )],
    })
}
