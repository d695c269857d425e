//! `drain`, `undrain`, `weight`: what some workers of a steered port are to get, changed in place.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reuseport_common::abi::Role;
use serde::Serialize;

use crate::bpf::pins::Pins;
use crate::discover::overrides::Overrides;
use crate::discover::{Target, discover};
use crate::model::{Group, GroupKey, Listener, Pid, Served};
use crate::plan::role_name;
use crate::sys::membarrier;
use crate::topology::Topology;

use super::draft::{Change, Draft};
use super::fill::assign;
use super::fit::weights_of;
use super::intent::Intent;
use super::reconcile::{Reconciled, settle};
use super::{Notice, Settings, SteerError, Weight};

use self::find::{Chosen, Steered, choose, find};

mod find;
mod wait;

pub use wait::{Drained, Handshakes, Waiting};

/// Where to change something.
#[derive(Clone, Debug)]
pub struct ChangeOptions {
    /// Which groups.
    pub target: Target,
    /// What the user knows better.
    pub overrides: Overrides,
    /// Where and how.
    pub settings: Settings,
}

/// Who is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// All listeners that a process, or one thread of it, serves.
    Worker {
        /// The process.
        pid: Pid,
        /// The thread, where one is meant.
        tid: Option<Pid>,
    },
    /// The listener in a slot.
    Slot(u32),
}

/// What was changed in one group.
#[derive(Clone, Debug, Serialize)]
pub struct ChangeReport {
    /// The group.
    pub group: GroupKey,
    /// Counts the plans since the first attach.
    pub generation: u32,
    /// Whether that is a new one: not so where the table was right already.
    pub changed: bool,
    /// Those that were named.
    pub seats: Vec<SeatReport>,
    /// What the user should know.
    pub notices: Vec<Notice>,
}

/// A seat that was named.
#[derive(Clone, Debug, Serialize)]
pub struct SeatReport {
    /// Its slot.
    pub slot: u32,
    /// Its socket's cookie.
    pub cookie: u64,
    /// Who accepts from it.
    pub served: Served,
    /// Percent of a normal share that it is to get.
    pub weight: u32,
    /// What part it takes.
    #[serde(serialize_with = "role_name")]
    pub role: Role,
    /// What became of the connections that it had got; `None` where nobody waited for that.
    pub drained: Option<Drained>,
}

/// Gives a worker nothing new and, unless `patience` is `None`, waits until it accepted what it had
/// got: its accept queue is empty, and no handshake is left that was under way at the change. A worker
/// that exits meanwhile is drained, too.
///
/// It stays in the group and in the map; its entries in the table go to others. (Out of the map, it
/// would still get its part of what the kernel's hash decides.) Where it takes longer than `patience`,
/// [`SteerError::NotEmpty`] is returned, and the worker gets nothing new all the same.
///
/// # Minimum kernel version
///
/// As [`super::attach()`].
pub fn drain(
    options: &ChangeOptions,
    who: Who,
    patience: Option<Duration>,
    progress: &mut dyn FnMut(&Waiting),
) -> Result<Vec<ChangeReport>, SteerError> {
    let mut done = change(options, &[who], |it| it.roles(|_| Role::Drained))?;
    if let Some(patience) = patience {
        let deadline = Instant::now() + patience;
        // Whoever read the old table is done with it then.
        membarrier::wait_for_packets();
        for (group, report) in &mut done {
            let wait = wait::Wait { target: &options.target, group, patience, deadline };
            wait.run(&mut report.seats, progress)?;
        }
    }
    Ok(reports(done))
}

/// Gives a drained worker its share again; one that was not drained stays what it is.
pub fn undrain(options: &ChangeOptions, who: Who) -> Result<Vec<ChangeReport>, SteerError> {
    let role = |role| if role == Role::Drained { Role::Active } else { role };
    Ok(reports(change(options, &[who], |it| it.roles(role))?))
}

