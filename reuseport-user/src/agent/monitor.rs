//! Looks at the workers' accept queues all the time, in a thread of its own: a tick may take longer
//! than a worker's clients should wait.
//!
//! It reads (one dump of the port's listeners, some counters), has [`Health`] judge, stores evictions
//! straight into the mapped `LOAD`, and leaves what takes another plan as advice for the next tick.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::health::skew::{Homes, Shift};
use super::health::slot::{Cause, Reading, Turn};
use super::health::{self, Health};
use super::journal::{Journal, Topic};
use reuseport_common::abi::{Policy, Role};

use super::shared::Shared;
use super::state::{Evicted, GroupState, Phase, SeatState};
use super::usage::Usage;
use crate::bpf::BpfError;
use crate::bpf::maps::Maps;
use crate::bpf::pins;
use crate::discover::{DiscoverError, Look};
use crate::model::{CpuSet, GroupKey, Protocol};
use crate::plan::{Plan, PlanError, Request, Seat, plan};
use crate::steer::Intent;
use crate::steer::attach::AttachOptions;
use crate::sys::{SyscallError, clock};
use crate::topology::{Topology, TopologyError};

/// Longest sleep: how long a group that was just attached, or the end, has to wait.
const NAP: Duration = Duration::from_millis(50);

/// Shortest sleep, whatever is due.
const REST: Duration = Duration::from_millis(1);

/// What cannot be looked at is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// A running monitor; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Monitor {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
#[derive(Debug, Default)]
struct Orders {
    stop: AtomicBool,
    widen: AtomicBool,
}

impl Monitor {
    /// Watches the groups that `shared` says are steered.
    pub(super) fn start(shared: Arc<Shared>, widen: bool) -> Result<Self, SyscallError> {
        let orders = Arc::<Orders>::default();
        let journal = Journal::new(Arc::clone(&shared));
        let told = Arc::clone(&orders);
        let rounds = Rounds { shared, journal, orders: told, groups: BTreeMap::new() };
        let thread = thread::Builder::new()
            .name("monitor".to_owned())
            .spawn(move || rounds.run())
            .map_err(|source| SyscallError { call: "clone (a thread)", source })?;
        let monitor = Self { orders, thread: Some(thread) };
        monitor.widen(widen);
        Ok(monitor)
    }

    /// Whether rows are to be shared that overload a worker.
    pub(super) fn widen(&self, widen: bool) {
        self.orders.widen.store(widen, Ordering::Relaxed);
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.orders.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic was told already.
            let _panicked = thread.join();
        }
    }
}

/// What the thread has.
struct Rounds {
    shared: Arc<Shared>,
    journal: Journal,
    orders: Arc<Orders>,
    groups: BTreeMap<GroupKey, Watched>,
}

/// A mapping, by the program and how often it was changed.
type Revision = (Option<u32>, u64);

/// One group.
struct Watched {
    revision: Revision,
    /// `None` where it cannot be looked at in this revision.
    eyes: Option<Eyes>,
    health: Health,
    due: Instant,
}

/// What a group is looked at with.
struct Eyes {
    group: GroupState,
    look: Look,
    maps: Maps,
    usage: Usage,
    /// The plan that it knows, and whether another is in force by now.
    generation: u32,
    stale: bool,
}

