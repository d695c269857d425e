//! Whether a group can be steered as it is, asked before anything is touched.

use reuseport_common::abi::Policy;

use crate::discover::acquire::{AcquireError, with_listener};
use crate::model::{Group, Listener, Served};
use crate::plan::PlanError;

use super::{SteerError, Weight};

/// Why a group of one cannot be steered: no SO_REUSEPORT, or nothing to choose between.
pub(super) fn explain_alone(groups: &[Group]) -> SteerError {
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
pub(super) fn check_workers(group: &Group, policy: Policy) -> Result<(), SteerError> {
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
    let serves = |listener: &Listener, weight: &Weight| weighs(listener, *weight);
    for weight in weights {
        if !groups.iter().flat_map(|group| &group.listeners).any(|it| serves(it, weight)) {
            return Err(SteerError::UnusedWeight { pid: weight.pid, tid: weight.tid });
        }
    }
    Ok(())
}

/// Whether a weight speaks of this listener's worker.
pub(super) fn weighs(listener: &Listener, weight: Weight) -> bool {
    match &listener.served {
        Served::By(workers) => workers.iter().any(|worker| {
            worker.pid == weight.pid && (weight.tid.is_none() || weight.tid == worker.tid)
        }),
        Served::Unknown(_) => {
            weight.tid.is_none() && listener.holders.iter().any(|it| it.pid == weight.pid)
        }
    }
}
