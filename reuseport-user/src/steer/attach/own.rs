//! Groups with sockets of this very process: nothing has to be found, and where this process may not
//! pin, it keeps the program to itself.

use std::collections::HashMap;

use reuseport_common::abi::Role;

use crate::bpf::BpfError;
use crate::bpf::owner::Attached;
use crate::bpf::pins::{Descriptors, LockedPins, Pinned, Pins};
use crate::discover::{NetnsChoice, Target};
use crate::model::{Group, GroupKey, Listener, Served};
use crate::sys::netns;
use crate::topology::Topology;

use super::super::detach::{clear_dead, detach_group};
use super::super::draft::{Change, Draft};
use super::super::intent::{Intent, Intents};
use super::super::ownership::{self, Census};
use super::super::reconcile::settle;
use super::super::store::Store;
use super::super::{Detached, Notice, Settings, SteerError};
use super::job::Job;
use super::{AttachOptions, AttachReport};

/// What is to be done to a group.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) options: &'a AttachOptions,
    pub(crate) topology: &'a Topology,
    /// All of it, others' listeners too.
    pub(crate) group: &'a Group,
    /// Nobody can have attached anything: all of it is this process's, and new.
    pub(crate) fresh: bool,
    /// What part this process's take from now on.
    pub(crate) role: Role,
    /// How many of the group's listeners are this process's; they come first.
    pub(crate) own: usize,
    /// Cookies of listeners that are superseded, as far as they are not drained.
    pub(crate) superseded: &'a [u64],
}

impl Request<'_> {
    /// Parts by cookie, with what `pinned` says of those that are superseded.
    fn roles(&self, pinned: Option<&Pinned>) -> Result<HashMap<u64, Role>, BpfError> {
        let now = pinned.map(|pinned| Intents::read(&pinned.maps)).transpose()?.unwrap_or_default();
        let own = self.group.listeners.iter().take(self.own).map(|it| (it.cookie, self.role));
        let drained = |cookie: &&u64| now.get(**cookie).role == Role::Drained;
        let superseded = self.superseded.iter().filter(|it| !drained(it));
        let superseded = superseded.map(|&it| (it, Role::Superseded));
        Ok(own.chain(superseded).collect())
    }
}

/// A program in force, and how to reach it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) pinned: Pinned,
    /// Where it is pinned nowhere.
    pub(crate) descriptors: Option<Descriptors>,
}

/// Steers a group by what is pinned, by what was `passed` on by the process before this one, or anew.
pub(crate) fn attach(
    request: Request<'_>,
    passed: Option<Descriptors>,
) -> Result<(AttachReport, Held), SteerError> {
    let key = request.group.key;
    let settings = &request.options.settings;
    let (pins, notice) = match passed {
        Some(_) => (None, None),
        None => open_pins(settings)?,
    };
    let mut store = match &pins {
        Some(pins) => {
            clear_dead(pins, &target(&key), std::slice::from_ref(request.group))?;
            Store::Pins(pins)
        }
        None => Store::Process { current: passed, staged: None },
    };
    // Another version's are not read: its roles are forgotten with its maps.
    let roles = request.roles(store.open(&key).ok().flatten().as_ref());
    let roles = roles.map_err(SteerError::of(&key))?;
    let options = AttachOptions { roles, ..request.options.clone() };
    let job = || Job::new(&options, request.topology, request.group.clone());
    let mut spare = None;
    let attached = if request.fresh {
        Attached::Nothing
    } else {
        let object = spare.insert(job().load()?);
        let groups = std::slice::from_ref(request.group);
        Census::take(object, groups, &target(&key))?.attached(request.group)
    };
    let prepared = job().prepare(&store, attached)?;
    let mut report = prepared.carry_out(&mut store, spare)?;
    report.notices.extend(notice);
    let pinned = store.open(&key)?.ok_or(SteerError::Vanished { group: key })?;
    let descriptors = match store {
        Store::Pins(_) => None,
        Store::Process { current, .. } => current,
    };
    Ok((report, Held { pinned, descriptors }))
}

