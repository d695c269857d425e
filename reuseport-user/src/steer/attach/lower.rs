//! The rungs below eBPF, for the groups of a target.
//!
//! Nothing is loaded or pinned: the listeners are set, each held for microseconds, and remember it
//! themselves ([`crate::rungs`]). What could refuse is asked before anything is changed.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use reuseport_common::abi::Policy;

use super::super::draft::{Change, Draft};
use super::super::fill::{Slots, assign};
use super::super::ownership::{self, Census, Ours};
use super::super::pin_workers::pin_workers;
use super::super::rung::{self, Traces, through_any};
use super::super::{Notice, SteerError, detach};
use super::job::change;
use super::{AttachOptions, AttachReport, Targets, find};
use crate::bpf::owner::Attached;
use crate::bpf::pins::{LockedPins, Pins, PinsError};
use crate::discover::acquire::with_listener;
use crate::discover::listen_order;
use crate::model::{CpuSet, Group, Listener};
use crate::plan::{NORMAL_WEIGHT, Plan};
use crate::rungs::classic::{self, Program, Rows, Share};
use crate::rungs::{self, Applied, Choice, OrderError, Place, Rung, RungError, Trace, Why};
use crate::topology::Topology;

/// What there is to put on a rung.
pub(super) struct Scene<'a> {
    options: &'a AttachOptions,
    targets: Targets,
    pins: Option<Pins>,
    /// Held where there are pins, so that two of us do not contradict each other.
    lock: Option<LockedPins>,
    groups: Vec<Surveyed>,
}

/// A group, and all that is known of it.
struct Surveyed {
    group: Group,
    slots: Slots,
    plan: Plan,
    attached: Attached,
    ours: Ours,
    traces: Traces,
}

impl<'a> Scene<'a> {
    /// Looks, and changes nothing. Every listener was taken once by the end: that is permitted.
    pub(super) fn survey(options: &'a AttachOptions) -> Result<Self, SteerError> {
        let lock = lock(options)?;
        let targets = find(options)?;
        Self::of(options, targets, &HashSet::new(), lock)
    }

    /// As [`Scene::survey`], for groups that the caller found. Listeners that are left out get nothing.
    pub(super) fn found(
        options: &'a AttachOptions,
        topology: &Topology,
        groups: Vec<Group>,
        leave_out: &HashSet<u64>,
    ) -> Result<Self, SteerError> {
        let lock = lock(options)?;
        let (topology, alone) = (topology.clone(), Vec::new());
        Self::of(options, Targets { topology, groups, alone }, leave_out, lock)
    }

    fn of(
        options: &'a AttachOptions,
        targets: Targets,
        leave_out: &HashSet<u64>,
        lock: Option<Result<LockedPins, PinsError>>,
    ) -> Result<Self, SteerError> {
        let census = match Census::ask(&targets.groups, &options.target, &options.settings) {
            Err(SteerError::Bpf { source, .. }) => Census::unknown(&source),
            census => census?,
        };
        let pins = Pins::at(&options.settings.bpffs).ok();
        let survey = |group: &Group| {
            let attached = census.attached(group);
            let ours = match &pins {
                Some(pins) => ownership::examine(pins, group, &attached)?,
                None => Ours::nothing(),
            };
            let change = Change { leave_out: leave_out.clone(), ..change(options, group) };
            let (topology, listeners) = (&targets.topology, &group.listeners);
            let draft = match &ours.pinned {
                Some(pinned) => Draft::of(topology, &change, &pinned.maps)
                    .map_err(SteerError::of(&group.key))?,
                None => Draft::new(topology, &change),
            };
            let slots = assign(listeners, &[]);
            let plan = draft.plan(listeners, &slots)?;
            let traces = Traces::read(group)?;
            Ok(Surveyed { group: group.clone(), slots, plan, attached, ours, traces })
        };
        let groups = targets.groups.iter().map(survey).collect::<Result<Vec<_>, SteerError>>()?;
        let lock = match lock {
            // Without it the pins of a program that is in force could not be removed with it.
            Some(Err(error)) if groups.iter().any(|it| it.ours.in_force) => {
                return Err(error.into());
            }
            lock => lock.and_then(Result::ok),
        };
        Ok(Self { options, targets, pins, lock, groups })
    }