/// Why a group cannot be looked at.
#[derive(Debug, thiserror::Error)]
enum MonitorError {
    #[error("it is none of those that are to be kept")]
    NotKept,
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl Rounds {
    fn run(mut self) {
        while !self.orders.stop.load(Ordering::Relaxed) {
            self.follow();
            let widen = self.orders.widen.load(Ordering::Relaxed);
            let mut next = Instant::now() + NAP;
            for (key, watched) in &mut self.groups {
                if watched.due <= Instant::now() {
                    watched.poll(key, &self.shared, &mut self.journal, widen);
                }
                next = next.min(watched.due);
            }
            thread::sleep(next.saturating_duration_since(Instant::now()).max(REST));
        }
    }

    /// Takes note of groups that came, went, or have another mapping.
    fn follow(&mut self) {
        // On a lower rung there are no maps: nobody can be evicted.
        let steered = |group: &&GroupState| {
            let tcp = group.key.protocol == Protocol::Tcp;
            group.phase == Phase::Steered && tcp && group.pins.is_some()
        };
        let state = self.shared.state();
        let groups = || state.groups.iter().filter(steered);
        let is_gone = |key: &GroupKey| !groups().any(|group| group.key == *key);
        for (key, _) in self.groups.extract_if(.., |key, _| is_gone(key)) {
            self.journal.forget(&key);
        }
        let revised = |group: &&GroupState| {
            self.groups.get(&group.key).is_none_or(|watched| {
                let stale = match &watched.eyes {
                    Some(eyes) => eyes.stale,
                    None => watched.due <= Instant::now(),
                };
                stale || watched.revision != revision(group)
            })
        };
        let revised: Vec<GroupState> = groups().filter(revised).cloned().collect();
        drop(state);
        for group in revised {
            let watched = self.groups.entry(group.key).or_insert_with(|| Watched {
                revision: (None, 0),
                eyes: None,
                health: Health::default(),
                due: Instant::now(),
            });
            watched.revision = revision(&group);
            watched.due = Instant::now();
            let key = group.key;
            if let Err(error) = watched.turn_to(group, &self.shared.targets()) {
                watched.blind(&key, &error, &mut self.journal);
            }
        }
    }
}

fn revision(group: &GroupState) -> Revision {
    (group.program_id, group.heals)
}

impl Watched {
    /// Looks at a group's present mapping.
    fn turn_to(
        &mut self,
        group: GroupState,
        targets: &[AttachOptions],
    ) -> Result<(), MonitorError> {
        // The port alone does not tell: it may be kept in several namespaces, and for UDP beside TCP.
        let options = targets.iter().find(|it| it.target.means(&group.key, &group.netns));
        let (Some(directory), Some(options)) = (&group.pins, options) else {
            return Err(MonitorError::NotKept);
        };
        let maps = pins::maps(directory)?;
        let (look, usage) = match self.eyes.take() {
            Some(eyes) => (eyes.look, eyes.usage),
            None => (Look::open(&options.target, &group.netns)?, Usage::default()),
        };
        let config = maps.config()?;
        let generation = config.generation;
        let seats = seats(&group, &maps)?;
        // Where nobody serves, nothing can be shared. Who was evicted is at home still.
        let unserved = |seat: &SeatState| seat.left_out && seat.pids.is_empty();
        let served = group.seats.iter().zip(&seats).filter(|(seat, _)| !unserved(seat));
        let request = Request {
            policy: Policy::from_u32(config.live().policy).unwrap_or(options.policy),
            seats: served.map(|(_, planned)| planned.clone()).collect(),
            hot: CpuSet::default(),
        };
        let homes = shares(&plan(&Topology::read()?, &request)?);
        let watched = group.seats.iter().zip(&seats).map(|(seat, planned)| health::Seat {
            slot: seat.slot,
            cookie: seat.cookie,
            weight: match planned.role {
                Role::Active if !unserved(seat) => planned.weight,
                _ => 0,
            },
            cpus: planned.cpus.clone(),
        });
        self.health.follow(watched.collect(), homes);
        self.eyes = Some(Eyes { group, look, maps, usage, generation, stale: false });
        Ok(())
    }

    /// Looks once, and does what follows from it.
    fn poll(&mut self, key: &GroupKey, shared: &Shared, journal: &mut Journal, widen: bool) {
        let Some(eyes) = &mut self.eyes else { return };
        let now = clock::monotonic();
        self.due = Instant::now() + self.health.pause(now);
        if let Err(error) = eyes.poll(&mut self.health, now, shared, journal, widen) {
            self.blind(key, &error, journal);
        }
    }