/// Gives some listeners another part, and plans again, for those that sit in the map. False, and
/// nothing done, where it is gone.
pub(crate) fn set_roles(request: &Request<'_>, held: &mut Held) -> Result<bool, SteerError> {
    let key = request.group.key;
    let mut opened;
    let pins = held.lock(&request.options.settings)?;
    let pinned = match &pins {
        None => Some(&mut held.pinned),
        Some(pins) => {
            // Others may have replaced what was attached here.
            opened = pins.open(&key)?;
            opened.as_mut()
        }
    };
    let Some(pinned) = pinned else { return Ok(false) };
    let of = SteerError::of(&key);
    let seats = pinned.maps.sockets.seats().map_err(&of)?;
    let mut group = request.group.clone();
    group.listeners.retain(|listener| seats.contains_key(&listener.cookie));
    if group.listeners.is_empty() {
        return Ok(false);
    }
    // Others who may not be looked at keep the place that is remembered.
    for cookie in seats.into_keys() {
        if !group.listeners.iter().any(|listener| listener.cookie == cookie) {
            group.listeners.push(unseen(cookie));
        }
    }
    let roles = request.roles(Some(pinned)).map_err(&of)?;
    let change = Change { roles, ..Change::default() };
    let draft = Draft::of(request.topology, &change, &pinned.maps);
    settle(pinned, &group, &draft.map_err(&of)?)?;
    Ok(true)
}

/// What each socket in the group's map is to get, by cookie: also where somebody else replaced the
/// program that was attached here.
pub(crate) fn intents(
    key: &GroupKey,
    settings: &Settings,
    held: &Held,
) -> Result<HashMap<u64, Intent>, SteerError> {
    let opened = match held.reach(key, settings)? {
        None => None,
        Some(pins) => Some(pins.open(key)?),
    };
    let pinned = match &opened {
        None => &held.pinned,
        Some(Some(pinned)) => pinned,
        Some(None) => return Ok(HashMap::new()),
    };
    Ok(Intents::read(&pinned.maps).map_err(SteerError::of(key))?.into_map())
}

/// Takes the program off the group, if it is ours, and removes its pins.
pub(crate) fn detach(
    group: &Group,
    settings: &Settings,
    held: &Held,
) -> Result<Detached, SteerError> {
    let groups = std::slice::from_ref(group);
    let census = match Census::ask(groups, &target(&group.key), settings) {
        // This process gave its privileges up.
        Err(SteerError::Bpf { source: error @ BpfError::NotPermitted { .. }, .. }) => {
            Census::unknown(&error)
        }
        census => census?,
    };
    if let Some(pins) = held.lock(settings)? {
        return Ok(detach_group(&pins, group, &census)?.outcome);
    }
    let attached = census.attached(group);
    if ownership::is_in_force(&held.pinned, group, &attached)? {
        super::take_off(group)?;
        return Ok(Detached::Detached);
    }
    Ok(if attached == Attached::Nothing { Detached::Already } else { Detached::Foreign })
}

/// Removes the pins of a group that is gone.
pub(crate) fn clear(key: &GroupKey, settings: &Settings, held: &Held) -> Result<(), SteerError> {
    if let Some(pins) = held.lock(settings)? {
        clear_dead(&pins, &target(key), &[])?;
    }
    Ok(())
}

impl Held {
    /// The pins that it is in. `None` where it is in none, or in none that this process may still
    /// reach, which may have given its privileges up: then what it has open is all there is.
    fn reach(&self, key: &GroupKey, settings: &Settings) -> Result<Option<Pins>, SteerError> {
        if self.descriptors.is_some() {
            return Ok(None);
        }
        match Pins::at(&settings.bpffs) {
            Ok(pins) => Ok(pins.may_look_at(key).then_some(pins)),
            Err(error) if error.is_out_of_reach() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`Held::reach`], for changes.
    fn lock(&self, settings: &Settings) -> Result<Option<LockedPins>, SteerError> {
        if self.descriptors.is_some() {
            return Ok(None);
        }
        match Pins::at(&settings.bpffs).and_then(Pins::lock) {
            Ok(pins) => Ok(Some(pins)),
            Err(error) if error.is_out_of_reach() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Somebody in the map of whom nothing else is known.
fn unseen(cookie: u64) -> Listener {
    let served = Served::Unknown("its process may not be looked at".to_owned());
    Listener { cookie, inode: 0, queued: 0, backlog: 0, holders: Vec::new(), served }
}

/// The group's pins, if this process may have any, and else why not.
fn open_pins(settings: &Settings) -> Result<(Option<LockedPins>, Option<Notice>), SteerError> {
    match Pins::at(&settings.bpffs).and_then(Pins::lock) {
        Ok(pins) => Ok((Some(pins), None)),
        Err(error) if !error.is_out_of_reach() => Err(error.into()),
        Err(error) => Ok((
            None,
            Some(Notice::new(
                format!("steered without pins: {error}"),
                "`status`, `top`, `agent` and a next process of this program do not see it; it ends \
                 with the last process that has its maps",
            )),
        )),
    }
}

/// What means this group, in the calling thread's network namespace.
fn target(key: &GroupKey) -> Target {
    Target {
        port: key.address.port(),
        addrs: vec![key.address.ip()],
        netns: NetnsChoice::Path(netns::OWN.into()),
        protocol: key.protocol,
    }
}
