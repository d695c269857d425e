//! A group on loan: steered in several ways one after the other, and given back as it was found.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use reuseport_common::abi::{Policy, Role};
use serde::Serialize;

use crate::bpf::pins::{AgentLock, Pins};
use crate::discover::acquire::with_listener;
use crate::discover::overrides::Overrides;
use crate::discover::{DiscoverError, Target, discover};
use crate::model::{Cpu, Group, GroupKey, Listener, Served};
use crate::plan::NORMAL_WEIGHT;
use crate::rungs::{self, Rung, RungError, Trace};

use super::attach::{AttachOptions, AttachReport, Ladder, attach};
use super::detach::{Detached, detach};
use super::fit::explain_alone;
use super::rung::Traces;
use super::status::{GroupStatus, status};
use super::{Settings, SteerError};

mod known;
mod look;

pub use self::look::Look;

/// How long giving back is tried. Arbitrary: a server that restarts its workers, or another command
/// that holds the lock, is done sooner.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// One way to steer a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all: the kernel's hash.
    Hash,
    /// By our program, with this policy.
    Ebpf(Policy),
    /// By `SO_INCOMING_CPU` on each listener.
    IncomingCpu,
}

/// How a group was steered when it was borrowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The mechanism.
    pub rung: Rung,
    /// What a row means, where it is our program.
    pub policy: Option<&'static str>,
    /// Shares that are not the normal one: who serves, and percent.
    pub weights: Vec<(String, u32)>,
}

/// What it takes to make it so again.
#[derive(Debug)]
enum Before {
    /// Our program, with this policy.
    Ebpf(Policy),
    /// No program: the CPUs that listeners have from us, by cookie; mostly none.
    Below(Vec<(u64, Cpu)>),
}

/// The right to change how one group is steered, for a while. It is the group's agent as long as it
/// lasts, so that no other one starts. Given back when dropped, whatever happened.
#[derive(Debug)]
pub struct Loan {
    group: Group,
    /// With the target narrowed to the group, and the shares that it was found with.
    options: AttachOptions,
    found: Found,
    before: Before,
    /// Who served the listeners when it was borrowed, by cookie: a thread that is busy later cannot be
    /// seen.
    known: HashMap<u64, Served>,
    given_back: bool,
    // Dropped last.
    _agent: Agent,
    /// Keeps the namespace that `options.target` names by its descriptor.
    _netns: Option<File>,
}

