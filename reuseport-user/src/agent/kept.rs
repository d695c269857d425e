//! One group that is ours to keep: its part of a tick.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use reuseport_common::abi::{Config, Policy, Role};

use super::generations::{Generations, Part, Verdict};
use super::recall::{Recall, members};
use super::shared::Advice;
use crate::bpf::object::fingerprint;
use crate::bpf::owner::Attached;
use crate::bpf::pins::{AgentLock, LockedPins, Pinned, Pins, PinsError};
use crate::model::{Group, Pid};
use crate::steer::attach::{AttachOptions, attach_found};
use crate::steer::fit::check_workers;
use crate::steer::ownership::is_in_force;
use crate::steer::{Change, Intents, Reconciled, SteerError, reconcile};
use crate::topology::Topology;

/// What a group's part of a tick goes by.
pub(super) struct Facts<'a> {
    pub(super) options: &'a AttachOptions,
    pub(super) topology: &'a Topology,
    pub(super) advice: Advice,
    /// Monotonic.
    pub(super) now: Duration,
    /// Whether anything may be other than at the last tick.
    pub(super) fresh: bool,
}

/// What a group's part of a tick came to.
pub(super) enum Outcome {
    /// Its mapping is right.
    Steered(Box<Steered>),
    /// It is what it was when it was last right.
    Same,
    /// It was detached by hand.
    Released,
    /// Somebody was seated after the look: nothing was done.
    Outdated,
}

/// A mapping that is right.
pub(super) struct Steered {
    /// What was found and done.
    pub(super) reconciled: Reconciled,
    /// Whether the program was attached anew.
    pub(super) attached: bool,
    /// Listeners that were seated before and are gone.
    pub(super) left: Vec<u64>,
    /// Listeners that are in no entry for now.
    pub(super) left_out: BTreeSet<u64>,
    /// Who superseded whom.
    pub(super) verdict: Verdict,
}

/// A group that is ours to keep.
pub(super) struct Kept {
    lock: AgentLock,
    /// Its pins, open; `None` until it was steered.
    pinned: Option<Pinned>,
    recall: Recall,
    /// Who sat in the map when its mapping was last right.
    seated: BTreeSet<u64>,
    newer: Newer,
    generations: Generations,
    /// What its mapping was last right for.
    right: Option<(Config, Advice)>,
    /// Whose program was found attached in place of ours.
    foreign: Option<Attached>,
    /// Whether it was detached by hand.
    released: bool,
}

impl Kept {
    /// One whose workers are known from before, or not.
    pub(super) fn new(lock: AgentLock, recall: Recall, generations: Generations) -> Self {
        Self {
            lock,
            pinned: None,
            recall,
            seated: BTreeSet::new(),
            newer: Newer::default(),
            right: None,
            generations,
            foreign: None,
            released: false,
        }
    }

    /// Takes another time for takeovers.
    pub(super) fn adopt(&mut self, generation_timeout: Duration) {
        self.generations.set_timeout(generation_timeout);
    }

    /// Processes whose end matters.
    pub(super) fn workers(&self) -> impl Iterator<Item = Pid> {
        self.recall.workers()
    }

    /// Gives up the right to keep it.
    pub(super) fn release(self, pins: &LockedPins) -> Result<(), PinsError> {
        self.lock.release(pins)
    }

    /// The pins of the program in force.
    pub(super) fn pinned(&self) -> Option<&Pinned> {
        self.pinned.as_ref()
    }

    /// Puts slots back that are evicted; says which.
    pub(super) fn restore(&self) -> Vec<u32> {
        let Some(Pinned { maps, .. }) = &self.pinned else { return Vec::new() };
        let evicted = |slot: &u32| maps.load(*slot).is_evicted();
        let slots: Vec<u32> = (0..maps.sockets.slots()).filter(evicted).collect();
        for &slot in &slots {
            maps.set_evicted(slot, false);
        }
        slots
    }

