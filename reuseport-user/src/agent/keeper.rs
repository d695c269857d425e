//! Keeps the groups of one target right: a tick looks at what is, compares it with what is in force,
//! and changes what differs.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use reuseport_common::watch::Change;

use super::below::{Below, Past};
use super::climb::Climb;
use super::generations::Generations;
use super::journal::{Journal, Topic};
use super::kept::{Facts, Kept, Outcome};
use super::note::{self, Told};
use super::recall::Recall;
use super::shared::Shared;
use super::sight::Sight;
use super::state::Phase;
use super::{AgentOptions, Goal};
use crate::bpf::maps::Sizes;
use crate::bpf::object::{LoadOptions, Object};
use crate::bpf::pins::{Pins, PinsError};
use crate::discover::Target;
use crate::discover::overrides::apply_names;
use crate::model::{Group, GroupKey, Netns, Pid};
use crate::rungs::Why;
use crate::steer::fit::explain_alone;
use crate::steer::{SteerError, attach::AttachOptions, attach::Ladder, ownership::Census};
use crate::sys::clock;
use crate::topology::Topology;

mod leave;

pub(super) use self::leave::give_back;

/// Most changes that are remembered until a tick answers them.
const MOST_TOLD: usize = 4096;

/// Ordinary, where workers come and go: the next tick sees who is left.
const VANISHED: &str = "its listeners went away meanwhile";
const RELEASED: &str = "detached by hand, and left alone until somebody attaches";

/// What one tick came to.
#[derive(Debug)]
pub(super) struct TickReport {
    /// Whether nothing was changed and nothing is left to be seen to soon.
    pub(super) settled: bool,
    /// The first thing that failed. All else was done nevertheless.
    pub(super) failure: Option<SteerError>,
}

/// One target.
pub(super) struct Keeper {
    goal: Goal,
    generation_timeout: Duration,
    sight: Sight,
    /// The iterator that tells whose program is attached, loaded once.
    object: Option<Object>,
    /// This machine, as it was last read.
    topology: Option<Topology>,
    kept: BTreeMap<GroupKey, (Kept, Netns)>,
    /// Whether another agent was found to keep a group of the target.
    shared: bool,
    /// When listeners came and went, by cookie, as the kernel told.
    told: Told,
    /// What stood in the way at the last tick.
    problem: Option<String>,
    /// In charge instead, where eBPF is not asked for or not to be had.
    below: Option<Below>,
    /// When to see whether it is to be had by now.
    climb: Climb,
    /// What whoever was in charge before knew of groups that are not kept yet.
    past: BTreeMap<GroupKey, Past>,
}

/// What all groups of a target have in common during one tick.
struct Scene {
    topology: Topology,
    census: Census,
    fresh: bool,
}

impl Keeper {
    pub(super) fn new(goal: Goal, options: &AgentOptions) -> Self {
        let sight = Sight::new(goal.attach.target.clone());
        let below = Below::asked_for(goal.attach.rung);
        Self {
            goal,
            generation_timeout: options.generation_timeout,
            sight,
            object: None,
            topology: None,
            kept: BTreeMap::new(),
            shared: false,
            told: HashMap::new(),
            problem: None,
            below,
            climb: Climb::new(options.interval),
            past: BTreeMap::new(),
        }
    }

    /// What it keeps, and how.
    pub(super) fn options(&self) -> &AttachOptions {
        &self.goal.attach
    }

    /// What it keeps.
    pub(super) fn target(&self) -> &Target {
        &self.goal.attach.target
    }

    /// Keeps the same target in another way from now on. What is in force stays until the next tick.
    pub(super) fn adopt(&mut self, goal: Goal, options: &AgentOptions, shared: &Shared) {
        let before = std::mem::replace(&mut self.goal, goal);
        self.generation_timeout = options.generation_timeout;
        let rung = self.goal.attach.rung;
        if rung != before.attach.rung {
            // Whoever keeps it on another rung takes the locks itself.
            for (key, (kept, netns)) in std::mem::take(&mut self.kept) {
                shared.forget(&key);
                shared.state().group(key, &netns).unsteered(Phase::Unsteered, None);
                self.release(kept);
            }
            if let Some(mut below) = std::mem::replace(&mut self.below, Below::asked_for(rung)) {
                below.hand_over(&before.attach);
            }
        }
        self.climb = Climb::at_once(options.interval);
        for (kept, _) in self.kept.values_mut() {
            kept.adopt(options.generation_timeout);
        }
        self.sight.doubt();
    }

