//! One group's attach, from lock to commit.

use reuseport_common::abi::{self, Config, View};

use crate::bpf::BpfError;
use crate::bpf::maps::Sizes;
use crate::bpf::object::{LoadOptions, Object, fingerprint};
use crate::bpf::owner::{self, Attached};
use crate::bpf::pins::{LockedPins, Pinned, Pins};
use crate::discover::acquire::with_listener;
use crate::model::{CpuSet, Group, Listener, Served};
use crate::plan::{
    MAX_ENTRIES, NORMAL_WEIGHT, Plan, PlanWarning, Request, Seat, USUAL_LANES, plan,
};
use crate::topology::Topology;

use super::super::fill::{Slots, assign, fill};
use super::super::fit::weighs;
use super::super::ownership::{self, Ours};
use super::super::pin_workers::{PinnedWorker, pin_workers};
use super::super::{Notice, SteerError};
use super::renew::Renewal;
use super::{AttachOptions, AttachReport, InForce, of_maps};

/// One group's attach.
pub(super) struct Job<'a> {
    pub(super) options: &'a AttachOptions,
    topology: &'a Topology,
    pub(super) group: Group,
}

/// A job that nothing stands against.
pub(super) struct Prepared<'a> {
    pub(super) job: Job<'a>,
    pub(super) attached: Attached,
    ours: Ours,
}

impl<'a> Job<'a> {
    pub(super) fn new(options: &'a AttachOptions, topology: &'a Topology, group: Group) -> Self {
        Self { options, topology, group }
    }

    /// What would be done; what `attach` would refuse is refused.
    pub(super) fn dry_run(
        self,
        pins: &Pins,
        attached: &Attached,
    ) -> Result<AttachReport, SteerError> {
        let ours = ownership::examine(pins, &self.group, attached)?;
        ownership::permit(pins, &self.group, attached, &ours, self.options.takeover)?;
        let occupied = match ours.pinned.as_ref().filter(|_| ours.in_force) {
            Some(pinned) => pinned.maps.sockets.cookies().unwrap_or_default(),
            None => Vec::new(),
        };
        let slots = assign(&self.group.listeners, &occupied);
        let plan = self.plan(&slots)?;
        let mut notices = ours.notices;
        notices.extend(unseen(attached, ours.in_force));
        Ok(self.report(&slots, plan, None, notices))
    }

    /// The object, with maps of the size that the group needs.
    pub(super) fn load(&self) -> Result<Object, SteerError> {
        let plan = self.plan(&assign(&self.group.listeners, &[]))?;
        // Room for weights from the start: they are then a write to maps.
        let usual = self.topology.rows().saturating_mul(USUAL_LANES / 2).min(MAX_ENTRIES / 2);
        let entries = plan.table.len().max(usual as usize);
        let options = LoadOptions {
            sizes: Sizes::for_group(self.group.listeners.len(), entries),
            port: self.group.key.address.port(),
            log: self.options.log,
            verifier_log: self.options.settings.verifier_log,
        };
        Object::load(&options).map_err(SteerError::of(&self.group.key))
    }

    /// Puts right what a crash left, and refuses what is not ours to change.
    pub(super) fn prepare(
        self,
        pins: &LockedPins,
        attached: Attached,
    ) -> Result<Prepared<'a>, SteerError> {
        self.plan(&assign(&self.group.listeners, &[]))?;
        ownership::recover(pins, &self.group, &attached)?;
        let mut ours = ownership::examine(pins, &self.group, &attached)?;
        ours.notices.extend(unseen(&attached, ours.in_force));
        ownership::permit(pins, &self.group, &attached, &ours, self.options.takeover)?;
        Ok(Prepared { job: self, attached, ours })
    }
}

