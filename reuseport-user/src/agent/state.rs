//! What the agent knows and did, as plain data: metrics, `top` and `status` read it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reuseport_common::abi::Role;
use serde::{Deserialize, Serialize};

use super::health::slot::Cause;
use crate::model::{CpuSet, GroupKey, Netns, Pid};
use crate::plan::{role_name, role_of_name};
use crate::rungs::Choice;

/// Events that are remembered.
const EVENTS: usize = 256;
/// Groups that are remembered after they are gone.
const GONE: usize = 64;

/// How the agent learns of listeners that come and go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Watching {
    /// The kernel tells, from the functions that start and stop a listener.
    Functions,
    /// The kernel tells, from the tracepoint of TCP's changes of state.
    Tracepoint,
    /// They are listed again and again.
    Polling {
        /// Why the kernel does not tell.
        why: String,
    },
}

impl Watching {
    /// The name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Functions => "functions",
            Self::Tracepoint => "tracepoint",
            Self::Polling { .. } => "polling",
        }
    }
}

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The agent's process.
    pub pid: Pid,
    /// Seconds since the epoch when the agent started.
    pub started_at: u64,
    /// How it learns of listeners.
    pub watching: Watching,
    /// Ticks so far.
    pub ticks: u64,
    /// Those that failed for a target.
    pub failed_ticks: u64,
    /// How long the latest tick took.
    pub last_tick: Duration,
    /// The groups that it has seen, in the order of their first sight.
    pub groups: Vec<GroupState>,
    /// What happened, the latest last.
    pub events: VecDeque<Event>,
}

/// How a group fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// We steer it, on the rung that `rung` says.
    Steered,
    /// It was detached by hand, and is left alone until somebody attaches or it is started anew.
    Released,
    /// It is not steered, for a reason that its `problem` tells.
    Unsteered,
    /// It has no listener.
    Gone,
}

/// One group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupState {
    /// What sets it apart.
    pub key: GroupKey,
    /// Where it is.
    pub netns: Netns,
    /// How it fares.
    pub phase: Phase,
    /// The rung in force and why no better one, as far as it was the agent's doing.
    pub rung: Option<Choice>,
    /// Where its maps are pinned, while it is steered by eBPF. Somebody may replace what is there: the program
    /// is another then.
    pub pins: Option<PathBuf>,
    /// The program in force, while it is steered by eBPF.
    pub program_id: Option<u32>,
    /// Who sits where, while it is steered.
    pub seats: Vec<SeatState>,
    /// Attaches, and changes of the mapping.
    pub heals: u64,
    /// From a listener that came or went to the mapping that follows from it, where the kernel told.
    pub latency: Latency,
    /// Workers that a newer generation superseded.
    pub superseded: u64,
    /// Of those, the ones that got their rows back.
    pub restored: u64,
    /// What is in the way, while something is.
    pub problem: Option<String>,
    /// How its workers fare.
    pub health: HealthState,
}

/// How a group's workers fare, as last seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HealthState {
    /// Connections waiting to be accepted, by slot.
    pub queued: Vec<(u32, u32)>,
    /// Slots whose rows go to their second choices now.
    pub evicted: Vec<Evicted>,
    /// Evictions so far.
    pub evictions: Evictions,
    /// CPUs whose connections all workers share now.
    pub hot: CpuSet,
    /// Rows that were widened so far.
    pub widenings: u64,
}

impl HealthState {
    /// Nobody looks any more; what was counted stays.
    pub(super) fn unwatched(&mut self) {
        let Self { evictions, widenings, .. } = *self;
        *self = Self { evictions, widenings, ..Self::default() };
    }
}

/// Evictions by their cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evictions {
    /// See [`Cause::Stalled`].
    pub stalled: u64,
    /// See [`Cause::Full`].
    pub full: u64,
}

impl Evictions {
    pub(super) fn count(&mut self, cause: Cause) {
        match cause {
            Cause::Stalled => self.stalled += 1,
            Cause::Full => self.full += 1,
        }
    }
}

/// A slot whose worker does not accept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// The slot.
    pub slot: u32,
    /// Why.
    pub cause: Cause,
    /// For how long it has been.
    pub lasted: Duration,
}

