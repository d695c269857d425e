//! One group's attach, from lock to commit.

use std::time::{SystemTime, UNIX_EPOCH};

use reuseport_common::abi::{self, ABI_VERSION, Config, View};

use crate::bpf::BpfError;
use crate::bpf::maps::Sizes;
use crate::bpf::object::{LoadOptions, Object, fingerprint};
use crate::bpf::owner::{self, Attached};
use crate::bpf::pins::{LockedPins, Pinned, Pins};
use crate::discover::acquire::{AcquireError, with_listener};
use crate::model::{Group, Listener};
use crate::plan::{MAX_ENTRIES, NORMAL_WEIGHT, Plan, Request, Seat, USUAL_LANES, plan};
use crate::topology::Topology;

use super::super::fill::{Slots, assign, fill};
use super::super::fit::weighs;
use super::super::ownership::{self, Ours};
use super::super::pin_workers::pin_workers;
use super::super::{Notice, SteerError};
use super::{AttachOptions, AttachReport, InForce};

/// One group's attach.
pub(super) struct Job<'a> {
    options: &'a AttachOptions,
    topology: &'a Topology,
    group: Group,
}

/// A job that nothing stands against.
pub(super) struct Prepared<'a> {
    job: Job<'a>,
    attached: Attached,
    ours: Ours,
}

impl<'a> Job<'a> {
    pub(super) fn new(options: &'a AttachOptions, topology: &'a Topology, group: Group) -> Self {
        Self { options, topology, group }
    }

    /// What would be done.
    pub(super) fn dry_run(mut self, pins: &Pins) -> Result<AttachReport, SteerError> {
        let occupied = match pins.open(&self.group.key) {
            Ok(Some(pinned)) => pinned.maps.sockets.cookies().unwrap_or_default(),
            Ok(None) | Err(_) => Vec::new(),
        };
        let slots = assign(&self.group.listeners, &occupied);
        let plan = self.plan(&slots)?;
        Ok(self.report(&slots, plan, None, Vec::new()))
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
        if let (Attached::Unknown { why }, false) = (&attached, ours.in_force) {
            ours.notices.push(Notice::new(
                format!("it could not be seen whether another program was attached: {why}"),
                "if one was, it is replaced now; run `attach` with that power to be sure",
            ));
        }
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
        job.renew(pins, object, &attached, ours)
    }
}