    /// Without the lock.
    pub(super) fn released(self) -> Self {
        Self { lock: None, ..self }
    }

    /// Whether our eBPF program is in force.
    pub(super) fn is_steered(&self) -> bool {
        self.groups.iter().any(|it| it.ours.in_force)
    }

    /// Whether all groups can be put on `rung`. Who insists on it answers for what cannot be known.
    pub(super) fn fits(&self, rung: Rung, insists: bool) -> Result<(), Why> {
        if rung != Rung::Hash && self.options.policy != Policy::Cpu {
            return Err(Why::Unfit("it knows no policy but cpu".to_owned()));
        }
        let places = self.groups.iter().map(Surveyed::places);
        rung::fits(rung, self.options.target.protocol, places, insists)
    }

    /// Puts all groups on the rung. If one fails, those before it get back what they had.
    pub(super) fn put_on(
        &self,
        choice: &Choice,
        notices: &[Notice],
    ) -> Result<Vec<AttachReport>, SteerError> {
        let rung = choice.rung;
        for it in &self.groups {
            self.permit(it, rung)?;
        }
        let mut reports: Vec<AttachReport> = Vec::new();
        for (done, it) in self.groups.iter().enumerate() {
            let applied = if self.options.dry_run {
                None
            } else {
                let applied = self.apply(it, rung).inspect_err(|_| {
                    for before in &self.groups[..=done] {
                        before.undo();
                    }
                })?;
                Some(applied)
            };
            reports.push(self.report(it, choice, applied, notices));
        }
        Ok(self.targets.with_notices(reports))
    }

    /// Refuses to touch what is somebody else's, unless told to.
    fn permit(&self, it: &Surveyed, rung: Rung) -> Result<(), SteerError> {
        if rung == Rung::Hash || self.options.takeover {
            return Ok(());
        }
        match (&it.attached, &self.pins) {
            _ if it.ours.in_force => Ok(()),
            (Attached::Classic, _) if it.traces.has_places() => Ok(()),
            (Attached::Program { .. } | Attached::Classic, _) => {
                Err(SteerError::foreign(&it.group.key, &it.attached))
            }
            // Only a classic program would replace what cannot be seen.
            (Attached::Unknown { .. }, Some(pins)) if rung == Rung::ClassicBpf => {
                let known = || Ok(pins.program_ids()?);
                ownership::permit(&it.group, &it.attached, &it.ours, false, known)
            }
            (Attached::Nothing | Attached::Unknown { .. }, _) => Ok(()),
        }
    }

    fn apply(&self, it: &Surveyed, rung: Rung) -> Result<Applied, SteerError> {
        let foreign = matches!(it.attached, Attached::Program { .. } | Attached::Classic)
            && !it.traces.has_places();
        let applied = match rung {
            Rung::Ebpf => return Err(RungError::NotHere.into()),
            Rung::IncomingCpu => it.prefer()?,
            Rung::ClassicBpf => it.attach_classic(self.options)?,
            Rung::Hash => {
                rung::take_off(&it.group, &it.traces)?;
                return Ok(Applied::default());
            }
        };
        if rung == Rung::IncomingCpu && (it.ours.in_force || foreign) {
            detach::take_off(&it.group)?;
        }
        if let (true, Some(pins)) = (it.ours.in_force, &self.lock) {
            pins.remove(&pins.place(&it.group.key))?;
        }
        Ok(applied)
    }

