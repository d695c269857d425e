//! Whether a group can be steered as it is, asked before anything is touched.

use std::collections::HashMap;

use reuseport_common::abi::Policy;

use crate::discover::acquire::{AcquireError, with_listener};
use crate::model::{Group, GroupKey, Listener, Pid, Served};
use crate::plan::PlanError;

use super::{Notice, SteerError, Weight};

/// Why a group of one cannot be steered: no SO_REUSEPORT, or nothing to choose between.
pub(crate) fn explain_alone(groups: &[Group]) -> SteerError {
    for group in groups {
        for listener in &group.listeners {
            // Whether it could be taken otherwise does not matter: it is alone.
            if let Err(error @ (AcquireError::NotReuseport { .. } | AcquireError::Mptcp { .. })) =
                with_listener(listener, &group.key, |_| ())
            {
                return error.into();
            }
        }
    }
    let key = groups.first().map(|group| group.key);
    match key {
        Some(group) => SteerError::GroupOfOne { group },
        None => SteerError::Plan(PlanError::NoSeats),
    }
}

/// Steering by CPU takes knowing every worker's CPU.
pub(crate) fn check_workers(group: &Group, policy: Policy) -> Result<(), SteerError> {
    if policy != Policy::Cpu {
        return Ok(());
    }
    let reason = |listener: &Listener| match &listener.served {
        Served::Unknown(reason) => Some(reason.clone()),
        Served::By(_) => None,
    };
    let unknown: Vec<_> = group.listeners.iter().filter_map(reason).collect();
    let of = group.listeners.len();
    match unknown.first() {
        None => Ok(()),
        Some(reason) => Err(SteerError::UnknownWorkers {
            group: group.key,
            count: unknown.len(),
            of,
            reason: reason.clone(),
        }),
    }
}

pub(super) fn check_weights(groups: &[Group], weights: &[Weight]) -> Result<(), SteerError> {
    for weight in weights {
        let mut all = groups.iter().flat_map(|group| &group.listeners);
        if !all.any(|it| serves(it, weight.pid, weight.tid)) {
            return Err(SteerError::UnusedWeight { pid: weight.pid, tid: weight.tid });
        }
    }
    Ok(())
}

/// The weights by cookie of the group's listeners; of several for one worker the last holds.
pub(super) fn weights_of(group: &Group, weights: &[Weight]) -> HashMap<u64, u32> {
    let of = |listener: &Listener| {
        let own = weights.iter().rev().find(|it| serves(listener, it.pid, it.tid))?;
        Some((listener.cookie, own.percent))
    };
    group.listeners.iter().filter_map(of).collect()
}

/// Whether the process, or that thread of it, serves the listener.
pub(super) fn serves(listener: &Listener, pid: Pid, tid: Option<Pid>) -> bool {
    match &listener.served {
        Served::By(workers) => {
            workers.iter().any(|it| it.pid == pid && (tid.is_none() || tid == it.tid))
        }
        Served::Unknown(_) => tid.is_none() && listener.holders.iter().any(|it| it.pid == pid),
    }
}

/// Which of these groups is bound to a device and has the address of this one, which is not.
pub(crate) fn bound_beside(
    group: &GroupKey,
    mut groups: impl Iterator<Item = GroupKey>,
) -> Option<Notice> {
    let bound = groups.find(|it| {
        it.device != 0
            && (it.netns, it.protocol, it.address) == (group.netns, group.protocol, group.address)
    });
    let bound = bound.filter(|_| group.device == 0)?;
    Some(Notice::new(
        format!(
            "{bound} is bound to a device and {group} is not: one of them gets all that comes by it, \
             as a rule the one that listened last"
        ),
        "give them different ports or addresses",
    ))
}