    /// Takes in that a listener came or went; says whether it may be one of ours.
    pub(super) fn hear(&mut self, change: &Change) -> bool {
        let ours = self.sight.hear(change);
        if ours && self.told.len() < MOST_TOLD {
            self.told.insert(change.cookie, Duration::from_nanos(change.at));
        }
        ours
    }

    /// Takes in that a process ended; says whether it was one of ours.
    pub(super) fn mourn(&mut self, pid: Pid) -> bool {
        let ours = self.workers().any(|worker| worker == pid);
        if ours {
            self.sight.doubt();
        }
        ours
    }

    /// Whether a glance at the sockets shows others than were discovered.
    pub(super) fn glance(&mut self) -> bool {
        self.sight.glance()
    }

    /// Processes whose end matters.
    pub(super) fn workers(&self) -> impl Iterator<Item = Pid> {
        let steered = self.kept.values().flat_map(|(kept, _)| kept.workers());
        steered.chain(self.below.iter().flat_map(Below::workers))
    }

    /// Looks, compares, changes. What fails for one group leaves what is in force there as it is.
    pub(super) fn tick(&mut self, shared: &Shared, journal: &mut Journal) -> TickReport {
        let below = self.climbs(journal);
        if self.below.is_none() {
            let report = self.steer(shared, journal);
            let Some(why) = report.failure.as_ref().and_then(|error| self.gives_up(error)) else {
                return report;
            };
            let mut below = below.unwrap_or_else(|| Below::new(why.clone()));
            below.explain(why);
            self.below = Some(below);
            self.climb.fell();
            // It takes the locks itself, where there can be any.
            for (kept, _) in std::mem::take(&mut self.kept).into_values() {
                self.release(kept);
            }
        }
        let (options, timeout) = (&self.goal.attach, self.generation_timeout);
        let (sight, told) = (&mut self.sight, &self.told);
        let ticked = self
            .below
            .as_mut()
            .map_or(Ok(true), |below| below.tick(options, timeout, sight, told, shared, journal));
        match ticked {
            Ok(settled) => {
                self.told.clear();
                self.problem = None;
                TickReport { settled, failure: None }
            }
            Err(error) => self.failed(error, journal),
        }
    }

    /// Gives whoever is in charge below eBPF leave, where eBPF is to be had by now.
    fn climbs(&mut self, journal: &mut Journal) -> Option<Below> {
        let auto = self.goal.attach.rung == Ladder::Auto;
        let options = &self.goal.attach;
        if !auto || self.below.is_none() || !self.climb.is_to_be_had(&options.settings) {
            return None;
        }
        let mut below = self.below.take()?;
        self.past = below.hand_over(options);
        let port = self.target().port;
        journal.say(Topic::Agent, None, format!("port {port}: eBPF is to be had by now"));
        Some(below)
    }

    /// Why eBPF is not to be had, where that is what an error says and a lower rung may do.
    fn gives_up(&self, error: &SteerError) -> Option<Why> {
        let steered = self.kept.values().any(|(kept, _)| kept.pinned().is_some());
        error.forbids_ebpf().filter(|_| self.goal.attach.rung == Ladder::Auto && !steered)
    }

    /// Says what stands in the way, once.
    fn failed(&mut self, error: SteerError, journal: &mut Journal) -> TickReport {
        if let SteerError::Vanished { group } = error {
            journal.say(Topic::Mapping, Some(group), VANISHED.to_owned());
            return TickReport { settled: false, failure: None };
        }
        let line = format!("port {}: {error}", self.target().port);
        if self.problem.as_ref() != Some(&line) {
            journal.say(Topic::Problem, None, line.clone());
        }
        self.problem = Some(line);
        TickReport { settled: false, failure: Some(error) }
    }

    /// The tick on eBPF.
    fn steer(&mut self, shared: &Shared, journal: &mut Journal) -> TickReport {
        let mut report = TickReport { settled: true, failure: None };
        match self.look(shared, journal) {
            Ok(scene) => {
                for place in 0..self.sight.groups.len() {
                    let mut group = self.sight.groups[place].clone();
                    let outcome = self.keep(&mut group, &scene, shared);
                    if matches!(outcome, Ok(Outcome::Outdated)) {
                        self.sight.doubt();
                        report.settled = false;
                    }
                    self.note(&group, outcome, shared, journal, &mut report);
                }
                self.told.clear();
                self.problem = None;
                report.settled &= !scene.fresh;
            }
            Err(error) => report = self.failed(error, journal),
        }
        report
    }

