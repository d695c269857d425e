//! Which listeners of which steered groups are meant.

use std::collections::BTreeSet;

use reuseport_common::abi::Role;

use crate::bpf::owner::Attached;
use crate::bpf::pins::{LockedPins, Pinned};
use crate::discover::discover;
use crate::model::{Group, Listener};
use crate::topology::Topology;

use super::super::draft::Change;
use super::super::fit::serves;
use super::super::intent::Intents;
use super::super::ownership::{self, Census, Ours};
use super::super::rung::Traces;
use super::super::{Notice, SteerError};
use super::{ChangeOptions, Who};

/// A group that our program steers.
pub(super) struct Steered {
    pub(super) group: Group,
    pub(super) pinned: Pinned,
    pub(super) notices: Vec<Notice>,
    /// Cookie of the socket in each slot.
    occupied: Vec<Option<u64>>,
    intents: Intents,
}

/// One in which somebody was named.
pub(super) struct Chosen {
    pub(super) steered: Steered,
    /// The listeners that were.
    pub(super) cookies: BTreeSet<u64>,
}

impl Chosen {
    /// Other roles for those that were named, by the one that each has.
    pub(super) fn roles(&self, role: impl Fn(Role) -> Role) -> Change {
        let of = |cookie| role(self.steered.intents.get(cookie).role);
        let roles = self.cookies.iter().map(|&cookie| (cookie, of(cookie))).collect();
        Change { roles, ..Change::default() }
    }
}

/// The steered groups of the target; an error where there is none.
pub(super) fn find(
    options: &ChangeOptions,
    topology: &Topology,
    pins: &LockedPins,
) -> Result<Vec<Steered>, SteerError> {
    let mut groups = discover(&options.target)?;
    options.overrides.check(&topology.possible())?;
    options.overrides.apply(&mut groups)?;
    let census = Census::ask(&groups, &options.target, &options.settings)?;
    let (mut steered, mut others) = (Vec::new(), Vec::new());
    for group in groups {
        let attached = census.attached(&group);
        ownership::recover(pins, &group, &attached)?;
        let Ours { pinned, in_force, notices } = ownership::examine(pins, &group, &attached)?;
        let of = SteerError::of(&group.key);
        match pinned.filter(|_| in_force) {
            Some(pinned) => steered.push(Steered {
                occupied: pinned.maps.sockets.cookies().map_err(&of)?,
                intents: Intents::read(&pinned.maps).map_err(&of)?,
                group,
                pinned,
                notices,
            }),
            None if in_force => others.push(SteerError::NotSteered {
                group: group.key,
                why: "another version's program steers it",
                remedy: "run `attach` again, which replaces it",
            }),
            None => others.push(match attached {
                Attached::Classic if Traces::read(&group)?.has_places() => {
                    SteerError::not_steered(group.key)
                }
                Attached::Program { .. } | Attached::Classic => {
                    SteerError::foreign(&group.key, &attached)
                }
                _ => SteerError::not_steered(group.key),
            }),
        }
    }
    match others.into_iter().next() {
        Some(error) if steered.is_empty() => Err(error),
        _ => Ok(steered),
    }
}

/// Those of the groups in which somebody is `named`. Each name must mean somebody, and a slot one.
pub(super) fn choose(groups: Vec<Steered>, named: &[Who]) -> Result<Vec<Chosen>, SteerError> {
    for who in named {
        let meant: Vec<&Steered> =
            groups.iter().filter(|it| !listeners(it, *who).is_empty()).collect();
        match (who, meant.as_slice()) {
            (_, []) => return Err(SteerError::NobodyThere { who: nobody(*who) }),
            (Who::Slot(slot), [_, _, ..]) => {
                let keys: Vec<_> = meant.iter().map(|it| it.group.key.to_string()).collect();
                return Err(SteerError::AmbiguousSlot { slot: *slot, groups: keys.join(", ") });
            }
            _ => {}
        }
    }
    let choose = |steered: Steered| {
        let cookies = named.iter().flat_map(|who| listeners(&steered, *who)).collect();
        Chosen { steered, cookies }
    };
    let chosen = groups.into_iter().map(choose);
    Ok(chosen.filter(|it: &Chosen| !it.cookies.is_empty()).collect())
}

/// Cookies of the group's listeners that are meant.
fn listeners(steered: &Steered, who: Who) -> Vec<u64> {
    let meant = |listener: &&Listener| match who {
        Who::Worker { pid, tid } => serves(listener, pid, tid),
        Who::Slot(slot) => {
            steered.occupied.get(slot as usize).copied().flatten() == Some(listener.cookie)
        }
    };
    steered.group.listeners.iter().filter(meant).map(|listener| listener.cookie).collect()
}

fn nobody(who: Who) -> String {
    match who {
        Who::Worker { pid, tid: None } => {
            format!("process {pid} serves none of the steered listeners found")
        }
        Who::Worker { pid, tid: Some(tid) } => {
            format!("thread {tid} of process {pid} serves none of the steered listeners found")
        }
        Who::Slot(slot) => format!("nobody sits in slot {slot} of the steered groups found"),
    }
}