    fn report(
        &self,
        it: &Surveyed,
        choice: &Choice,
        applied: Option<Applied>,
        notices: &[Notice],
    ) -> AttachReport {
        let mut notices = notices.to_vec();
        notices.extend(it.ours.notices.iter().cloned());
        notices.extend(self.limits(it, choice.rung));
        let left = applied.map_or(0, |applied| applied.left);
        if left > 0 {
            notices.push(Notice::new(
                format!(
                    "the server chose the CPU of {left} listeners itself; they were left alone"
                ),
                "if they are not to its liking, change it in the server",
            ));
        }
        let mut pinned = Vec::new();
        if self.options.pin && applied.is_some() {
            let (done, more) = pin_workers(&it.group, &it.slots, &it.plan);
            pinned = done;
            notices.extend(more);
        }
        AttachReport {
            slots: it.group.listeners.iter().map(|listener| it.slots[&listener.cookie]).collect(),
            group: it.group.clone(),
            plan: it.plan.clone(),
            rung: choice.clone(),
            attached: None,
            applied,
            pinned,
            notices,
        }
    }

    /// What this rung does not do for this group.
    fn limits(&self, it: &Surveyed, rung: Rung) -> Vec<Notice> {
        let mut limits = Vec::new();
        if rung == Rung::IncomingCpu {
            if let Attached::Unknown { why } = &it.attached {
                limits.push(Notice::new(
                    format!("if a program is attached, it goes before; that cannot be seen: {why}"),
                    "see on your workers whether they get what they should",
                ));
            }
            let homes: CpuSet = it.plan.seats.iter().filter_map(|seat| seat.home).collect();
            let online = self.targets.topology.online();
            let others: CpuSet = online.iter().filter(|&cpu| !homes.contains(cpu)).collect();
            if !others.is_empty() {
                limits.push(Notice::new(
                    format!(
                        "no worker is counted on CPU {others}: the hash spreads what they receive"
                    ),
                    "SO_INCOMING_CPU takes one CPU for each listener: start a worker for each",
                ));
            }
            let is_share = |weight: u32| weight != 0 && weight != NORMAL_WEIGHT;
            if it.plan.seats.iter().any(|seat| is_share(seat.weight)) {
                limits.push(Notice::new(
                    "SO_INCOMING_CPU knows no weights: all but 0 count alike",
                    "weights take eBPF or classic BPF",
                ));
            }
        }
        if rung == Rung::ClassicBpf {
            limits.push(Notice::new(
                "this holds until a listener joins or leaves: the kernel then numbers them anew, and \
                 connections go to wrong workers, though to none that is gone",
                "attach again after each such change; after several at once, restart the whole group",
            ));
            limits.push(Notice::new(
                "kernels before 6.1.176 and 6.12.94 free a classic program that is replaced or \
                 detached while it may still run (CVE-2026-52910)",
                "change it when traffic is low, or update the kernel",
            ));
            if rungs::keep(&it.places()).is_err() {
                limits.push(Notice::new(
                    "the order of the listeners is taken from the kernel's list: it is right if none \
                     has left since the first began to listen",
                    "be sure of it: attach right after a start of the whole group",
                ));
            }
        }
        limits
    }
}

impl Surveyed {
    /// What the listeners remember of their places.
    fn places(&self) -> Vec<Option<Place>> {
        self.group.listeners.iter().map(|listener| self.traces.place(listener)).collect()
    }

