//! `attach`: find, plan, fill, attach, pin. Again on a group that is steered already: re-plan in
//! place.

use std::time::{SystemTime, UNIX_EPOCH};

use reuseport_common::abi::{self, ABI_VERSION, Config, Policy, View};
use serde::Serialize;

use crate::bpf::maps::Sizes;
use crate::bpf::object::{LoadOptions, Object, fingerprint};
use crate::bpf::owner::{self, Attached};
use crate::bpf::pins::{LockedPins, Pinned, Pins};
use crate::discover::acquire::{AcquireError, with_listener};
use crate::discover::overrides::Overrides;
use crate::discover::{Target, discover};
use crate::model::{Group, Listener, Served};
use crate::plan::{MAX_ENTRIES, NORMAL_WEIGHT, Plan, Request, Seat, USUAL_LANES, plan};
use crate::topology::Topology;

use super::fill::{Slots, assign, fill};
use super::ownership::{self, Ours};
use super::pin_workers::{PinnedWorker, pin_workers};
use super::{Notice, Settings, SteerError, Weight};

/// What to attach to, and how.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// Which groups.
    pub target: Target,
    /// What the user knows better.
    pub overrides: Overrides,
    /// What a row means.
    pub policy: Policy,
    /// Shares that are not the normal one.
    pub weights: Vec<Weight>,
    /// Pin workers that are not.
    pub pin: bool,
    /// Replace a foreign program.
    pub takeover: bool,
    /// Stop at the plan.
    pub dry_run: bool,
    /// aya-log records from the program's rare paths.
    pub log: bool,
    /// Where and how.
    pub settings: Settings,
}

impl AttachOptions {
    /// Everything as usual.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            overrides: Overrides::default(),
            policy: Policy::Cpu,
            weights: Vec::new(),
            pin: false,
            takeover: false,
            dry_run: false,
            log: false,
            settings: Settings::default(),
        }
    }
}

/// What was done (or, on a dry run, would be) for one group.
#[derive(Clone, Debug, Serialize)]
pub struct AttachReport {
    /// The group.
    pub group: Group,
    /// Slot of each listener, in the group's order.
    pub slots: Vec<u32>,
    /// Which row points where, and why.
    pub plan: Plan,
    /// What is in force now; `None` on a dry run.
    pub attached: Option<InForce>,
    /// Workers that `--pin` pinned.
    pub pinned: Vec<PinnedWorker>,
    /// What the user should know.
    pub notices: Vec<Notice>,
}

/// A program in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InForce {
    /// The kernel's id of the program.
    pub program_id: u32,
    /// Counts the plans since the first attach.
    pub generation: u32,
    /// Whether connections of a closing listener move to another.
    pub migrates: bool,
    /// Whether the program was attached already, and only its maps were written.
    pub in_place: bool,
}

impl InForce {
    fn new(pinned: &Pinned, config: &Config, in_place: bool) -> Self {
        Self {
            program_id: pinned.program_id,
            generation: config.generation,
            migrates: config.flags & abi::FLAG_MIGRATES != 0,
            in_place,
        }
    }
}

/// Attaches to every group of the target, or says why not. Groups are done one by one; the first
/// that fails ends it, and leaves the ones before it steered.
///
/// # Minimum kernel version
///
/// 5.6 for taking listeners, 5.10 as tested; migration from 5.14.
pub fn attach(options: &AttachOptions) -> Result<Vec<AttachReport>, SteerError> {
    let mut groups = discover(&options.target)?;
    options.overrides.apply(&mut groups)?;
    check_weights(&groups, &options.weights)?;
    let topology = Topology::read()?;
    let (groups, alone): (Vec<_>, Vec<_>) =
        groups.into_iter().partition(|group| group.listeners.len() > 1);
    if groups.is_empty() {
        return Err(explain_alone(&alone));
    }
    for group in &groups {
        check_workers(group, options.policy)?;
    }
    let mut reports = Vec::new();
    for group in groups {
        reports.push(Job { options, topology: &topology, group }.run()?);
    }
    for group in alone {
        if let Some(first) = reports.first_mut() {
            let what = format!("{} has one listener and was left alone", group.key);
            first.notices.push(Notice::new(
                what,
                "start more workers on it, or name the address to \
                 steer with --addr",
            ));
        }
    }
    Ok(reports)
}

