//! `detach`: gives a group back to the kernel's hash. Idempotent, and never what is not ours.

use serde::Serialize;

use crate::bpf::owner::Attached;
use crate::bpf::pins::{self, LockedPins, Pins, PinsError, names_port};
use crate::discover::{DiscoverError, Target, discover};
use crate::model::{Group, GroupKey};

use super::ownership::{self, Census};
use super::rung::{self, Traces, through_any};
use super::{Notice, Settings, SteerError, discover_everywhere, is_gone, sees_everything};

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Detached {
    /// The program was taken off, the pins removed.
    Detached,
    /// No program of ours was attached; leftover pins, if any, were removed.
    Already,
    /// The group is gone; its pins were removed.
    Cleared,
    /// A program that is not ours, or no longer, is attached and was left there; pins of ours were
    /// removed.
    Foreign,
}

/// What was done for one group.
#[derive(Clone, Debug, Serialize)]
pub struct DetachReport {
    /// The group; `None` for pins that name none, and where nobody listens.
    pub group: Option<GroupKey>,
    /// What became of it.
    pub outcome: Detached,
    /// What the user should know.
    pub notices: Vec<Notice>,
}

/// Detaches every group of the target, whichever rung it is on, and clears pins of groups on its port
/// that are gone.
///
/// # Minimum kernel version
///
/// 5.6.
pub fn detach(target: &Target, settings: &Settings) -> Result<Vec<DetachReport>, SteerError> {
    detach_all(target, settings).or_else(|refused| {
        if refused.forbids_ebpf().is_some() {
            without_ebpf(target, settings, refused)
        } else {
            Err(refused)
        }
    })
}

/// Where eBPF is not to be had, whoever is on a lower rung can leave it all the same. If nobody is, it
/// stays unknown whether there is anything to detach: that is `refused`.
fn without_ebpf(
    target: &Target,
    settings: &Settings,
    refused: SteerError,
) -> Result<Vec<DetachReport>, SteerError> {
    let groups = discover(target)?;
    let traces = groups.iter().map(Traces::read).collect::<Result<Vec<_>, _>>()?;
    let pins = Pins::at(&settings.bpffs).ok();
    let pinned = |group: &Group| {
        pins.as_ref().is_some_and(|pins| !matches!(pins.open(&group.key), Ok(None)))
    };
    if !traces.iter().any(Traces::are_ours) || groups.iter().any(pinned) {
        return Err(refused);
    }
    let mut reports = Vec::new();
    for (group, traces) in groups.iter().zip(&traces) {
        rung::take_off(group, traces)?;
        let outcome = if traces.are_ours() { Detached::Detached } else { Detached::Already };
        let mut notices = vec![Notice::new(
            format!("it cannot be seen whether a program is attached ({refused})"),
            "no pins say that one of ours is",
        )];
        notices.extend(left_alone(traces));
        reports.push(DetachReport { group: Some(group.key), outcome, notices });
    }
    Ok(reports)
}

/// That a server's own choice stays.
fn left_alone(traces: &Traces) -> Option<Notice> {
    let servers = traces.count(false);
    (servers > 0).then(|| {
        Notice::new(
            format!("SO_INCOMING_CPU is set on {servers} listeners by the server itself"),
            "it stays as it is; change it in the server",
        )
    })
}

fn detach_all(target: &Target, settings: &Settings) -> Result<Vec<DetachReport>, SteerError> {
    let pins = Pins::at(&settings.bpffs)?.lock()?;
    let groups = match discover(target) {
        Ok(groups) => groups,
        // The server may be stopped: what is left of it is still to be cleared.
        Err(error @ DiscoverError::NobodyListens { .. }) => {
            let reports = clear_dead(&pins, target, &[])?;
            if !reports.is_empty() {
                return Ok(reports);
            }
            // Nothing is attached where nobody listens: what was asked for is so already.
            let notices = vec![Notice::new(error.to_string(), "there is nothing to detach")];
            return Ok(vec![DetachReport { group: None, outcome: Detached::Already, notices }]);
        }
        Err(error) => return Err(error.into()),
    };
    let census = Census::ask(&groups, target, settings)?;
    let mut reports = Vec::new();
    for group in &groups {
        reports.push(detach_group(&pins, group, &census)?);
    }
    reports.extend(clear_dead(&pins, target, &groups)?);
    Ok(reports)
}