impl Job<'_> {
    /// Whether the pinned program can go on: same object, and room for the new plan.
    fn fits(&self, ours: &Ours) -> Result<bool, SteerError> {
        let Some(pinned) = &ours.pinned else { return Ok(false) };
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
        let Ours { pinned, in_force, notices } = ours;
        let group = self.group.key;
        let mut pinned = pinned.ok_or(SteerError::Vanished { group })?;
        let of = SteerError::of(&group);
        let occupied = pinned.maps.sockets.cookies().map_err(&of)?;
        let mut slots = assign(&self.group.listeners, &occupied);
        self.fill(&mut pinned, &mut slots, attached)?;
        let plan = self.plan(&slots)?;
        let config = publish(&mut pinned, &plan).map_err(&of)?;
        if !in_force {
            // The group died and came back, or a foreign program is being replaced.
            self.attach(&pinned)?;
        }
        let attached = InForce::new(&pinned, &config, in_force);
        Ok(self.report(&slots, plan, Some(attached), notices))
    }

    /// Loads a program with maps of its own, and puts it in the place of whatever there is.
    fn renew(
        &mut self,
        pins: &LockedPins,
        mut object: Object,
        attached: &Attached,
        ours: Ours,
    ) -> Result<AttachReport, SteerError> {
        let key = self.group.key;
        let of = SteerError::of(&key);
        let migrates = object.load_steering().map_err(&of)?;
        let mut staged = pins.stage(&key, &mut object, migrates)?;
        let result = self.renew_staged(pins, &mut staged, attached, &ours, migrates);
        match result {
            Ok((slots, plan, config)) => {
                let attached = InForce::new(&staged, &config, false);
                Ok(self.report(&slots, plan, Some(attached), ours.notices))
            }
            Err(error) => {
                pins.remove(&pins.staged(&key))?;
                self.restore(&ours);
                Err(error)
            }
        }
    }

    fn renew_staged(
        &mut self,
        pins: &LockedPins,
        staged: &mut Pinned,
        attached: &Attached,
        ours: &Ours,
        migrates: bool,
    ) -> Result<(Slots, Plan, Config), SteerError> {
        let key = self.group.key;
        let of = SteerError::of(&key);
        let before = ours.pinned.as_ref().and_then(|pinned| pinned.maps.config().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let sockets = staged.maps.sockets.slots();
        staged
            .maps
            .set_config(&Config {
                abi: ABI_VERSION,
                generation: before.map_or(0, |config| config.generation),
                slots: sockets,
                half: staged.maps.half(),
                flags: if migrates { abi::FLAG_MIGRATES } else { 0 }
                    | if self.options.log { abi::FLAG_LOGS } else { 0 },
                object: fingerprint(),
                attached_at: now.as_secs(),
                group: key.to_raw(),
                ..Config::default()
            })
            .map_err(&of)?;
        // A socket sits in one map only. From here to `attach` the old program misses, and the
        // kernel's hash decides: a moment without locality, not without service.
        if let Some(pinned) = &ours.pinned {
            pinned.maps.sockets.clear().map_err(&of)?;
        }
        let mut slots = assign(&self.group.listeners, &[]);
        self.fill(staged, &mut slots, attached)?;
        let plan = self.plan(&slots)?;
        let config = publish(staged, &plan).map_err(&of)?;
        self.attach(staged)?;
        pins.commit(staged, &key)?;
        Ok((slots, plan, config))
    }

    /// Fills the map, and forgets listeners that went away meanwhile.
    fn fill(
        &mut self,
        pinned: &mut Pinned,
        slots: &mut Slots,
        attached: &Attached,
    ) -> Result<(), SteerError> {
        let mut filled = fill(&mut pinned.maps, &self.group, slots);
        if let (Err(SteerError::SocketTaken { .. }), Attached::Program { id }, true) =
            (&filled, attached, self.options.takeover)
        {
            let cookies: Vec<_> = self.group.listeners.iter().map(|it| it.cookie).collect();
            owner::release_sockets(*id, &cookies).map_err(SteerError::of(&self.group.key))?;
            filled = fill(&mut pinned.maps, &self.group, slots);
        }
        let gone = filled?;
        slots.retain(|cookie, _| !gone.contains(cookie));
        self.group.listeners.retain(|listener| !gone.contains(&listener.cookie));
        if self.group.listeners.is_empty() {
            return Err(SteerError::Vanished { group: self.group.key });
        }
        Ok(())
    }

    /// Attaches through the first listener that is still there and verifiably listens.
    fn attach(&self, pinned: &Pinned) -> Result<(), SteerError> {
        for listener in &self.group.listeners {
            match with_listener(listener, &self.group.key, |fd| pinned.attach(fd)) {
                Ok(attached) => return attached.map_err(SteerError::of(&self.group.key)),
                Err(AcquireError::Gone | AcquireError::NotTheOne { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(SteerError::Vanished { group: self.group.key })
    }

    /// After a failed renewal: gives the program in force its sockets back, as far as they live.
    fn restore(&self, ours: &Ours) {
        let Some(pinned) = &ours.pinned else { return };
        if !ours.in_force {
            return;
        }
        let rows = pinned.maps.rows().unwrap_or_default();
        let slots = assign(&self.group.listeners, &[]);
        for listener in &self.group.listeners {
            let slot = slots[&listener.cookie];
            // Best effort: a slot that stays empty falls to the row's second choice, then to hash.
            if rows.iter().any(|row| row.first == slot || row.second == slot) {
                let _unfilled = with_listener(listener, &self.group.key, |fd| {
                    pinned.maps.sockets.set(slot, fd)
                });
            }
        }
    }

    fn plan(&self, slots: &Slots) -> Result<Plan, SteerError> {
        let weight = |listener: &Listener| {
            let own = self.options.weights.iter().rev().find(|weight| weighs(listener, **weight));
            own.map_or(NORMAL_WEIGHT, |weight| weight.percent)
        };
        let seat = |listener: &Listener| Seat {
            slot: slots[&listener.cookie],
            cpus: listener.cpus(),
            weight: weight(listener),
        };
        let seats = self.group.listeners.iter().map(seat).collect();
        Ok(plan(self.topology, &Request { policy: self.options.policy, seats })?)
    }

    fn report(
        &mut self,
        slots: &Slots,
        plan: Plan,
        attached: Option<InForce>,
        mut notices: Vec<Notice>,
    ) -> AttachReport {
        let mut pinned = Vec::new();
        if self.options.pin && attached.is_some() {
            let (workers, more) = pin_workers(&self.group, slots, &plan);
            pinned = workers;
            notices.extend(more);
        }
        let slots = self.group.listeners.iter().map(|it| slots[&it.cookie]).collect();
        AttachReport { group: self.group.clone(), slots, plan, attached, pinned, notices }
    }
}

/// Makes a plan the live one.
fn publish(pinned: &mut Pinned, plan: &Plan) -> Result<Config, BpfError> {
    let view = View { policy: plan.policy as u32, base: 0, rows: plan.rows, lanes: plan.lanes };
    pinned.maps.publish(view, &plan.table)
}
