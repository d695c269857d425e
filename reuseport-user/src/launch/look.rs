//! A look at copies that start, until they listen, and at copies that drain, until they are done.

use std::collections::BTreeSet;

use crate::discover::acquire::AcquireError;
use crate::discover::{DiscoverError, Look, Target, family};
use crate::model::Pid;
use crate::steer::SteerError;
use crate::steer::change::Handshakes;

use super::supervisor::Instance;
use super::{LaunchError, ports};

/// Whom to look at.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) target: Target,
    /// Whether the copies were given their listeners.
    pub(super) given: bool,
    /// Whether to see if those that listen can be steered.
    pub(super) examine: bool,
    /// A copy, its process and its listeners.
    pub(super) starting: Vec<(Instance, Pid, BTreeSet<u64>)>,
    pub(super) retiring: Vec<Retiring>,
}

/// A copy that is steered away from.
#[derive(Debug)]
pub(super) struct Retiring {
    pub(super) instance: Instance,
    pub(super) pid: Pid,
    pub(super) cookies: BTreeSet<u64>,
    /// Those that may still become connections of its; `None` before the first look.
    pub(super) handshakes: Option<Handshakes>,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Copies that listen, and their listeners.
    pub(super) listening: Vec<(Instance, BTreeSet<u64>)>,
    /// Copies that have nothing left to do.
    pub(super) drained: Vec<Instance>,
    /// Handshakes that the others have to wait for.
    pub(super) handshakes: Vec<(Instance, Handshakes)>,
    pub(super) failure: Option<LaunchError>,
}

/// Looks once.
pub(super) fn look(request: Request) -> Seen {
    let mut seen = Seen::default();
    if let Err(error) = see(request, &mut seen) {
        seen.failure = Some(error);
    }
    seen
}

fn see(request: Request, seen: &mut Seen) -> Result<(), LaunchError> {
    let Request { target, given, examine, starting, retiring } = request;
    if !retiring.is_empty() {
        see_draining(&target, retiring, seen).map_err(SteerError::from)?;
    }
    let roots: Vec<Pid> = starting.iter().map(|(_, pid, _)| *pid).collect();
    if roots.is_empty() {
        return Ok(());
    }
    if given {
        let accepting = ports::accepting(&target, &roots)?;
        let accepts = starting.into_iter().filter(|(_, pid, _)| accepting.contains(pid));
        seen.listening = accepts.map(|(instance, _, cookies)| (instance, cookies)).collect();
        return Ok(());
    }
    let mut found = ports::listening(&target, &roots)?;
    for (instance, pid, _) in starting {
        let Some(cookies) = found.remove(&pid) else { continue };
        if examine {
            ports::examine(&target, &cookies).map_err(|error| match error {
                SteerError::Acquire(AcquireError::NotReuseport { .. }) => LaunchError::Unfit(error),
                error => error.into(),
            })?;
        }
        seen.listening.push((instance, cookies));
    }
    Ok(())
}

fn see_draining(
    target: &Target,
    retiring: Vec<Retiring>,
    seen: &mut Seen,
) -> Result<(), DiscoverError> {
    let mut look = Look::here(target)?;
    for Retiring { instance, pid, cookies, handshakes } in retiring {
        // In this order: a handshake ends in the queue, and who waits there is accepted.
        let mut handshakes = handshakes.map_or_else(|| Handshakes::find(&mut look), Ok)?;
        handshakes.update(&mut look)?;
        let done = handshakes.left() == 0
            && family::waiting(target.port, &cookies)? == 0
            && family::connections(target.port, pid)? == 0;
        if done {
            seen.drained.push(instance);
        }
        seen.handshakes.push((instance, handshakes));
    }
    Ok(())
}
