//! A program with maps of its own, in the place of whatever there is.
//!
//! A socket sits in one map only, so while the sockets of a steered group move, neither the old
//! program nor the new one has all of them. The new one is attached half-way: until then the old
//! one has the second half of those that take part, from then on the new one the first half, each
//! with a table for the time between that names nobody else. A row that found none of its choices
//! would leave it to the kernel's hash, which may well pick who shall get nothing. Where one alone
//! takes part, that is so for the three system calls in which its socket changes maps and the new
//! program comes.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use reuseport_common::abi::{self, ABI_VERSION, Config};

use crate::bpf::maps::Maps;
use crate::bpf::object::{Object, fingerprint};
use crate::bpf::owner::Attached;
use crate::bpf::pins::{self, Pinned};
use crate::bpf::sockarray::SetError;
use crate::discover::acquire::with_listener;
use crate::model::Listener;
use crate::plan::Plan;

use super::super::fill::{Slots, assign};
use super::super::ownership::Ours;
use super::super::reconcile::view;
use super::super::store::Store;
use super::super::{Notice, SteerError};
use super::job::Job;
use super::{AttachReport, of_maps};

/// A job that takes a new program.
pub(super) struct Renewal<'a> {
    pub(super) job: Job<'a>,
    pub(super) attached: Attached,
    pub(super) ours: Ours,
}

/// How far a renewal came: what there is to undo.
#[derive(Default)]
struct Progress {
    /// Where the sockets sat in the old map, by cookie.
    before: HashMap<u64, u32>,
    /// Where they shall sit in the new one.
    slots: Slots,
    /// The old map's plan, where another was put in its place for the time between.
    replaced: Option<Config>,
    /// Whether the new program is attached.
    switched: bool,
}