/// Sets what workers are to get, in percent of a normal share; it holds until it is set again.
pub fn weigh(options: &ChangeOptions, weights: &[Weight]) -> Result<Vec<ChangeReport>, SteerError> {
    let who = |it: &Weight| Who::Worker { pid: it.pid, tid: it.tid };
    let named: Vec<Who> = weights.iter().map(who).collect();
    let weights = |it: &Chosen| Change {
        weights: weights_of(&it.steered.group, weights),
        ..Change::default()
    };
    Ok(reports(change(options, &named, weights)?))
}

fn reports(done: Vec<(Group, ChangeReport)>) -> Vec<ChangeReport> {
    done.into_iter().map(|(_, report)| report).collect()
}

/// Makes a change in each group that has a listener which is `named`, after it was found possible in
/// all of them. The groups are returned as they were found.
fn change(
    options: &ChangeOptions,
    named: &[Who],
    make: impl Fn(&Chosen) -> Change,
) -> Result<Vec<(Group, ChangeReport)>, SteerError> {
    let pins = Pins::at(&options.settings.bpffs)?;
    if !pins.exist() {
        let first = discover(&options.target)?.remove(0);
        return Err(SteerError::not_steered(first.key));
    }
    let pins = pins.lock()?;
    let topology = Topology::read()?;
    let mut prepared = Vec::new();
    for chosen in choose(find(options, &topology, &pins)?, named)? {
        let Steered { group, pinned, .. } = &chosen.steered;
        let of = SteerError::of(&group.key);
        let draft = Draft::of(&topology, &make(&chosen), &pinned.maps);
        let draft = draft.map_err(&of)?;
        if !group.listeners.iter().any(|it| draft.takes_part(it)) {
            return Err(SteerError::NobodyLeft { group: group.key });
        }
        let occupied = pinned.maps.sockets.cookies().map_err(&of)?;
        draft.plan(&group.listeners, &assign(&group.listeners, &occupied))?;
        prepared.push((chosen, draft));
    }
    prepared.into_iter().map(|(chosen, draft)| carry_out(chosen, &draft)).collect()
}

fn carry_out(chosen: Chosen, draft: &Draft<'_>) -> Result<(Group, ChangeReport), SteerError> {
    let Chosen { steered: Steered { group, mut pinned, mut notices, .. }, cookies } = chosen;
    let Reconciled { listeners, slots, config, joined, published, .. } =
        settle(&mut pinned, &group, draft)?;
    if !joined.is_empty() {
        notices.push(Notice::new(
            format!("{} listeners had joined since and got their part, too", joined.len()),
            "nothing is to be done",
        ));
    }
    let named: Vec<&Listener> =
        listeners.iter().filter(|it| cookies.contains(&it.cookie)).collect();
    notices.extend(shared(&named));
    let seat = |listener: &&Listener| {
        let Intent { weight, role, .. } = draft.intents().get(listener.cookie);
        SeatReport {
            slot: slots[&listener.cookie],
            cookie: listener.cookie,
            served: listener.served.clone(),
            weight,
            role,
            drained: None,
        }
    };
    let report = ChangeReport {
        group: group.key,
        generation: config.generation,
        changed: published,
        seats: named.iter().map(seat).collect(),
        notices,
    };
    Ok((group, report))
}

/// That others serve the same listeners.
fn shared(named: &[&Listener]) -> Option<Notice> {
    let pids = |listener: &&Listener| -> BTreeSet<Pid> {
        match &listener.served {
            Served::By(workers) => workers.iter().map(|worker| worker.pid).collect(),
            Served::Unknown(_) => BTreeSet::new(),
        }
    };
    let several = named.iter().map(pids).find(|pids| pids.len() > 1)?;
    let several: Vec<_> = several.iter().map(ToString::to_string).collect();
    Some(Notice::new(
        format!("processes {} share one listener, so it is so for all of them", several.join(", ")),
        "to tell them apart, let each open a listener of its own (SO_REUSEPORT)",
    ))
}
