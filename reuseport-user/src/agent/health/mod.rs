//! Spill, eviction and auto-widening: which workers are well, and which rows should be shared.
//!
//! Pure: fed with what was read of the kernel and when, it says what to change. Locality first, but
//! a worker that stopped accepting must not hold its CPU's clients hostage ([`slot`]), and where all
//! packets arrive on one CPU its worker must not work alone ([`skew`]).
//!
//! To evict a slot is one store into `LOAD`: the program then takes the second choice of its rows, if
//! that has room. What outlasts [`LASTING`], or befalls several slots at once, is worth a new plan,
//! in which every row has two choices that are well. Both come back with hysteresis.

use std::collections::BTreeMap;
use std::time::Duration;

use super::shared::Advice;
use crate::model::{Cpu, CpuSet};

mod backoff;
pub mod skew;
pub mod slot;

use skew::{Homes, SeatWindow, Shift, Skew, WINDOW, Window};
use slot::{Cause, Reading, Room, Slot, Turn};

/// An eviction that outlasts this is planned around.
pub const LASTING: Duration = Duration::from_secs(1);

/// Between polls while there is traffic: three of them must see a worker stall.
pub const BUSY_POLL: Duration = Duration::from_millis(10);

/// Between polls without traffic. Whoever stopped accepting before it came back must still be
/// noticed within 100 ms of the first connection, of which a busy machine takes its part.
pub const IDLE_POLL: Duration = Duration::from_millis(30);

/// Without traffic for as long as this, a group is idle.
const IDLE: Duration = Duration::from_secs(1);

/// A seat to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its slot.
    pub slot: u32,
    /// The socket that sits there: another one is another worker.
    pub cookie: u64,
    /// Its weight; 0 for one that gets nothing new.
    pub weight: u32,
    /// CPUs that its worker may run on.
    pub cpus: CpuSet,
}

/// The health of one group.
#[derive(Debug, Default)]
pub struct Health {
    seats: BTreeMap<u32, (Seat, Slot)>,
    homes: Homes,
    skew: Skew,
    window: Option<Opened>,
    traffic: Option<Duration>,
}

/// A window that is being counted.
#[derive(Debug)]
struct Opened {
    at: Duration,
    /// Selections by receiving CPU when it was opened.
    before: Vec<u64>,
    polls: u32,
    /// Polls that found connections waiting, by slot.
    waiting: BTreeMap<u32, u32>,
}

impl Health {
    /// Watches these seats from now on. Who sat there before keeps its history.
    ///
    /// `homes` is the plan without any widened row; empty for a policy that knows no CPUs, of which
    /// none is ever widened.
    pub fn follow(&mut self, seats: Vec<Seat>, homes: Homes) {
        let mut before = std::mem::take(&mut self.seats);
        let keep = |seat: Seat| {
            let slot = before.remove(&seat.slot).filter(|(old, _)| old.cookie == seat.cookie);
            (seat.slot, (seat, slot.map(|(_, slot)| slot).unwrap_or_default()))
        };
        self.seats = seats.into_iter().map(keep).collect();
        self.homes = homes;
    }

    /// Takes in a poll of the accept queues: readings by slot. Says whom to evict and to restore.
    ///
    /// A slot without a reading has lost its socket: nothing can be said of it.
    pub fn poll(&mut self, now: Duration, readings: &BTreeMap<u32, Reading>) -> Vec<(u32, Turn)> {
        for (slot, (_, state)) in &mut self.seats {
            let Some(reading) = readings.get(slot) else { continue };
            state.observe(now, *reading);
            if state.is_waiting() {
                self.traffic = Some(now);
                if let Some(window) = &mut self.window {
                    *window.waiting.entry(*slot).or_default() += 1;
                }
            }
        }
        if let Some(window) = &mut self.window {
            window.polls += 1;
        }
        let mut turns = Vec::new();
        for slot in readings.keys().copied() {
            let others = self.seats.iter().filter(|(other, (seat, _))| {
                **other != slot && seat.weight > 0 && readings.contains_key(other)
            });
            let room = others.map(|(_, (_, state))| state.room(now)).max().unwrap_or(Room::None);
            let Some((_, state)) = self.seats.get_mut(&slot) else { continue };
            turns.extend(state.turn(now, room).map(|turn| (slot, turn)));
        }
        turns
    }