impl Renewal<'_> {
    pub(super) fn run(
        mut self,
        store: &mut Store<'_>,
        mut object: Object,
    ) -> Result<AttachReport, SteerError> {
        let key = self.job.group.key;
        let migration = object.load_steering().map_err(SteerError::of(&key))?;
        let notice = migration.notice();
        self.ours.notices.extend(notice.map(|(what, remedy)| Notice::new(what, remedy)));
        let migrates = migration.migrates();
        let mut staged = store.stage(&key, &mut object, migrates)?;
        let listeners = self.job.group.listeners.clone();
        let mut progress = Progress::default();
        match self.carry_out(store, &mut staged, migrates, &mut progress) {
            Ok((plan, config)) => {
                let notices = std::mem::take(&mut self.ours.notices);
                self.job.finish(&mut staged, &progress.slots, plan, config, false, notices)
            }
            Err(error) => {
                self.undo(&staged, &listeners, &progress);
                let _left_for_the_next_attach = store.discard(&key);
                Err(error)
            }
        }
    }

    fn carry_out(
        &mut self,
        store: &mut Store<'_>,
        staged: &mut Pinned,
        migrates: bool,
        progress: &mut Progress,
    ) -> Result<(Plan, Config), SteerError> {
        let key = self.job.group.key;
        let of = SteerError::of(&key);
        self.configure(staged, migrates)?;
        progress.before = match &self.ours.pinned {
            Some(old) => old.maps.sockets.seats().map_err(&of)?,
            None => HashMap::new(),
        };
        progress.slots = assign(&self.job.group.listeners, &[]);
        let mut plan = self.job.plan(&progress.slots)?;
        staged.maps.publish(view(&plan), &plan.table).map_err(&of)?;

        // Newcomers first: what can be refused is refused while the old program has all it had.
        let (mut movers, newcomers): (Vec<_>, Vec<_>) = self
            .job
            .group
            .listeners
            .clone()
            .into_iter()
            .partition(|listener| progress.before.contains_key(&listener.cookie));
        let cookies: Vec<u64> = newcomers.iter().map(|listener| listener.cookie).collect();
        let new_slots: Slots = progress
            .slots
            .iter()
            .map(|(&cookie, &slot)| (cookie, slot))
            .filter(|(cookie, _)| cookies.contains(cookie))
            .collect();
        if self.ours.pinned.is_none() && self.ours.in_force {
            store.release(&key)?;
        }
        let mut gone = self.job.fill(staged, &new_slots, &self.attached)?;
        movers.sort_by_key(|listener| !self.job.draft.takes_part(listener));
        let half = movers.iter().filter(|it| self.job.draft.takes_part(it)).count().div_ceil(2);
        let (first, second) = movers.split_at(half);
        let in_new = [&newcomers, first].concat();
        if let Ok(plan) = self.job.draft.plan(&in_new, &progress.slots) {
            staged.maps.amend(view(&plan), &plan.table).map_err(&of)?;
        }
        self.keep_to(second, progress);
        let takes_part = |it: &Listener| self.job.draft.takes_part(it);
        let last = first.last().filter(|_| !second.iter().any(takes_part));
        gone.extend(self.shift(staged, first, progress, last)?);
        self.job.attach(staged)?;
        progress.switched = true;
        gone.extend(self.shift(staged, second, progress, None)?);
        if !gone.is_empty() {
            self.job.forget(&gone, &mut progress.slots)?;
            plan = self.job.plan(&progress.slots)?;
        }
        let intents = self.job.draft.intents();
        intents.write(&mut staged.maps, &progress.slots, &plan).map_err(&of)?;
        let config = staged.maps.amend(view(&plan), &plan.table).map_err(&of)?;
        store.commit(staged, &key)?;
        Ok((plan, config))
    }

    /// Fills `CONFIG`, all but the plan.
    fn configure(&self, staged: &mut Pinned, migrates: bool) -> Result<(), SteerError> {
        let key = self.job.group.key;
        let before = self.ours.pinned.as_ref().and_then(|pinned| pinned.maps.config().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let config = Config {
            abi: ABI_VERSION,
            generation: before.map_or(0, |config| config.generation),
            slots: staged.maps.sockets.slots(),
            half: staged.maps.half(),
            flags: if migrates { abi::FLAG_MIGRATES } else { 0 }
                | if self.job.options.log { abi::FLAG_LOGS } else { 0 },
            object: fingerprint(),
            attached_at: now.as_secs(),
            group: key.to_raw(),
            ..Config::default()
        };
        staged.maps.set_config(&config).map_err(SteerError::of(&key))
    }

    /// Lets the old program choose among `rest` only. Best effort: it may have no room for the table,
    /// and then its rows' second choices must do.
    fn keep_to(&mut self, rest: &[Listener], progress: &mut Progress) {
        let Some(old) = self.ours.pinned.as_mut().filter(|_| self.ours.in_force) else { return };
        let Ok(plan) = self.job.draft.plan(rest, &progress.before) else { return };
        let Ok(config) = old.maps.config() else { return };
        progress.replaced = Some(config);
        let _no_room = old.maps.amend(view(&plan), &plan.table);
    }

    /// Moves sockets from the old map to the new one, each in one go: it is out of both for the time
    /// of two system calls. With `last` the new program is attached in the same breath. Returns the
    /// cookies of listeners that went away.
    fn shift(
        &self,
        staged: &Pinned,
        movers: &[Listener],
        progress: &mut Progress,
        last: Option<&Listener>,
    ) -> Result<Vec<u64>, SteerError> {
        let key = self.job.group.key;
        let Some(old) = &self.ours.pinned else { return Ok(Vec::new()) };
        let mut gone = Vec::new();
        for listener in movers {
            let from = progress.before[&listener.cookie];
            let to = progress.slots[&listener.cookie];
            let moved = with_listener(listener, &key, |fd| {
                old.maps.sockets.remove(from)?;
                let set = staged.maps.sockets.set(to, fd);
                if set.is_err() {
                    // Back where it was; if that fails too, the row's second choice serves.
                    let _second_choice = old.maps.sockets.set(from, fd);
                } else if last == Some(listener) {
                    progress.switched = true;
                    staged.attach(fd)?;
                }
                Ok(set)
            });
            match moved {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(SetError::NotListening))) => gone.push(listener.cookie),
                Ok(Ok(Err(source))) => {
                    let pid = listener.holders.first().map_or(0, |holder| holder.pid);
                    return Err(SteerError::Fill { group: key, pid, source });
                }
                Ok(Err(error)) => return Err(of_maps(&key)(error)),
                Err(error) if error.is_gone() => gone.push(listener.cookie),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(gone)
    }

    /// After a failure: every socket back into the slot it had, and the old program in charge.
    fn undo(&mut self, staged: &Pinned, listeners: &[Listener], progress: &Progress) {
        let key = self.job.group.key;
        let old: Option<&Maps> = self.ours.pinned.as_ref().map(|old| &old.maps);
        let mut restored = false;
        for listener in listeners {
            let from = progress.slots.get(&listener.cookie);
            let to = progress.before.get(&listener.cookie);
            // Best effort: a socket that is lost to both falls to its row's second choice.
            let _gone = with_listener(listener, &key, |fd| {
                if let Some(&from) = from {
                    let _empty = staged.maps.sockets.remove(from);
                }
                if let (Some(old), Some(&to)) = (old, to) {
                    let _occupied = old.sockets.set(to, fd);
                }
                if progress.switched && !restored {
                    restored = match &self.ours.pinned {
                        Some(old) if self.ours.in_force => old.attach(fd).is_ok(),
                        _ => pins::detach(fd).is_ok(),
                    };
                }
            });
        }
        // The plan that was replaced is still in the other half of the table.
        if let (Some(old), Some(config)) = (&mut self.ours.pinned, &progress.replaced) {
            let _as_planned_for_the_rest = old.maps.set_config(config);
        }
    }
}
