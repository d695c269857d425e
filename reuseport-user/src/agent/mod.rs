//! The agent: keeps groups steered while workers come, go, move and die.
//!
//! Steering does not need it: it goes on when the agent is killed, and the next one takes over where
//! it stopped. All there is to it is one function, a *tick* (`keeper`): look at what is, compare it
//! with what is in force, change what differs. What happens in between only decides when the next
//! tick is due (`pace`): a worker's death (`wakes`), listeners that come or go, somebody who asks,
//! or nothing for a while.
//!
//! Others in the agent's process (metrics, health) have [`Shared`]: what the agent knows, and a place
//! to leave advice for the next plan.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod below;
mod climb;
mod generations;
pub mod health;
mod journal;
mod keeper;
mod kept;
mod monitor;
mod note;
mod pace;
mod recall;
mod shared;
mod sight;
pub mod state;
mod usage;
mod wakes;

pub use crate::discover::overrides::NamedWorker;
pub use shared::Shared;
pub use state::State;
pub use wakes::Waker;

use self::journal::{Journal, Topic};
use self::keeper::Keeper;
use self::monitor::Monitor;
use self::pace::{Pace, SPACING};
use self::state::Watching;
use self::wakes::{Wake, Wakes};
use crate::bpf::BpfError;
use crate::bpf::watch::{Hook, Watch};
use crate::discover::DiscoverError;
use crate::discover::acquire::AcquireError;
use crate::steer::SteerError;
use crate::steer::attach::AttachOptions;
use crate::sys::SyscallError;

/// A target, and how to steer it.
#[derive(Clone, Debug)]
pub struct Goal {
    /// As `attach` takes it.
    pub attach: AttachOptions,
    /// Workers whose CPUs are told, by their names.
    pub workers: Vec<NamedWorker>,
}

/// What to keep, and how.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The targets; none twice.
    pub goals: Vec<Goal>,
    /// Between ticks when nothing happens.
    pub interval: Duration,
    /// How long a newer generation may take to replace the older one.
    pub generation_timeout: Duration,
    /// Give the groups back to the kernel's hash at the end.
    pub detach_on_exit: bool,
    /// Evict workers that do not accept.
    pub spill: bool,
    /// Beside that, share rows that overload a worker while others idle.
    pub widen: bool,
}

/// What may be asked of a running agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// To end.
    Stop,
    /// To go on with other options.
    Reload,
}

/// What an agent says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It keeps its targets.
    Ready,
    /// It still does: said at least as often as [`Supervisor::patience`] asks for.
    Alive,
    /// It was ordered to reload.
    Reloading,
    /// It was ordered to stop.
    Stopping,
}

/// Whoever started the agent, gives it orders, and wants to know how it fares.
pub trait Supervisor {
    /// The next order, if there is one. Wake the agent ([`Shared::waker`]) when there is.
    fn order(&mut self) -> Option<Order>;

    /// The options that it is to go on with, or why the ones it has should stay.
    fn reload(&mut self) -> Result<AgentOptions, String>;

    /// Takes in what the agent says.
    fn tell(&mut self, stage: Stage);

    /// How often to hear that it is alive.
    fn patience(&self) -> Option<Duration>;
}

/// An agent, not running yet.
pub struct Agent {
    keepers: Vec<Keeper>,
    pace: Pace,
    wakes: Wakes,
    shared: Arc<Shared>,
    journal: Journal,
    detach_on_exit: bool,
    monitor: Option<Monitor>,
}

impl Agent {
    /// Makes one; nothing is changed yet.
    pub fn new(mut options: AgentOptions) -> Result<Self, SyscallError> {
        let (mut wakes, waker) = Wakes::new()?;
        let watching = watch(&ports(&options.goals), &mut wakes);
        let shared = Arc::new(Shared::new(waker, watching));
        let goals = std::mem::take(&mut options.goals);
        shared.keep(goals.iter().map(|goal| goal.attach.clone()).collect());
        let monitor = monitor(&options, &shared)?;
        Ok(Self {
            keepers: goals.into_iter().map(|goal| Keeper::new(goal, &options)).collect(),
            pace: Pace::new(options.interval),
            wakes,
            journal: Journal::new(Arc::clone(&shared)),
            shared,
            detach_on_exit: options.detach_on_exit,
            monitor,
        })
    }