    /// Whether it is time for [`Health::close_window`].
    pub fn window_is_over(&self, now: Duration) -> bool {
        self.window.as_ref().is_none_or(|window| now.saturating_sub(window.at) >= WINDOW)
    }

    /// Takes in selections so far by receiving CPU, at the end of a window and the beginning of the
    /// next. Says which rows to widen and to narrow.
    ///
    /// `busy` gives the share of each CPU's time that was used since it was last called about a
    /// window ago, where that is so; it is called where that matters only.
    pub fn close_window(
        &mut self,
        now: Duration,
        selections: Vec<u64>,
        busy: impl FnOnce() -> Option<Vec<f64>>,
    ) -> Vec<Shift> {
        let next = Opened { at: now, before: selections, polls: 0, waiting: BTreeMap::new() };
        let Some(over) = self.window.replace(next) else { return Vec::new() };
        let after = self.window.iter().flat_map(|window| &window.before);
        let before = over.before.iter().chain(std::iter::repeat(&0));
        // Counters of a slot begin anew with its next socket.
        let arrivals: Vec<u64> = after.zip(before).map(|(a, b)| a.saturating_sub(*b)).collect();
        if arrivals.iter().any(|count| *count > 0) {
            self.traffic = Some(now);
        }
        if self.homes.is_empty() {
            return Vec::new();
        }
        let cause = |state: &Slot| state.evicted().map(|(cause, _)| cause);
        let seats = self.seats.values().map(|(seat, state)| SeatWindow {
            slot: seat.slot,
            weight: if cause(state) == Some(Cause::Stalled) { 0 } else { seat.weight },
            full: cause(state) == Some(Cause::Full),
            waiting: f64::from(over.waiting.get(&seat.slot).copied().unwrap_or(0))
                / f64::from(over.polls.max(1)),
            busy: None,
        });
        let span = now.saturating_sub(over.at);
        let mut window = Window { span, arrivals, seats: seats.collect() };
        if self.skew.suspects(&window, &self.homes)
            && let Some(busy) = busy()
        {
            for seat in &mut window.seats {
                let cpus = self.seats.get(&seat.slot).map(|(seat, _)| &seat.cpus);
                seat.busy = cpus.and_then(|cpus| idlest(cpus, &busy));
            }
        }
        self.skew.observe(now, &window, &self.homes)
    }

    /// What the plan in force should be made with. It is worth a new one when it changes.
    pub fn advice(&self, now: Duration) -> Advice {
        let evicted: Vec<(u32, Duration)> = self
            .seats
            .iter()
            .filter_map(|(slot, (_, state))| Some((*slot, state.evicted()?.1)))
            .collect();
        let lasting = |since: Duration| now.saturating_sub(since) >= LASTING;
        let several = evicted.len() > 1;
        let out = evicted.into_iter().filter(|(_, since)| several || lasting(*since));
        Advice { out: out.map(|(slot, _)| slot).collect(), hot: self.skew.hot() }
    }

    /// Slots that are evicted, why and since when.
    pub fn evicted(&self) -> impl Iterator<Item = (u32, Cause, Duration)> + '_ {
        let evicted = |(slot, (_, state)): (&u32, &(Seat, Slot))| {
            state.evicted().map(|(cause, since)| (*slot, cause, since))
        };
        self.seats.iter().filter_map(evicted)
    }

    /// How long to wait before the next poll.
    pub fn pause(&self, now: Duration) -> Duration {
        let busy = self.traffic.is_some_and(|at| now.saturating_sub(at) < IDLE)
            || self.seats.values().any(|(_, state)| state.evicted().is_some());
        if busy { BUSY_POLL } else { IDLE_POLL }
    }
}

/// The least that any of `cpus` was used.
fn idlest(cpus: &CpuSet, busy: &[f64]) -> Option<f64> {
    let used = |cpu: Cpu| busy.get(cpu as usize).copied();
    cpus.iter().filter_map(used).min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests;
