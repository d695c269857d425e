//! One group's attach, from lock to commit.

use reuseport_common::abi::{self, Config};

use crate::bpf::maps::Sizes;
use crate::bpf::object::{LoadOptions, Object, fingerprint};
use crate::bpf::owner::{self, Attached};
use crate::bpf::pins::{Pinned, Pins};
use crate::discover::acquire::with_listener;
use crate::model::{CpuSet, Group, Served};
use crate::plan::{MAX_ENTRIES, Plan, PlanWarning, USUAL_LANES};
use crate::rungs::{Choice, Rung};
use crate::topology::Topology;

use super::super::draft::{Change, Draft};
use super::super::fill::{Slots, assign, fill};
use super::super::fit::weights_of;
use super::super::ownership::{self, Ours};
use super::super::pin_workers::{PinnedWorker, pin_workers};
use super::super::reconcile::{settle, view};
use super::super::rung::Traces;
use super::super::store::Store;
use super::super::{Notice, SteerError};
use super::renew::Renewal;
use super::{AttachOptions, AttachReport, InForce, of_maps};

/// One group's attach.
pub(super) struct Job<'a> {
    pub(super) options: &'a AttachOptions,
    topology: &'a Topology,
    pub(super) group: Group,
    pub(super) draft: Draft<'a>,
}

/// A job that nothing stands against.
pub(super) struct Prepared<'a> {
    pub(super) job: Job<'a>,
    pub(super) attached: Attached,
    ours: Ours,
}

impl<'a> Job<'a> {
    pub(super) fn new(options: &'a AttachOptions, topology: &'a Topology, group: Group) -> Self {
        let draft = Draft::new(topology, &change(options, &group));
        Self { options, topology, group, draft }
    }

    /// Takes over what the pins say the listeners are to get, but for what the user says now.
    fn remember(&mut self, ours: &Ours) -> Result<(), SteerError> {
        if let Some(pinned) = &ours.pinned {
            let change = change(self.options, &self.group);
            let draft = Draft::of(self.topology, &change, &pinned.maps);
            self.draft = draft.map_err(SteerError::of(&self.group.key))?;
        }
        Ok(())
    }

    /// What would be done; what `attach` would refuse is refused.
    pub(super) fn dry_run(
        mut self,
        pins: &Pins,
        attached: &Attached,
    ) -> Result<AttachReport, SteerError> {
        let ours = ownership::examine(pins, &self.group, attached)?;
        let known = || Ok(pins.program_ids()?);
        ownership::permit(&self.group, attached, &ours, self.may_replace(attached)?, known)?;
        self.remember(&ours)?;
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

    /// Whether what is attached may go without asking: the user said so, or it is our classic program.
    fn may_replace(&self, attached: &Attached) -> Result<bool, SteerError> {
        let classic = *attached == Attached::Classic && Traces::read(&self.group)?.has_places();
        Ok(self.options.takeover || classic)
    }

    /// Puts right what a crash left, and refuses what is not ours to change.
    pub(super) fn prepare(
        mut self,
        store: &Store<'_>,
        attached: Attached,
    ) -> Result<Prepared<'a>, SteerError> {
        store.recover(&self.group, &attached)?;
        let mut ours = store.examine(&self.group, &attached)?;
        ours.notices.extend(unseen(&attached, ours.in_force));
        let known = || store.program_ids();
        ownership::permit(&self.group, &attached, &ours, self.may_replace(&attached)?, known)?;
        self.remember(&ours)?;
        self.plan(&assign(&self.group.listeners, &[]))?;
        Ok(Prepared { job: self, attached, ours })
    }
}

impl Prepared<'_> {
    /// Does it. `spare` is an object that was loaded for this very group, if there is one.
    pub(super) fn carry_out(
        self,
        store: &mut Store<'_>,
        spare: Option<Object>,
    ) -> Result<AttachReport, SteerError> {
        let Self { mut job, attached, mut ours } = self;
        if job.fits(&ours)? {
            match job.replan(&mut ours, &attached) {
                Err(SteerError::NoRoom { .. }) => {}
                done => return done,
            }
        }
        let object = spare.map_or_else(|| job.load(), Ok)?;
        Renewal { job, attached, ours }.run(store, object)
    }
}

impl Job<'_> {
    /// Whether the pinned program can go on: in force, the same object.
    fn fits(&self, ours: &Ours) -> Result<bool, SteerError> {
        // A group that died and came back begins anew: maps, counters and time of attaching.
        let Some(pinned) = ours.pinned.as_ref().filter(|_| ours.in_force) else {
            return Ok(false);
        };
        let config = pinned.maps.config().map_err(SteerError::of(&self.group.key))?;
        let logs = config.flags & abi::FLAG_LOGS != 0;
        Ok(config.object == fingerprint() && logs == self.options.log)
    }

    /// Changes what differs in the maps in force.
    fn replan(&mut self, ours: &mut Ours, attached: &Attached) -> Result<AttachReport, SteerError> {
        let group = self.group.key;
        let pinned = ours.pinned.as_mut().ok_or(SteerError::Vanished { group })?;
        let done = settle(pinned, &self.group, &self.draft)?;
        self.group.listeners = done.listeners;
        let mut notices = std::mem::take(&mut ours.notices);
        if let Attached::Unknown { why } = attached {
            if self.options.takeover {
                self.attach(pinned)?;
            } else {
                let id = pinned.program_id;
                notices.push(Notice::new(
                    format!("it could not be verified that program {id} is still attached: {why}"),
                    "if `status` with that power says otherwise, `attach --takeover` puts it back",
                ));
            }
        }
        self.finish(pinned, &done.slots, done.plan, done.config, true, notices)
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
        Ok(self.draft.plan(&self.group.listeners, slots)?)
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
        AttachReport {
            group: self.group.clone(),
            slots,
            plan,
            rung: Choice { rung: Rung::Ebpf, passed_over: Vec::new() },
            attached,
            applied: None,
            pinned: Vec::new(),
            notices,
        }
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

/// What the user wants of the group.
pub(super) fn change(options: &AttachOptions, group: &Group) -> Change {
    let mut weights = options.shares.clone();
    weights.extend(weights_of(group, &options.weights));
    let roles = options.roles.clone();
    Change { policy: Some(options.policy), weights, roles, ..Change::default() }
}