/// Why a group of one cannot be steered: no SO_REUSEPORT, or nothing to choose between.
fn explain_alone(groups: &[Group]) -> SteerError {
    for group in groups {
        for listener in &group.listeners {
            match with_listener(listener, &group.key, |_| ()) {
                Err(error @ (AcquireError::NotReuseport { .. } | AcquireError::Mptcp { .. })) => {
                    return error.into();
                }
                // Whether it could be taken otherwise does not matter: it is alone.
                Ok(()) | Err(_) => {}
            }
        }
    }
    let key = groups.first().map(|group| group.key);
    match key {
        Some(group) => SteerError::GroupOfOne { group },
        None => SteerError::Plan(crate::plan::PlanError::NoSeats),
    }
}

/// Steering by CPU takes knowing every worker's CPU.
fn check_workers(group: &Group, policy: Policy) -> Result<(), SteerError> {
    if policy != Policy::Cpu {
        return Ok(());
    }
    let reason = |listener: &Listener| match &listener.served {
        Served::Unknown(reason) => Some(reason.clone()),
        Served::By(_) => None,
    };
    let unknown: Vec<_> = group.listeners.iter().filter_map(reason).collect();
    let of = group.listeners.len();
    match unknown.first() {
        None => Ok(()),
        Some(reason) => Err(SteerError::UnknownWorkers {
            group: group.key,
            count: unknown.len(),
            of,
            reason: reason.clone(),
        }),
    }
}

fn check_weights(groups: &[Group], weights: &[Weight]) -> Result<(), SteerError> {
    let serves = |listener: &Listener, weight: &Weight| weighs(listener, *weight);
    for weight in weights {
        if !groups.iter().flat_map(|group| &group.listeners).any(|it| serves(it, weight)) {
            return Err(SteerError::UnusedWeight { pid: weight.pid, tid: weight.tid });
        }
    }
    Ok(())
}

/// Whether a weight speaks of this listener's worker.
fn weighs(listener: &Listener, weight: Weight) -> bool {
    match &listener.served {
        Served::By(workers) => workers.iter().any(|worker| {
            worker.pid == weight.pid && (weight.tid.is_none() || weight.tid == worker.tid)
        }),
        Served::Unknown(_) => {
            weight.tid.is_none() && listener.holders.iter().any(|it| it.pid == weight.pid)
        }
    }
}

/// One group's attach.
struct Job<'a> {
    options: &'a AttachOptions,
    topology: &'a Topology,
    group: Group,
}

impl Job<'_> {
    fn run(mut self) -> Result<AttachReport, SteerError> {
        let pins = Pins::at(&self.options.settings.bpffs)?;
        if self.options.dry_run {
            let occupied = match pins.open(&self.group.key) {
                Ok(Some(pinned)) => pinned.maps.sockets.cookies().unwrap_or_default(),
                Ok(None) | Err(_) => Vec::new(),
            };
            let slots = assign(&self.group.listeners, &occupied);
            let plan = self.plan(&slots)?;
            return Ok(self.report(&slots, plan, None, Vec::new()));
        }
        let pins = pins.lock()?;
        // Planned before anything is touched: what cannot be planned has no side effect.
        let draft = self.plan(&assign(&self.group.listeners, &[]))?;
        // Room for weights from the start: they are then a write to maps.
        let usual = self.topology.rows().saturating_mul(USUAL_LANES / 2).min(MAX_ENTRIES / 2);
        let entries = draft.table.len().max(usual as usize);
        let sizes = Sizes::for_group(self.group.listeners.len(), entries);
        let mut object = self.load(sizes)?;
        let attached = ownership::attached(&mut object, &self.group, &self.options.target)?;
        ownership::recover(&pins, &self.group, &attached)?;
        let ours = ownership::examine(&pins, &self.group, &attached)?;
        ownership::permit(&pins, &self.group, &attached, &ours, self.options.takeover)?;
        if self.fits(&ours)? {
            self.replan(ours, &attached)
        } else {
            self.renew(&pins, object, &attached, ours)
        }
    }

    fn load(&self, sizes: Sizes) -> Result<Object, SteerError> {
        let options = LoadOptions {
            sizes,
            port: self.group.key.address.port(),
            log: self.options.log,
            verifier_log: self.options.settings.verifier_log,
        };
        Object::load(&options).map_err(SteerError::of(&self.group.key))
    }

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
            owner::release_sockets(*id).map_err(SteerError::of(&self.group.key))?;
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
fn publish(pinned: &mut Pinned, plan: &Plan) -> Result<Config, crate::bpf::BpfError> {
    let view = View { policy: plan.policy as u32, base: 0, rows: plan.rows, lanes: plan.lanes };
    pinned.maps.publish(view, &plan.table)
}
