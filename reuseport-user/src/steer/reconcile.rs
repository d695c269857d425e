//! The one way in which a mapping in force changes in place: whoever joined is put into the map, and
//! the table that should be is put in the place of the one that is, where they differ.

use std::collections::HashMap;

use reuseport_common::abi::{Config, View};

use crate::bpf::maps::Maps;
use crate::bpf::pins::{LockedPins, Pinned};
use crate::model::{Group, Listener};
use crate::plan::Plan;
use crate::topology::Topology;

use super::SteerError;
use super::attach::of_maps;
use super::draft::{Change, Draft};
use super::fill::{assign, fill};

/// What [`reconcile`] found and did.
#[derive(Clone, Debug)]
pub struct Reconciled {
    /// The listeners that are still there.
    pub listeners: Vec<Listener>,
    /// Slot of each, by cookie.
    pub slots: HashMap<u64, u32>,
    /// The plan in force now.
    pub plan: Plan,
    /// What `CONFIG` holds now.
    pub config: Config,
    /// Cookies of the listeners that were not in the map before.
    pub joined: Vec<u64>,
    /// Whether the table was another one before.
    pub published: bool,
}

/// Makes the mapping of a steered group what it should be: what its pins say, with `change` made, for
/// the `group` as it is now. Writes only what differs, and the table last, in one step.
///
/// `pinned` is the group's, and in force: whoever calls this has seen to that. A group that outgrew
/// its maps is [`SteerError::NoRoom`]; [`super::attach()`] gives it others.
pub fn reconcile(
    _lock: &LockedPins,
    pinned: &mut Pinned,
    group: &Group,
    topology: &Topology,
    change: &Change,
) -> Result<Reconciled, SteerError> {
    let draft = Draft::of(topology, change, &pinned.maps);
    let draft = draft.map_err(SteerError::of(&group.key))?;
    settle(pinned, group, &draft)
}

/// As [`reconcile`], from a draft that was made of these pins.
pub(super) fn settle(
    pinned: &mut Pinned,
    group: &Group,
    draft: &Draft<'_>,
) -> Result<Reconciled, SteerError> {
    let of = of_maps(&group.key);
    let mut listeners = group.listeners.clone();
    let occupied = pinned.maps.sockets.cookies().map_err(&of)?;
    let mut slots = assign(&listeners, &occupied);
    let mut plan = draft.plan(&listeners, &slots)?;
    let config = pinned.maps.config().map_err(&of)?;
    let last = slots.values().copied().max().unwrap_or(0);
    if last >= config.slots || plan.table.len() > config.half as usize {
        return Err(SteerError::NoRoom { group: group.key });
    }
    let gone = fill(&mut pinned.maps, group, &slots)?;
    if !gone.is_empty() {
        slots.retain(|cookie, _| !gone.contains(cookie));
        listeners.retain(|listener| !gone.contains(&listener.cookie));
        if listeners.is_empty() {
            return Err(SteerError::Vanished { group: group.key });
        }
        plan = draft.plan(&listeners, &slots)?;
    }
    draft.intents().write(&mut pinned.maps, &slots, &plan).map_err(&of)?;
    let published = !is_live(&pinned.maps, &config, &plan).map_err(&of)?;
    let config = if published {
        pinned.maps.publish(view(&plan), &plan.table).map_err(&of)?
    } else {
        config
    };
    let joined = slots.keys().copied().filter(|it| !occupied.contains(&Some(*it))).collect();
    Ok(Reconciled { listeners, slots, plan, config, joined, published })
}

/// A plan's way to read the table; where it begins is chosen when it is published.
pub(super) fn view(plan: &Plan) -> View {
    View { policy: plan.policy as u32, base: 0, rows: plan.rows, lanes: plan.lanes }
}

/// Whether a plan is the live one.
fn is_live(maps: &Maps, config: &Config, plan: &Plan) -> Result<bool, crate::bpf::BpfError> {
    let live = config.live();
    Ok(View { base: live.base, ..view(plan) } == live && maps.rows()? == plan.table)
}