    /// What it shares with other threads.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Runs until it is told to stop. Steering stays when it ends, unless it is to detach.
    ///
    /// What stands in the way at the first tick and does not go away by itself is an error; later it
    /// is told, and tried again.
    pub fn run(mut self, supervisor: &mut dyn Supervisor) -> Result<(), SteerError> {
        let watching = match &self.shared.state().watching {
            Watching::Functions => "the kernel tells of listeners that come and go".to_owned(),
            Watching::Tracepoint => {
                "the kernel tells of listeners that come and go, by a tracepoint".to_owned()
            }
            Watching::Polling { why } => {
                format!("listeners are looked at every {SPACING:?}: {why}")
            }
        };
        self.journal.say(Topic::Agent, None, watching);
        let mut outcome = self.keep(supervisor);
        supervisor.tell(Stage::Stopping);
        // Before anything is given back: evictions are stored into maps that are in force.
        self.monitor = None;
        for keeper in std::mem::take(&mut self.keepers) {
            outcome = outcome.and(self.let_go(keeper));
        }
        outcome
    }

    /// Ticks until it is told to stop.
    fn keep(&mut self, supervisor: &mut dyn Supervisor) -> Result<(), SteerError> {
        self.tick(true)?;
        self.journal.say(Topic::Agent, None, "ready".to_owned());
        supervisor.tell(Stage::Ready);
        let patience = supervisor.patience().unwrap_or(Duration::MAX);
        loop {
            match supervisor.order() {
                Some(Order::Stop) => break,
                Some(Order::Reload) => self.reload(supervisor),
                None => {}
            }
            supervisor.tell(Stage::Alive);
            let now = Instant::now();
            let due = self.pace.due(now);
            if due <= now {
                self.tick(false)?;
            } else if self.wait(patience.min(due - now))? {
                self.pace.event(Instant::now());
            }
        }
        self.journal.say(Topic::Agent, None, "told to stop".to_owned());
        Ok(())
    }

    /// Keeps a target no longer. Nobody may watch its workers any more.
    fn let_go(&mut self, mut keeper: Keeper) -> Result<(), SteerError> {
        if !self.detach_on_exit {
            keeper.unwatch(&self.shared, &mut self.journal);
        }
        keeper.stop(self.detach_on_exit, &mut self.journal)
    }

    /// Waits for something to happen, at most as long as `pause`; says whether anything did that a tick
    /// should answer.
    fn wait(&mut self, pause: Duration) -> Result<bool, SteerError> {
        let polls = matches!(self.shared.state().watching, Watching::Polling { .. });
        let pause = if polls { pause.min(SPACING) } else { pause };
        let mut matters = false;
        for wake in self.wakes.wait(pause).map_err(DiscoverError::from)? {
            for keeper in &mut self.keepers {
                matters |= match &wake {
                    Wake::Asked => true,
                    Wake::Died(pid) => keeper.mourn(*pid),
                    Wake::Changed(change) => keeper.hear(change),
                };
            }
        }
        if polls {
            for keeper in &mut self.keepers {
                matters |= keeper.glance();
            }
        }
        Ok(matters)
    }

    /// Goes on with other options, where they are any good.
    fn reload(&mut self, supervisor: &mut dyn Supervisor) {
        supervisor.tell(Stage::Reloading);
        let line = match supervisor.reload() {
            Ok(options) => {
                self.adopt(options);
                (Topic::Agent, "reloaded".to_owned())
            }
            Err(why) => (Topic::Problem, format!("not reloaded, all stays as it is: {why}")),
        };
        self.journal.say(line.0, None, line.1);
        supervisor.tell(Stage::Ready);
    }