impl Prepared<'_> {
    /// Does it. `spare` is an object that was loaded for this very group, if there is one.
    pub(super) fn carry_out(
        self,
        pins: &LockedPins,
        spare: Option<Object>,
    ) -> Result<AttachReport, SteerError> {
        let Self { mut job, attached, ours } = self;
        if job.fits(&ours)? {
            return job.replan(ours, &attached);
        }
        let object = spare.map_or_else(|| job.load(), Ok)?;
        Renewal { job, attached, ours }.run(pins, object)
    }
}

impl Job<'_> {
    /// Whether the pinned program can go on: in force, same object, and room for the new plan.
    fn fits(&self, ours: &Ours) -> Result<bool, SteerError> {
        // A group that died and came back begins anew: maps, counters and time of attaching.
        let Some(pinned) = ours.pinned.as_ref().filter(|_| ours.in_force) else {
            return Ok(false);
        };
        let of = SteerError::of(&self.group.key);
        let config = pinned.maps.config().map_err(&of)?;
        let occupied = pinned.maps.sockets.cookies().map_err(&of)?;
        let slots = assign(&self.group.listeners, &occupied);
        let last = slots.values().copied().max().unwrap_or(0);
        let entries = self.plan(&slots)?.table.len() as u32;
        let logs = config.flags & abi::FLAG_LOGS != 0;
        Ok(config.object == fingerprint()
            && logs == self.options.log
            && last < config.slots
            && entries <= config.half)
    }

    /// Writes a new plan into the maps in force: the live table is switched by one store.
    fn replan(&mut self, ours: Ours, attached: &Attached) -> Result<AttachReport, SteerError> {
        let Ours { pinned, mut notices, .. } = ours;
        let group = self.group.key;
        let mut pinned = pinned.ok_or(SteerError::Vanished { group })?;
        let of = of_maps(&group);
        let occupied = pinned.maps.sockets.cookies().map_err(&of)?;
        let mut slots = assign(&self.group.listeners, &occupied);
        let gone = self.fill(&mut pinned, &slots, attached)?;
        self.forget(&gone, &mut slots)?;
        let plan = self.plan(&slots)?;
        let config = publish(&mut pinned, &plan).map_err(&of)?;
        if let Attached::Unknown { why } = attached {
            if self.options.takeover {
                self.attach(&pinned)?;
            } else {
                let id = pinned.program_id;
                notices.push(Notice::new(
                    format!("it could not be verified that program {id} is still attached: {why}"),
                    "if `status` with that power says otherwise, `attach --takeover` puts it back",
                ));
            }
        }
        self.finish(&mut pinned, &slots, plan, config, true, notices)
    }

    /// Pins workers if asked to, and with them where they are now, plans and publishes once more.
    pub(super) fn finish(
        &mut self,
        pinned: &mut Pinned,
        slots: &Slots,
        mut plan: Plan,
        mut config: Config,
        in_place: bool,
        mut notices: Vec<Notice>,
    ) -> Result<AttachReport, SteerError> {
        let mut workers = Vec::new();
        if self.options.pin {
            let (done, more) = pin_workers(&self.group, slots, &plan);
            notices.extend(more);
            if !done.is_empty() {
                self.follow(&done);
                plan = self.plan(slots)?;
                let view = view(&plan);
                config = pinned.maps.amend(view, &plan.table).map_err(of_maps(&self.group.key))?;
            }
            workers = done;
        }
        let attached = InForce::new(pinned, &config, in_place);
        Ok(AttachReport { pinned: workers, ..self.report(slots, plan, Some(attached), notices) })
    }

    /// Takes note of workers that were pinned, here or for another group.
    pub(super) fn follow(&mut self, pinned: &[PinnedWorker]) {
        for listener in &mut self.group.listeners {
            let Served::By(workers) = &mut listener.served else { continue };
            for worker in workers {
                let now = pinned
                    .iter()
                    .find(|it| it.pid == worker.pid && (it.tid.is_none() || it.tid == worker.tid));
                if let Some(now) = now {
                    worker.cpus = CpuSet::from([now.cpu]);
                }
            }
        }
    }

    /// Puts into the map who is not in it; returns the cookies of listeners that went away.
    pub(super) fn fill(
        &self,
        pinned: &mut Pinned,
        slots: &Slots,
        attached: &Attached,
    ) -> Result<Vec<u64>, SteerError> {
        let filled = fill(&mut pinned.maps, &self.group, slots);
        match (&filled, attached, self.options.takeover) {
            (Err(SteerError::SocketTaken { .. }), Attached::Program { id }, true) => {
                let cookies: Vec<u64> = slots.keys().copied().collect();
                owner::release_sockets(*id, &cookies).map_err(SteerError::of(&self.group.key))?;
                fill(&mut pinned.maps, &self.group, slots)
            }
            _ => filled,
        }
    }

    /// Forgets listeners that went away meanwhile.
    pub(super) fn forget(&mut self, gone: &[u64], slots: &mut Slots) -> Result<(), SteerError> {
        slots.retain(|cookie, _| !gone.contains(cookie));
        self.group.listeners.retain(|listener| !gone.contains(&listener.cookie));
        if self.group.listeners.is_empty() {
            return Err(SteerError::Vanished { group: self.group.key });
        }
        Ok(())
    }

    /// Attaches through the first listener that is still there and verifiably listens.
    pub(super) fn attach(&self, pinned: &Pinned) -> Result<(), SteerError> {
        for listener in &self.group.listeners {
            match with_listener(listener, &self.group.key, |fd| pinned.attach(fd)) {
                Ok(attached) => return attached.map_err(SteerError::of(&self.group.key)),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(SteerError::Vanished { group: self.group.key })
    }

    pub(super) fn plan(&self, slots: &Slots) -> Result<Plan, SteerError> {
        self.plan_for(&self.group.listeners, slots)
    }

    /// A plan for some of the listeners.
    pub(super) fn plan_for(
        &self,
        listeners: &[Listener],
        slots: &Slots,
    ) -> Result<Plan, SteerError> {
        let seat = |listener: &Listener| Seat {
            slot: slots[&listener.cookie],
            cpus: listener.cpus(),
            weight: self.weight(listener),
        };
        let seats = listeners.iter().map(seat).collect();
        Ok(plan(self.topology, &Request { policy: self.options.policy, seats })?)
    }

    /// The listener's share, in percent of a normal one.
    pub(super) fn weight(&self, listener: &Listener) -> u32 {
        let own = self.options.weights.iter().rev().find(|weight| weighs(listener, **weight));
        own.map_or(NORMAL_WEIGHT, |weight| weight.percent)
    }

    fn report(
        &self,
        slots: &Slots,
        mut plan: Plan,
        attached: Option<InForce>,
        notices: Vec<Notice>,
    ) -> AttachReport {
        if self.options.pin {
            // That is being seen to.
            plan.warnings.retain(|warning| !matches!(warning, PlanWarning::NotPinned { .. }));
        }
        let slots = self.group.listeners.iter().map(|it| slots[&it.cookie]).collect();
        let group = self.group.clone();
        AttachReport { group, slots, plan, attached, pinned: Vec::new(), notices }
    }
}

/// That it could not be seen what is attached, and none of ours seems to be.
fn unseen(attached: &Attached, in_force: bool) -> Option<Notice> {
    match (attached, in_force) {
        (Attached::Unknown { why }, false) => Some(Notice::new(
            format!("it could not be seen whether another program was attached: {why}"),
            "`attach` replaces it if there is one; run it with that power to be sure",
        )),
        _ => None,
    }
}

/// A plan's way to read the table; where it begins is chosen when it is published.
pub(super) fn view(plan: &Plan) -> View {
    View { policy: plan.policy as u32, base: 0, rows: plan.rows, lanes: plan.lanes }
}

/// Makes a plan the live one.
pub(super) fn publish(pinned: &mut Pinned, plan: &Plan) -> Result<Config, BpfError> {
    pinned.maps.publish(view(plan), &plan.table)
}