/// A listener in its slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatState {
    /// The slot.
    pub slot: u32,
    /// The listener.
    pub cookie: u64,
    /// Who serves it; empty while nobody does.
    pub pids: Vec<Pid>,
    /// Where they may run.
    pub cpus: CpuSet,
    /// Percent of a normal share that it is to get.
    pub weight: u32,
    /// What part it takes.
    #[serde(serialize_with = "role_name", deserialize_with = "role_of_name")]
    pub role: Role,
    /// Whether it is in no entry for now: nobody serves it, or it was evicted.
    pub left_out: bool,
}

/// How long changes took, in the form of a Prometheus histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Changes that took at most as long as [`Latency::BOUNDS`] say, each in one of them.
    pub buckets: [u64; Latency::BOUNDS.len()],
    /// All of them, those beyond the last bound too.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
    /// The longest.
    pub max: Duration,
}

impl Latency {
    /// Upper bounds of the buckets.
    pub const BOUNDS: [Duration; 10] = [
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(20),
        Duration::from_millis(30),
        Duration::from_millis(50),
        Duration::from_millis(75),
        Duration::from_millis(100),
        Duration::from_millis(200),
        Duration::from_millis(500),
        Duration::from_secs(1),
    ];

    pub(super) fn add(&mut self, took: Duration) {
        if let Some(bucket) = Self::BOUNDS.iter().position(|bound| took <= *bound) {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.sum += took;
        self.max = self.max.max(took);
    }

    /// A bound that this share (0 to 1) of all changes kept; `None` where they took longer than the
    /// last, or there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let needed = (self.count as f64 * share).ceil() as u64;
        let mut within = 0;
        Self::BOUNDS.into_iter().zip(self.buckets).find_map(|(bound, count)| {
            within += count;
            (self.count > 0 && within >= needed).then_some(bound)
        })
    }
}

/// Something that the agent did or saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds since the epoch.
    pub at: u64,
    /// The group, where it is about one.
    pub group: Option<GroupKey>,
    /// What, in words.
    pub what: String,
}

impl State {
    pub(super) fn new(watching: Watching) -> Self {
        Self {
            pid: std::process::id(),
            started_at: since_epoch().as_secs(),
            watching,
            ticks: 0,
            failed_ticks: 0,
            last_tick: Duration::ZERO,
            groups: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// The group's entry; a new one where it has none.
    pub(super) fn group(&mut self, key: GroupKey, netns: &Netns) -> &mut GroupState {
        let place = self.groups.iter().position(|group| group.key == key);
        let place = place.unwrap_or_else(|| {
            let mut gone = self.groups.iter().filter(|group| group.phase == Phase::Gone);
            if let Some(oldest) = gone.nth_back(GONE - 1).map(|group| group.key) {
                self.groups.retain(|group| group.key != oldest);
            }
            self.groups.push(GroupState {
                key,
                netns: netns.clone(),
                phase: Phase::Unsteered,
                rung: None,
                pins: None,
                program_id: None,
                seats: Vec::new(),
                heals: 0,
                latency: Latency::default(),
                superseded: 0,
                restored: 0,
                problem: None,
                health: HealthState::default(),
            });
            self.groups.len() - 1
        });
        &mut self.groups[place]
    }

    /// Remembers what happened.
    pub(super) fn note(&mut self, group: Option<GroupKey>, what: String) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        let at = since_epoch().as_micros() as u64;
        self.events.push_back(Event { at, group, what });
    }
}

impl GroupState {
    /// It is not steered any more, or not yet.
    pub(super) fn unsteered(&mut self, phase: Phase, problem: Option<String>) {
        self.phase = phase;
        self.problem = problem;
        self.rung = None;
        self.pins = None;
        self.program_id = None;
        self.seats.clear();
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bounds() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantile(0.99), None);
        for _ in 0..98 {
            latency.add(Duration::from_millis(7));
        }
        latency.add(Duration::from_millis(150));
        latency.add(Duration::from_secs(2));
        assert_eq!(latency.quantile(0.5), Some(Duration::from_millis(10)));
        assert_eq!(latency.quantile(0.99), Some(Duration::from_millis(200)));
        assert_eq!(latency.quantile(1.0), None);
        assert_eq!((latency.count, latency.max), (100, Duration::from_secs(2)));
    }
}
