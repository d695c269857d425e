//! Steering the copies, as `attach` does.

use std::collections::HashMap;

use reuseport_common::abi::Role;

use crate::discover::overrides::Overrides;
use crate::discover::{DiscoverError, Target};
use crate::model::{CpuSet, Pid};
use crate::steer::{AttachOptions, AttachReport, Ladder, Settings, SteerError, attach};
use crate::sys::membarrier;

/// What is to be steered.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) target: Target,
    pub(super) rung: Ladder,
    pub(super) settings: Settings,
    /// Whether a group of one is steered, too.
    pub(super) alone: bool,
    /// Parts that listeners take, by cookie, where that changes.
    pub(super) roles: HashMap<u64, Role>,
    /// The copies and where each was put, for those that cannot be seen accepting.
    pub(super) copies: Vec<(Pid, CpuSet)>,
}

/// Steers, or changes what is steered; nothing where there is nothing to choose between.
pub(super) fn steer(request: &Request) -> Result<Vec<AttachReport>, SteerError> {
    let options = AttachOptions {
        roles: request.roles.clone(),
        alone: request.alone,
        rung: request.rung,
        settings: request.settings.clone(),
        ..AttachOptions::new(request.target.clone())
    };
    let told = || Overrides {
        workers: request.copies.iter().map(|(pid, cpus)| (*pid, None, cpus.clone())).collect(),
        order: None,
    };
    let steered = match attach(&options) {
        // Busy threads and io_uring show nothing; but we know where we put them.
        Err(SteerError::UnknownWorkers { .. }) => {
            attach(&AttachOptions { overrides: told(), ..options })
        }
        steered => steered,
    };
    if request.roles.values().any(|&role| role == Role::Drained) {
        // Whoever read the table before is done with it then, and nothing new goes there.
        membarrier::wait_for_packets();
    }
    match steered {
        Err(
            SteerError::GroupOfOne { .. }
            | SteerError::Vanished { .. }
            | SteerError::Discover(DiscoverError::NobodyListens { .. }),
        ) => Ok(Vec::new()),
        steered => steered,
    }
}