    /// Looks at what is.
    fn look(&mut self, shared: &Shared, journal: &mut Journal) -> Result<Scene, SteerError> {
        let mut fresh = self.sight.refresh()?;
        self.forget(shared, journal);
        let known = self.topology.take().filter(Topology::is_current);
        fresh |= known.is_none();
        let topology = known.map_or_else(Topology::read, Ok)?;
        self.topology = Some(topology.clone());
        let census = self.census()?;
        Ok(Scene { topology, census, fresh })
    }

    /// Whose program each group runs.
    fn census(&mut self) -> Result<Census, SteerError> {
        let groups = &self.sight.groups;
        let Some(first) = groups.first() else { return Ok(Census::of_nobody()) };
        let load = || {
            let options = LoadOptions {
                sizes: Sizes::for_group(0, 0),
                port: first.key.address.port(),
                log: false,
                verifier_log: self.goal.attach.settings.verifier_log,
            };
            Object::load(&options).map_err(SteerError::of(&first.key))
        };
        let object = self.object.take().map_or_else(load, Ok)?;
        Census::take(self.object.insert(object), groups, &self.goal.attach.target)
    }

    /// One group's part of the tick.
    fn keep(
        &mut self,
        group: &mut Group,
        scene: &Scene,
        shared: &Shared,
    ) -> Result<Outcome, SteerError> {
        let pins = self.pins()?;
        if !self.kept.contains_key(&group.key) {
            // What is left of a group that was steered is kept, too.
            if group.listeners.len() < 2 && pins.open(&group.key)?.is_none() {
                return Err(explain_alone(std::slice::from_ref(group)));
            }
            let lock = pins.lock()?.lock_agent(&group.key);
            self.shared |= matches!(lock, Err(PinsError::Owned { .. }));
            let lock = lock?;
            let fresh = || (Recall::default(), Generations::new(self.generation_timeout));
            let (recall, generations) = self.past.remove(&group.key).unwrap_or_else(fresh);
            let kept = Kept::new(lock, recall, generations);
            self.kept.insert(group.key, (kept, group.netns.clone()));
        }
        let Some((kept, _)) = self.kept.get_mut(&group.key) else {
            return Err(SteerError::Vanished { group: group.key });
        };
        apply_names(&self.goal.workers, group);
        let unserved = kept.recall(group, self.goal.attach.policy);
        let facts = Facts {
            options: &self.goal.attach,
            topology: &scene.topology,
            advice: shared.advice(&group.key),
            now: clock::monotonic(),
            fresh: scene.fresh,
        };
        kept.tick(group, &unserved, &scene.census.attached(group), &facts)
    }

    /// Takes down what became of a group.
    fn note(
        &self,
        group: &Group,
        outcome: Result<Outcome, SteerError>,
        shared: &Shared,
        journal: &mut Journal,
        report: &mut TickReport,
    ) {
        let mut state = shared.state();
        let entry = state.group(group.key, &group.netns);
        let mut lines = Vec::new();
        match outcome {
            Ok(Outcome::Steered(steered)) => {
                let pinned = self.kept.get(&group.key).and_then(|(kept, _)| kept.pinned());
                let begins = entry.phase != Phase::Steered;
                lines = note::steered(entry, group, &steered, pinned, &self.told);
                lines.extend(begins.then(|| note::beside(group, &self.sight.groups)).flatten());
                report.settled &= lines.is_empty() && steered.left_out.is_empty();
            }
            Ok(Outcome::Same | Outcome::Outdated) => {}
            Ok(Outcome::Released) => {
                if entry.phase != Phase::Released {
                    lines.push((Topic::Mapping, RELEASED.to_owned()));
                }
                entry.unsteered(Phase::Released, None);
            }
            Err(SteerError::Vanished { .. }) => {
                report.settled = false;
                lines.push((Topic::Mapping, VANISHED.to_owned()));
            }
            Err(error) => {
                report.settled = false;
                let what = error.to_string();
                if entry.problem.as_ref() != Some(&what) {
                    lines.push((Topic::Problem, what.clone()));
                }
                // Anything else leaves what is in force as it is.
                if error.is_foreign() {
                    entry.unsteered(Phase::Unsteered, None);
                }
                entry.problem = Some(what);
                report.failure.get_or_insert(error);
            }
        }
        drop(state);
        for (topic, line) in lines {
            journal.say(topic, Some(group.key), line);
        }
    }

    fn pins(&self) -> Result<Pins, PinsError> {
        Pins::at(&self.goal.attach.settings.bpffs)
    }
}

#[cfg(test)]
mod tests;