    fn adopt(&mut self, mut options: AgentOptions) {
        self.detach_on_exit = options.detach_on_exit;
        let mut before = std::mem::take(&mut self.keepers);
        let watched = ports(&options.goals);
        for goal in std::mem::take(&mut options.goals) {
            let place = before.iter().position(|it| *it.target() == goal.attach.target);
            let keeper = match place.map(|place| before.swap_remove(place)) {
                Some(mut keeper) => {
                    keeper.adopt(goal, &options, &self.shared);
                    keeper
                }
                None => Keeper::new(goal, &options),
            };
            self.keepers.push(keeper);
        }
        // Whose workers it watches goes by the groups, which change now.
        if !options.spill || !before.is_empty() {
            self.monitor = None;
        }
        for keeper in before {
            if let Err(error) = self.let_go(keeper) {
                self.journal.say(Topic::Problem, None, error.to_string());
            }
        }
        let kept = self.keepers.iter().map(|keeper| keeper.options().clone()).collect();
        for group in self.shared.keep(kept) {
            self.journal.forget(&group);
        }
        match &self.monitor {
            Some(monitor) => monitor.widen(options.widen),
            None => match monitor(&options, &self.shared) {
                Ok(monitor) => self.monitor = monitor,
                Err(error) => {
                    let what = format!("nobody watches the workers: {error}");
                    self.journal.say(Topic::Problem, None, what);
                }
            },
        }
        if let Err(error) = self.wakes.listen_to(&watched) {
            self.journal.say(Topic::Problem, None, error.to_string());
        }
        self.pace.set_interval(options.interval);
        self.pace.event(Instant::now());
    }

    /// Ticks every target.
    fn tick(&mut self, first: bool) -> Result<(), SteerError> {
        let began = Instant::now();
        let (mut settled, mut failed) = (true, 0);
        for keeper in &mut self.keepers {
            let report = keeper.tick(&self.shared, &mut self.journal);
            settled &= report.settled;
            match report.failure {
                Some(error) if first && !may_pass(&error) => return Err(error),
                Some(_) => failed += 1,
                None => {}
            }
        }
        if self.monitor.is_none() {
            for keeper in &mut self.keepers {
                keeper.unwatch(&self.shared, &mut self.journal);
            }
        }
        let workers: BTreeSet<_> = self.keepers.iter().flat_map(Keeper::workers).collect();
        self.wakes.follow(&workers);
        let now = Instant::now();
        self.pace.ticked(now, settled);
        let mut state = self.shared.state();
        state.ticks += 1;
        state.failed_ticks += failed;
        state.last_tick = now - began;
        Ok(())
    }
}

/// Starts to watch the workers, where that is asked for.
fn monitor(options: &AgentOptions, shared: &Arc<Shared>) -> Result<Option<Monitor>, SyscallError> {
    let start = || Monitor::start(Arc::clone(shared), options.widen);
    options.spill.then(start).transpose()
}

fn ports(goals: &[Goal]) -> BTreeSet<u16> {
    goals.iter().map(|goal| goal.attach.target.port).collect()
}

/// Has the kernel tell of listeners on these ports, where it does.
fn watch(ports: &BTreeSet<u16>, wakes: &mut Wakes) -> Watching {
    let started = Watch::start(ports).and_then(|watch| {
        let hook = watch.hook;
        wakes.hear(watch).map_err(BpfError::from)?;
        Ok(hook)
    });
    match started {
        Ok(Hook::Functions) => Watching::Functions,
        Ok(Hook::Tracepoint) => Watching::Tracepoint,
        Err(error) => Watching::Polling { why: error.to_string() },
    }
}

/// Whether what stands in the way may go away by itself: a server that starts, stops or changes.
fn may_pass(error: &SteerError) -> bool {
    match error {
        SteerError::Discover(error) => matches!(
            error,
            DiscoverError::NobodyListens { .. }
                | DiscoverError::AddressNotFound { .. }
                | DiscoverError::NoHolder { .. }
        ),
        SteerError::Acquire(error) => {
            error.is_gone()
                || matches!(
                    error,
                    AcquireError::NoHolder { .. } | AcquireError::NotReuseport { .. }
                )
        }
        SteerError::GroupOfOne { .. }
        | SteerError::UnknownWorkers { .. }
        | SteerError::Foreign { .. }
        | SteerError::Kin { .. }
        | SteerError::Vanished { .. } => true,
        _ => false,
    }
}