    /// Makes the mapping right, where the group is ours to steer.
    pub(super) fn tick(
        &mut self,
        group: &Group,
        unserved: &BTreeSet<u64>,
        attached: &Attached,
        facts: &Facts<'_>,
    ) -> Result<Outcome, SteerError> {
        let mut begun = false;
        let right = self.right.take();
        if self.is_in_force(group, attached, facts)? {
            if !facts.fresh
                && right.is_some()
                && right == self.now(facts)
                && self.generations.is_at_rest()
            {
                self.right = right;
                return Ok(Outcome::Same);
            }
        } else {
            if self.pinned.is_some() {
                // A detach takes the program off before it removes the pins, and holds the lock until
                // both are done: what it leaves is looked at, not what it was about to.
                drop(Pins::at(&facts.options.settings.bpffs)?.lock()?);
                self.is_in_force(group, attached, facts)?;
            }
            if self.released {
                return Ok(Outcome::Released);
            }
            if self.foreign.as_ref() == Some(attached) {
                return Err(SteerError::foreign(&group.key, attached));
            }
            self.attach(group, unserved, attached, facts)?;
            begun = true;
        }
        let steered = match self.reconcile(group, unserved, facts) {
            Err(SteerError::NoRoom { .. }) => {
                self.attach(group, unserved, attached, facts)?;
                begun = true;
                self.reconcile(group, unserved, facts)?
            }
            result => result?,
        };
        let Some(steered) = steered else { return Ok(Outcome::Outdated) };
        self.right = Some((steered.reconciled.config, facts.advice.clone()));
        Ok(Outcome::Steered(Box::new(Steered { attached: begun, ..steered })))
    }

    /// What the mapping is to be right for.
    fn now(&self, facts: &Facts<'_>) -> Option<(Config, Advice)> {
        Some((self.pinned.as_ref()?.maps.config().ok()?, facts.advice.clone()))
    }

    /// Whether our program is the one attached, from pins that are open.
    fn is_in_force(
        &mut self,
        group: &Group,
        attached: &Attached,
        facts: &Facts<'_>,
    ) -> Result<bool, SteerError> {
        let pins = Pins::at(&facts.options.settings.bpffs)?;
        if !self.pinned.as_ref().is_some_and(Pinned::is_in_place) {
            let before = self.pinned.take();
            // What cannot be opened (another version's) is replaced by an attach.
            self.pinned = pins.open(&group.key).ok().flatten();
            let same = group.listeners.iter().any(|it| self.seated.contains(&it.cookie));
            let foreign = matches!(attached, Attached::Program { .. } | Attached::Classic);
            let by_hand = before.is_some() && same && !foreign;
            self.released = self.pinned.is_none() && (by_hand || (self.released && same));
        }
        let Some(pinned) = &self.pinned else { return Ok(false) };
        let of = SteerError::of(&group.key);
        let current = pinned.maps.config().map_err(of)?.object == fingerprint();
        Ok(current && is_in_force(pinned, group, attached)?)
    }

    /// Attaches, as `attach` does, to what is there.
    fn attach(
        &mut self,
        group: &Group,
        unserved: &BTreeSet<u64>,
        attached: &Attached,
        facts: &Facts<'_>,
    ) -> Result<(), SteerError> {
        let mut group = group.clone();
        if unserved.len() < group.listeners.len() {
            group.listeners.retain(|listener| !unserved.contains(&listener.cookie));
        }
        check_workers(&group, facts.options.policy)?;
        let key = group.key;
        let mut options = facts.options.clone();
        options.roles.extend(self.generations.waiting().map(|cookie| (cookie, Role::Standby)));
        let result = attach_found(&options, facts.topology, group);
        let foreign = result.as_ref().is_err_and(SteerError::is_foreign);
        self.foreign = foreign.then(|| attached.clone());
        result?;
        self.pinned = Pins::at(&facts.options.settings.bpffs)?.open(&key)?;
        Ok(())
    }

