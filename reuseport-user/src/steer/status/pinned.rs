//! What pins speak of: where to look, and what is left of groups that are gone.

use std::collections::BTreeSet;
use std::path::Path;

use super::{GroupStatus, RungStatus};
use crate::bpf::owner::Attached;
use crate::bpf::pins::{Pinned, Pins, PinsError};
use crate::discover::{NetnsChoice, Target};
use crate::model::{Group, GroupKey, Protocol};
use crate::steer::{Notice, SteerError, discover_everywhere};

/// Every (port, protocol) that pins speak of, with the groups that live there, steered ones only.
pub(super) fn pinned_targets(pins: &Pins) -> Result<Vec<(Target, Vec<Group>)>, SteerError> {
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

pub(super) fn has_pins(pins: Option<&Pins>, target: &Target) -> Result<bool, SteerError> {
    let Some(pins) = pins else { return Ok(false) };
    Ok(pins.list()?.iter().any(|(_, pinned)| {
        let key = pinned.as_ref().ok().and_then(key_of);
        key.is_some_and(|key| key.address.port() == target.port && key.protocol == target.protocol)
    }))
}

fn key_of(pinned: &Pinned) -> Option<GroupKey> {
    GroupKey::from_raw(&pinned.maps.config().ok()?.group)
}

/// Pins without a live group.
pub(super) fn leftover(
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
        rung: RungStatus::gone(),
        steering: None,
        listeners: Vec::new(),
        traced: None,
        problems: vec![Notice::new(
            format!("the group is gone, its pins are left in {}", directory.display()),
            "start the server and `attach` again, or `detach` to remove them",
        )],
    })
}