pub(super) fn detach_group(
    pins: &LockedPins,
    group: &Group,
    census: &Census,
) -> Result<DetachReport, SteerError> {
    let attached = census.attached(group);
    ownership::recover(pins, group, &attached)?;
    let ours = ownership::examine(pins, group, &attached)?;
    let traces = Traces::read(group)?;
    let mut notices = Vec::from_iter(left_alone(&traces));
    let outcome = if ours.in_force {
        take_off(group)?;
        rung::forget(group)?;
        Detached::Detached
    } else if let Attached::Program { .. } = attached {
        // A classic program of ours that the listeners remember was replaced by it.
        rung::forget(group)?;
        notices.push(foreign(&attached));
        Detached::Foreign
    } else if traces.are_ours() {
        rung::take_off(group, &traces)?;
        Detached::Detached
    } else {
        match &attached {
            Attached::Nothing => Detached::Already,
            Attached::Unknown { why } => {
                notices.push(Notice::new(
                    format!("it cannot be seen whether a program is attached ({why})"),
                    "no pins say that one of ours is, so nothing was detached",
                ));
                Detached::Already
            }
            Attached::Program { .. } | Attached::Classic => {
                notices.push(foreign(&attached));
                Detached::Foreign
            }
        }
    };
    pins.remove(&pins.place(&group.key))?;
    pins.clear_agent(&group.key)?;
    Ok(DetachReport { group: Some(group.key), outcome, notices })
}

fn foreign(attached: &Attached) -> Notice {
    Notice::new(
        format!("attached is {}", SteerError::owner(attached)),
        "detach it with the program that attached it; or `attach --takeover`, then `detach`",
    )
}

/// Detaches through any listener that is still there.
pub(super) fn take_off(group: &Group) -> Result<(), SteerError> {
    through_any(group, pins::detach)?.map(drop).map_err(SteerError::of(&group.key))
}

/// Removes pins on the target's port whose group is gone: no live group in any namespace has their
/// key, and no socket is left in their map.
pub(super) fn clear_dead(
    pins: &LockedPins,
    target: &Target,
    live: &[Group],
) -> Result<Vec<DetachReport>, SteerError> {
    let mut reports = Vec::new();
    for (directory, pinned) in pins.list()? {
        let Ok(pinned) = pinned else {
            // Another version's or an incomplete one: its name tells the port, but not where.
            if names_port(&directory, target.protocol, target.port)
                && live.is_empty()
                && sees_everything()
                && discover_everywhere(&target.everywhere())?.is_empty()
            {
                pins.remove(&directory)?;
                reports.push(DetachReport {
                    group: None,
                    outcome: Detached::Cleared,
                    notices: Vec::new(),
                });
            }
            continue;
        };
        let config = pinned.maps.config().map_err(PinsError::from)?;
        let Some(key) = GroupKey::from_raw(&config.group) else { continue };
        let ours = key.address.port() == target.port && key.protocol == target.protocol;
        let alive = live.iter().any(|group| group.key == key);
        if !ours || alive {
            continue;
        }
        let sockets = pinned.maps.sockets.cookies().map_err(PinsError::from)?;
        // Whose workers were all replaced has no socket in the map, and runs our program still.
        if sockets.iter().all(Option::is_none) && is_gone(&key, Some(target)) {
            drop(pinned);
            pins.remove(&directory)?;
            pins.clear_agent(&key)?;
            let outcome = Detached::Cleared;
            reports.push(DetachReport { group: Some(key), outcome, notices: Vec::new() });
        }
    }
    Ok(reports)
}