    /// Writes what differs; `None` where somebody was seated whom the look did not show.
    fn reconcile(
        &mut self,
        group: &Group,
        unserved: &BTreeSet<u64>,
        facts: &Facts<'_>,
    ) -> Result<Option<Steered>, SteerError> {
        let Some(pinned) = &mut self.pinned else {
            return Err(SteerError::Vanished { group: group.key });
        };
        let of = SteerError::of(&group.key);
        let lock = Pins::at(&facts.options.settings.bpffs)?.lock()?;
        let seats = pinned.maps.sockets.seats().map_err(&of)?;
        let shown = group.listeners.iter().map(|listener| listener.cookie).collect();
        if self.newer.than(&shown, seats.keys().copied()) {
            return Ok(None);
        }
        let intents = Intents::read(&pinned.maps).map_err(&of)?;
        let mut members = members(group, |cookie| part(&intents, cookie));
        // What closed since the look has lost its seat, and what that said of its part.
        members.retain(|it| seats.contains_key(&it.cookie) || !self.seated.contains(&it.cookie));
        let verdict = self.generations.observe(facts.now, &members);
        let mut left_out = unserved.clone();
        left_out.extend(evicted(&seats, &facts.advice.out));
        // With nobody left, everybody is better than the kernel's hash.
        if group.listeners.iter().all(|listener| left_out.contains(&listener.cookie)) {
            left_out.clear();
        }
        let roles = verdict.superseded.iter().map(|cookie| (*cookie, Role::Standby));
        let restored = verdict.restored.iter().map(|cookie| (*cookie, Role::Active));
        let change = Change {
            policy: Some(facts.options.policy),
            roles: roles.chain(restored).collect(),
            hot: facts.advice.hot.clone(),
            leave_out: left_out.iter().copied().collect(),
            ..Change::default()
        };
        let reconciled = reconcile(&lock, pinned, group, facts.topology, &change)?;
        let seated: BTreeSet<u64> = reconciled.slots.keys().copied().collect();
        let left = self.seated.difference(&seated).copied().collect();
        self.seated = seated;
        Ok(Some(Steered { reconciled, attached: false, left, left_out, verdict }))
    }

    /// See [`Recall::fill_in`].
    pub(super) fn recall(&mut self, group: &mut Group, policy: Policy) -> BTreeSet<u64> {
        self.recall.fill_in(group, policy)
    }
}

/// Sockets in the map that a look did not show. To look takes long, and a server may seat its own
/// listeners and take over meanwhile: judged by the look, the older ones would seem to be left alone,
/// and be given back what was just taken from them.
#[derive(Debug, Default)]
struct Newer(BTreeSet<u64>);

impl Newer {
    /// Whether somebody was `seated` after the look that has `shown` these listeners. Who is not shown
    /// twice in a row does not listen (any more), and keeps nobody waiting.
    fn than(&mut self, shown: &BTreeSet<u64>, seated: impl Iterator<Item = u64>) -> bool {
        let unseen = seated.filter(|cookie| !shown.contains(cookie)).collect();
        let before = std::mem::replace(&mut self.0, unseen);
        !self.0.is_subset(&before)
    }
}

/// Cookies of what sits in these slots.
fn evicted<'a>(seats: &'a HashMap<u64, u32>, slots: &'a [u32]) -> impl Iterator<Item = u64> + 'a {
    seats.iter().filter(|(_, slot)| slots.contains(slot)).map(|(cookie, _)| *cookie)
}

/// What the pins say that a listener does.
fn part(intents: &Intents, cookie: u64) -> Part {
    let intent = intents.get(cookie);
    match intent.role {
        Role::Active if intent.weight > 0 => Part::Serves,
        Role::Standby | Role::Superseded => Part::StandsBy,
        Role::Active | Role::Drained => Part::Out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_seated_after_the_look_is_looked_for_once() {
        let mut newer = Newer::default();
        let shown = BTreeSet::from([1, 2]);
        assert!(!newer.than(&shown, [1, 2].into_iter()));
        assert!(!newer.than(&shown, [2].into_iter()), "one that died is in no map");
        assert!(newer.than(&shown, [1, 2, 3].into_iter()));
        assert!(!newer.than(&shown, [1, 3].into_iter()), "it does not listen");
        assert!(newer.than(&shown, [1, 3, 4].into_iter()));
        assert!(!newer.than(&BTreeSet::from([1, 3, 4]), [1, 3, 4].into_iter()));
        assert!(newer.than(&shown, [3].into_iter()), "it listened meanwhile");
    }
}