impl Loan {
    /// Borrows the one group of more than one listener that `options.target` means; its overrides and
    /// settings hold for every mode. Nothing is changed yet, and everything that would refuse one of
    /// the modes, or stand in the way of giving back, is an error now.
    pub fn take(options: &AttachOptions, modes: &[Mode]) -> Result<Self, SteerError> {
        let all = discover(&options.target)?;
        let (mut groups, alone): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|group| group.listeners.len() > 1);
        if groups.len() > 1 {
            let groups = groups.iter().map(|it| it.key.to_string()).collect::<Vec<_>>().join(", ");
            return Err(SteerError::SeveralGroups { groups });
        }
        let Some(group) = groups.pop() else { return Err(explain_alone(&alone)) };
        let (target, netns) = narrow(&options.target, &group)?;
        let agent = Agent::become_of(&group.key, &options.settings)?;
        // Looked at when nobody else keeps it any more.
        let statuses = status(Some(&target), &options.settings)?;
        let status = statuses.into_iter().find(|it| it.group == group.key);
        let status = status.ok_or(SteerError::Vanished { group: group.key })?;
        let before = Before::of(&status, &group)?;
        let found = Found::of(&status);
        let homes = match before {
            Before::Ebpf(_) => known::homes(&group, options)?,
            Before::Below(_) => HashMap::new(),
        };
        let share = |it: &super::status::ListenerStatus| (it.listener.cookie, it.weight);
        let options = AttachOptions {
            target,
            shares: status.listeners.iter().map(share).filter(|it| it.1 != NORMAL_WEIGHT).collect(),
            log: status.steering.is_some_and(|steering| steering.logs),
            ..options.clone()
        };
        let (known, given_back) = (known::served(&group, &homes), true);
        let mut loan =
            Self { group, options, found, before, known, given_back, _agent: agent, _netns: netns };
        if let Some(options) = loan.options_before() {
            let planned = loan.attach(&AttachOptions { dry_run: true, ..options })?;
            // Whom the user placed otherwise when it was attached is there in every mode.
            loan.options.served = known::told(&planned, &homes);
            loan.known.extend(loan.options.served.clone());
        }
        for options in modes.iter().filter_map(|&mode| loan.attach_options(mode)) {
            loan.attach(&AttachOptions { dry_run: true, ..options })?;
        }
        loan.given_back = false;
        Ok(loan)
    }

    /// The group, as it was when it was borrowed.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// How it was steered.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Steers it so from now on. Connections that wait stay where they are; none is lost. Refuses
    /// where a worker was drained meanwhile: another mode would give it connections again.
    pub fn put_on(&mut self, mode: Mode) -> Result<(), SteerError> {
        self.refuse_drained()?;
        match self.attach_options(mode) {
            Some(options) => self.attach(&options).map(drop),
            None => self.detach(),
        }
    }

    /// What is in force now.
    pub fn look(&self) -> Result<Look, SteerError> {
        let all = status(Some(&self.options.target), &self.options.settings)?;
        let ours = all.into_iter().find(|it| it.group == self.group.key);
        ours.map(Look::of).ok_or(SteerError::Vanished { group: self.group.key })
    }

    /// Gives the group back as it was found. What the program counted before is gone.
    pub fn give_back(mut self) -> Result<(), SteerError> {
        self.restore()
    }

    /// Attaches; whom it cannot see is where it was.
    fn attach(&self, options: &AttachOptions) -> Result<Vec<AttachReport>, SteerError> {
        match attach(options) {
            Err(SteerError::UnknownWorkers { .. }) => {
                attach(&AttachOptions { served: self.known.clone(), ..options.clone() })
            }
            done => done,
        }
    }

    /// What makes it again as it was, where that was our program; overrides are the experiment's.
    fn options_before(&self) -> Option<AttachOptions> {
        let Before::Ebpf(policy) = self.before else { return None };
        let options = self.attach_options(Mode::Ebpf(policy))?;
        Some(AttachOptions { overrides: Overrides::default(), ..options })
    }

    fn refuse_drained(&self) -> Result<(), SteerError> {
        if !self.look()?.leaves_out() {
            return Ok(());
        }
        let why =
            "a worker was drained meanwhile and would get connections again, so it is left as it \
                   is now; `undrain` it, or wait until it has ended"
                .to_owned();
        Err(SteerError::NotToBorrow { group: self.group.key, why })
    }

    fn attach_options(&self, mode: Mode) -> Option<AttachOptions> {
        let options = self.options.clone();
        match mode {
            Mode::Hash => None,
            Mode::Ebpf(policy) => {
                Some(AttachOptions { policy, rung: Ladder::Only(Rung::Ebpf), ..options })
            }
            Mode::IncomingCpu => {
                let rung = Ladder::Only(Rung::IncomingCpu);
                Some(AttachOptions { policy: Policy::Cpu, rung, ..options })
            }
        }
    }

    fn detach(&self) -> Result<(), SteerError> {
        for report in detach(&self.options.target, &self.options.settings)? {
            if report.group == Some(self.group.key) && report.outcome == Detached::Foreign {
                let why = "somebody attached another program meanwhile".to_owned();
                return Err(SteerError::NotToBorrow { group: self.group.key, why });
            }
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<(), SteerError> {
        if self.given_back {
            return Ok(());
        }
        // Before the calls: what failed until the end is not tried again on the way out.
        self.given_back = true;
        let begin = Instant::now();
        loop {
            match self.try_restore() {
                // Workers may be on their way back, or the lock.
                Err(error) if is_passing(&error) && begin.elapsed() < PATIENCE => sleep(PAUSE),
                // The server was stopped: what is left to do is to clear its pins.
                Err(SteerError::Discover(DiscoverError::NobodyListens { .. })) => {
                    return self.detach();
                }
                result => return result,
            }
        }
    }

    fn try_restore(&self) -> Result<(), SteerError> {
        if let Some(options) = self.options_before() {
            // In place where the program is in force: whom somebody drained meanwhile stays so.
            return self.attach(&options).map(drop);
        }
        let Before::Below(cpus) = &self.before else { return Ok(()) };
        match self.refuse_drained() {
            // Nobody is left who could be drained.
            Err(
                SteerError::Vanished { .. }
                | SteerError::Discover(DiscoverError::NobodyListens { .. }),
            ) => {}
            result => result?,
        }
        self.detach()?;
        cpus.iter().try_for_each(|&(cookie, cpu)| self.prefer(cookie, cpu))
    }

    /// Sets `SO_INCOMING_CPU` of a listener, if it is still there.
    fn prefer(&self, cookie: u64, cpu: Cpu) -> Result<(), SteerError> {
        let find = |it: &&Listener| it.cookie == cookie;
        let Some(listener) = self.group.listeners.iter().find(find) else { return Ok(()) };
        match with_listener(listener, &self.group.key, |fd| rungs::prefer(fd, Some(cpu))) {
            Ok(set) => Ok(set.map(drop).map_err(RungError::from)?),
            Err(error) if error.is_gone() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // For panics and early returns; else `give_back` was called.
        let _unseen = self.restore();
    }
}

impl Before {
    fn of(status: &GroupStatus, group: &Group) -> Result<Self, SteerError> {
        let refuse =
            |why: &str| Err(SteerError::NotToBorrow { group: group.key, why: why.to_owned() });
        match (status.rung.rung, status.rung.ours) {
            (Some(Rung::Ebpf), true) => {
                if status.listeners.iter().any(|it| it.role != Role::Active) {
                    return refuse(
                        "a worker is drained or stands by, and would get connections by the kernel's \
                         hash; `undrain` it, or wait until it has ended",
                    );
                }
                let known = status.steering.as_ref().and_then(|steering| steering.policy);
                let policy = Policy::ALL.into_iter().find(|&it| Some(it.name()) == known);
                policy.map_or_else(
                    || refuse("its pins are another version's; `attach` again first"),
                    |policy| Ok(Self::Ebpf(policy)),
                )
            }
            (Some(Rung::ClassicBpf), true) => {
                refuse("its classic BPF program could not be put back as it was; `detach` first")
            }
            (Some(Rung::Ebpf | Rung::ClassicBpf), false) => {
                Err(SteerError::foreign(&group.key, &status.attached))
            }
            (Some(Rung::IncomingCpu | Rung::Hash), _) => {
                let traces = Traces::read(group)?;
                if traces.count(false) > 0 {
                    return refuse(
                        "the server sets SO_INCOMING_CPU on its listeners itself, so it is never on the \
                         kernel's hash alone; change it in the server",
                    );
                }
                let cpu = |listener: &Listener| match traces.of(listener) {
                    Trace::IncomingCpu { cpu, .. } => Some((listener.cookie, cpu)),
                    Trace::Nothing | Trace::Place(_) => None,
                };
                Ok(Self::Below(group.listeners.iter().filter_map(cpu).collect()))
            }
            (None, _) => Err(SteerError::Unseen { group: group.key, why: status.rung.why.clone() }),
        }
    }
}

/// Whether it may be otherwise soon.
fn is_passing(error: &SteerError) -> bool {
    let lasts = matches!(error, SteerError::Suspicious { .. } | SteerError::NotToBorrow { .. });
    !(lasts || error.is_foreign())
}

impl Found {
    fn of(status: &GroupStatus) -> Self {
        let weighted = status.listeners.iter().filter(|it| it.weight != NORMAL_WEIGHT);
        Self {
            rung: status.rung.rung.unwrap_or(Rung::Hash),
            policy: status.steering.as_ref().filter(|it| it.in_force).and_then(|it| it.policy),
            weights: weighted.map(|it| (it.listener.served.to_string(), it.weight)).collect(),
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.rung, self.policy) {
            (Rung::Hash, _) => f.write_str("not steered")?,
            (Rung::Ebpf, Some(policy)) => write!(f, "steered, policy {policy}")?,
            (rung, _) => write!(f, "steered, rung {rung}")?,
        }
        self.weights.iter().try_for_each(|(who, weight)| write!(f, ", {who} at {weight} %"))
    }
}

/// Our place as the group's agent; free again when dropped.
#[derive(Debug)]
struct Agent {
    lock: Option<AgentLock>,
    bpffs: PathBuf,
}

impl Agent {
    fn become_of(group: &GroupKey, settings: &Settings) -> Result<Self, SteerError> {
        let bpffs = settings.bpffs.clone();
        let lock = match Pins::at(&bpffs).and_then(Pins::lock) {
            Ok(pins) => Some(pins.lock_agent(group)?),
            // Then there is no other agent either.
            Err(error) if error.is_out_of_reach() => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { lock, bpffs })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let (Some(lock), Ok(pins)) =
            (self.lock.take(), Pins::at(&self.bpffs).and_then(Pins::lock))
        {
            // An empty directory at worst, which `detach` removes.
            let _left = lock.release(&pins);
        }
    }
}

/// A target that means this group alone, and what keeps its namespace.
fn narrow(target: &Target, group: &Group) -> Result<(Target, Option<File>), SteerError> {
    let (target, netns) = target.within(&group.netns)?;
    Ok((Target { addrs: vec![group.key.address.ip()], ..target }, netns))
}