    fn blind(&mut self, key: &GroupKey, error: &MonitorError, journal: &mut Journal) {
        let what = format!("its workers cannot be watched: {error}");
        journal.say(Topic::Problem, Some(*key), what);
        self.eyes = None;
        self.due = Instant::now() + RETRY;
    }
}

impl Eyes {
    fn poll(
        &mut self,
        health: &mut Health,
        now: Duration,
        shared: &Shared,
        journal: &mut Journal,
        widen: bool,
    ) -> Result<(), MonitorError> {
        let key = self.group.key;
        let readings = self.read()?;
        let turns = health.poll(now, &readings);
        let evicted: Vec<Evicted> = health
            .evicted()
            .map(|(slot, cause, since)| Evicted { slot, cause, lasted: now.saturating_sub(since) })
            .collect();
        for slot in readings.keys() {
            let out = evicted.iter().any(|it| it.slot == *slot);
            // Not only when it turns: a slot may have been left evicted by an agent that was killed,
            // or its word zeroed by an attach.
            if self.maps.load(*slot).is_evicted() != out {
                self.maps.set_evicted(*slot, out);
            }
        }
        let mut shifts = Vec::new();
        if health.window_is_over(now) {
            let mut selections = Vec::new();
            for slot in readings.keys() {
                self.maps.selections(*slot, &mut selections)?;
            }
            shifts = health.close_window(now, selections, || self.usage.since_last());
            self.stale = self.maps.config()?.generation != self.generation;
        }
        let mut advice = health.advice(now);
        if !widen {
            advice.hot = CpuSet::default();
            shifts.clear();
        }
        let turned = turns.iter().map(|(slot, turn)| self.tell(*slot, turn));
        for what in turned.chain(shifts.iter().map(tell_shift)) {
            journal.say(Topic::Health, Some(key), what);
        }
        let mut state = shared.state();
        if let Some(group) = state.groups.iter_mut().find(|group| group.key == key) {
            let health = &mut group.health;
            let is_widening = |shift: &&Shift| matches!(shift, Shift::Widened { .. });
            for (_, turn) in &turns {
                if let Turn::Evicted { cause, .. } = turn {
                    health.evictions.count(*cause);
                }
            }
            health.widenings += shifts.iter().filter(is_widening).count() as u64;
            health.evicted = evicted;
            health.hot = advice.hot.clone();
            health.queued = readings.iter().map(|(slot, it)| (*slot, it.queued)).collect();
        }
        drop(state);
        shared.advise(key, advice);
        Ok(())
    }

    /// Readings by slot; sockets that are gone have none.
    fn read(&mut self) -> Result<BTreeMap<u32, Reading>, MonitorError> {
        let mut readings = BTreeMap::new();
        for queue in self.look.queues(&self.group.key.address)? {
            let Some(seat) = self.group.seats.iter().find(|seat| seat.cookie == queue.cookie)
            else {
                continue;
            };
            let mut by_cpu = Vec::new();
            if queue.queued > 0 {
                self.maps.selections(seat.slot, &mut by_cpu)?;
            }
            let selections = by_cpu.iter().sum();
            let reading = Reading { queued: queue.queued, backlog: queue.backlog, selections };
            readings.insert(seat.slot, reading);
        }
        Ok(readings)
    }

    fn tell(&self, slot: u32, turn: &Turn) -> String {
        let seat = self.group.seats.iter().find(|seat| seat.slot == slot);
        let pids: Vec<String> =
            seat.iter().flat_map(|seat| &seat.pids).map(ToString::to_string).collect();
        let who = match &pids[..] {
            [] => format!("slot {slot} (nobody serves it)"),
            pids => format!("slot {slot} (process {})", pids.join(", ")),
        };
        match turn {
            Turn::Evicted { cause: Cause::Stalled, after, queued } => format!(
                "{who} evicted: it has accepted next to nothing for {after:.0?}, {queued} wait"
            ),
            Turn::Evicted { cause: Cause::Full, after, queued } => format!(
                "{who} evicted: its accept queue has been nearly full for {after:.0?}, {queued} wait"
            ),
            Turn::Restored { after } => format!("{who} accepts again, restored after {after:.1?}"),
        }
    }
}

fn tell_shift(shift: &Shift) -> String {
    match shift {
        Shift::Widened { cpu, share, slot } => format!(
            "row of CPU {cpu} widened: {:.0} % of all connections arrive there, too many for slot \
             {slot} while others idle",
            share * 100.0
        ),
        Shift::Narrowed { cpu, after } => format!("row of CPU {cpu} narrowed after {after:.1?}"),
    }
}

/// The seats as a plan takes them, in the group's order.
fn seats(group: &GroupState, maps: &Maps) -> Result<Vec<Seat>, BpfError> {
    let states = maps.seats()?;
    let seat = |seat: &SeatState| {
        let state = states.get(seat.slot as usize).copied().unwrap_or_default();
        let Intent { weight, role, home } = Intent::of(&state, seat.cookie);
        // Where it cannot be seen who serves it, the last plan tells.
        let cpus =
            if seat.cpus.is_empty() { home.into_iter().collect() } else { seat.cpus.clone() };
        Seat { slot: seat.slot, cpus, weight, role }
    };
    Ok(group.seats.iter().map(seat).collect())
}

/// What a plan gives each slot of each CPU's connections.
fn shares(plan: &Plan) -> Homes {
    let mut homes = Homes::new();
    for row in &plan.rows_explained {
        if homes.len() <= row.cpu as usize {
            homes.resize(row.cpu as usize + 1, Vec::new());
        }
        let share = |entries: u32| f64::from(entries) / f64::from(plan.lanes);
        homes[row.cpu as usize] =
            row.shares.iter().map(|it| (it.slot, share(it.entries))).collect();
    }
    homes
}