    /// Sets `SO_INCOMING_CPU` on each listener.
    fn prefer(&self) -> Result<Applied, SteerError> {
        if self.traces.has_places() {
            rung::take_off(&self.group, &self.traces)?;
        }
        let mut applied = Applied::default();
        for listener in &self.group.listeners {
            let slot = self.slots[&listener.cookie];
            let cpu = self.plan.seats.iter().find(|seat| seat.slot == slot).and_then(|it| it.home);
            match with_listener(listener, &self.group.key, |fd| rungs::prefer(fd, cpu)) {
                Ok(Ok(true)) => applied.set += 1,
                Ok(Ok(false)) => applied.left += 1,
                Ok(Err(error)) => return Err(RungError::from(error).into()),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(applied)
    }

    /// Lets each listener remember its place, and attaches a program that goes by them.
    fn attach_classic(&self, options: &AttachOptions) -> Result<Applied, SteerError> {
        if self.traces.count(false) > 0 {
            return Err(RungError::ServersOwn.into());
        }
        let order = self.order(options)?;
        let place = |slot: u32| order.iter().position(|it| self.slots[&it.cookie] == slot);
        let mut rows = Rows::new();
        for row in self.plan.rows_explained.iter().filter(|row| row.online) {
            let share = |share: &crate::plan::Share| {
                Some(Share { place: place(share.slot)? as u16, part: share.entries })
            };
            rows.insert(row.cpu, row.shares.iter().filter_map(share).collect());
        }
        let program = Program::new(&rows)?;
        let of = order.len() as u16;
        for (index, listener) in (0..).zip(&order) {
            let note = |fd: BorrowedFd<'_>| classic::note(fd, Place { index, of });
            match with_listener(listener, &self.group.key, note) {
                Ok(noted) => noted.map_err(RungError::from)?,
                // Who went away moved others: the order is another one already.
                Err(error) if error.is_gone() => {
                    return Err(SteerError::Vanished { group: self.group.key });
                }
                Err(error) => return Err(error.into()),
            }
        }
        through_any(&self.group, |fd| program.attach(fd))?.map_err(RungError::from)?;
        Ok(Applied { set: order.len(), left: 0 })
    }

    /// The listeners in the order in which the kernel numbers them.
    fn order(&self, options: &AttachOptions) -> Result<Vec<&Listener>, SteerError> {
        let listeners = &self.group.listeners;
        match rungs::keep(&self.places()) {
            Ok(order) => Ok(order.into_iter().map(|index| &listeners[index]).collect()),
            Err(OrderError::NeverKnown) => {
                let order = listen_order(&options.target, &self.group.key)?;
                let find = |cookie| listeners.iter().find(|listener| listener.cookie == cookie);
                let order: Option<Vec<_>> = order.into_iter().map(find).collect();
                let whole = order.filter(|order| order.len() == listeners.len());
                whole.ok_or(SteerError::Vanished { group: self.group.key })
            }
            Err(error @ OrderError::Lost { .. }) => {
                Err(SteerError::Rung { rung: Rung::ClassicBpf, why: Why::Unfit(error.to_string()) })
            }
        }
    }

    /// Gives the listeners back what they remembered. Best effort: the failure that is told is the
    /// one that made it necessary.
    fn undo(&self) {
        let now = Traces::read(&self.group).ok().filter(Traces::has_places);
        if let Some(now) = now.filter(|_| !self.traces.has_places()) {
            let _detached = rung::take_off(&self.group, &now);
        }
        for listener in &self.group.listeners {
            let _gone =
                with_listener(listener, &self.group.key, |fd| match self.traces.of(listener) {
                    Trace::Place(place) => classic::note(fd, place),
                    Trace::IncomingCpu { cpu, ours: true } => {
                        rungs::prefer(fd, Some(cpu)).map(drop)
                    }
                    Trace::IncomingCpu { ours: false, .. } => Ok(()),
                    Trace::Nothing => rungs::forget(fd).map(drop),
                });
        }
    }
}

/// The lock on the pins, where there are any.
fn lock(options: &AttachOptions) -> Result<Option<Result<LockedPins, PinsError>>, SteerError> {
    let pins = Pins::at(&options.settings.bpffs).ok();
    match pins.filter(|pins| pins.exist() && !options.dry_run).map(Pins::lock) {
        Some(Err(error @ PinsError::Locked { .. })) => Err(error.into()),
        lock => Ok(lock),
    }
}
