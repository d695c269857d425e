//! Auto-widening: which rows are shared by all workers, because their own has too much while others
//! idle.
//!
//! Steering by CPU is only as even as the receive side. Where most packets arrive on one CPU (one RX
//! queue, one client on the same machine), its worker does all the work and the kernel's hash would
//! do better. The cure is local: the rows that overload a worker are spread, all others stay.
//!
//! Loads are compared as the plan means them: what every seat would get of the connections of each
//! CPU. That can be told whether rows are widened or not, so the cure does not hide the disease. To
//! widen takes distress besides, and others who could relieve it. A queue that is full while others
//! have room is both at once: without more workers for its rows it would be evicted again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::backoff::Backoff;
use crate::model::{Cpu, CpuSet};

/// How long connections are counted before they are judged.
pub const WINDOW: Duration = Duration::from_millis(100);

/// Fewer connections in a window than this overload nobody.
const LEAST: f64 = 10.0;

/// Windows in a row that must find a row hot.
const WINDOWS: u32 = 3;

/// Of its fair share, what a worker must have to be overloaded; what one may have to be idle; what
/// narrowing a row may give its worker.
const OVERLOAD: f64 = 1.5;
const UNDERLOAD: f64 = 0.75;
const BALANCE: f64 = 1.25;

/// Of the polls, what must find connections waiting for a worker that is overloaded, and may find
/// some for one that is not.
const WAITING: f64 = 0.5;
const SELDOM: f64 = 0.2;

/// Of a CPU's time, what is used where it is saturated, and at most where it idles.
const SATURATED: f64 = 0.75;
const IDLE: f64 = 0.5;

/// How long a row must be balanced before it is narrowed, and the most that relapses make of it.
const HOLD: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(2));

/// A seat over one window.
#[derive(Clone, Debug)]
pub struct SeatWindow {
    /// Its slot.
    pub slot: u32,
    /// Its weight; 0 for one that gets nothing new, also because it has stalled.
    pub weight: u32,
    /// Whether it is evicted because its queue was full while others had room.
    pub full: bool,
    /// Of the polls, the share that found connections waiting.
    pub waiting: f64,
    /// Of the time of the idlest CPU that its worker may run on, the share that was used; `None`
    /// where that is not known.
    pub busy: Option<f64>,
}

/// What happened in one window.
#[derive(Clone, Debug)]
pub struct Window {
    /// How long it was.
    pub span: Duration,
    /// Selections by receiving CPU.
    pub arrivals: Vec<u64>,
    /// The seats.
    pub seats: Vec<SeatWindow>,
}

/// Who would get a CPU's connections if no row were widened: by CPU, slots and their shares of it.
pub type Homes = Vec<Vec<(u32, f64)>>;

/// A change of the set of widened rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shift {
    /// All workers share the connections of this CPU.
    Widened {
        /// The CPU.
        cpu: Cpu,
        /// Its share of all connections.
        share: f64,
        /// The slot of its worker, which has too much.
        slot: u32,
    },
    /// Its own worker gets them again.
    Narrowed {
        /// The CPU.
        cpu: Cpu,
        /// For how long it had been widened.
        after: Duration,
    },
}

#[derive(Clone, Debug)]
struct Row {
    /// Windows in a row that found it hot.
    hot: u32,
    widened: Option<Widened>,
    backoff: Backoff,
}

impl Default for Row {
    fn default() -> Self {
        Self { hot: 0, widened: None, backoff: Backoff::new(HOLD.0, HOLD.1) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Widened {
    since: Duration,
    /// Connections per second then.
    rate: f64,
    balanced: Option<Duration>,
}

/// The rows of one group.
#[derive(Clone, Debug, Default)]
pub struct Skew {
    rows: BTreeMap<Cpu, Row>,
}

impl Skew {
    /// Rows that are widened.
    pub fn hot(&self) -> CpuSet {
        let hot = |(cpu, row): (&Cpu, &Row)| row.widened.map(|_| *cpu);
        self.rows.iter().filter_map(hot).collect()
    }

    /// Whether it takes the CPUs' use of their time to tell if a worker is overloaded.
    pub fn suspects(&self, window: &Window, homes: &Homes) -> bool {
        let loads = Loads::new(window, homes, &self.hot());
        loads.total() >= LEAST && loads.overloaded().next().is_some()
    }

    /// Judges a window.
    pub fn observe(&mut self, now: Duration, window: &Window, homes: &Homes) -> Vec<Shift> {
        let mut loads = Loads::new(window, homes, &self.hot());
        let mut shifts = self.narrow(now, &mut loads);
        shifts.extend(self.widen(now, &loads));
        self.rows
            .retain(|_, row| row.widened.is_some() || row.hot > 0 || row.backoff.remembers(now));
        shifts
    }

    /// Gives back rows that their workers could take for long enough, the quietest first.
    fn narrow(&mut self, now: Duration, loads: &mut Loads<'_>) -> Vec<Shift> {
        let mut widened: Vec<Cpu> = self.hot().iter().collect();
        widened.sort_by(|a, b| loads.arrivals(*a).total_cmp(&loads.arrivals(*b)));
        let mut shifts = Vec::new();
        for cpu in widened {
            let Some(row) = self.rows.get_mut(&cpu) else { continue };
            let Some(state) = &mut row.widened else { continue };
            let faded = loads.rate(cpu) < state.rate / 2.0;
            if loads.homes_are_full(cpu) || !(faded || loads.could_narrow(cpu)) {
                state.balanced = None;
                continue;
            }
            let since = *state.balanced.get_or_insert(now);
            if now.saturating_sub(since) >= row.backoff.hold() {
                shifts.push(Shift::Narrowed { cpu, after: now.saturating_sub(state.since) });
                row.widened = None;
                row.backoff.release(now);
                loads.narrow(cpu);
            }
        }
        shifts
    }

    /// Spreads the rows that have overloaded a worker for some windows, at once where its queue is
    /// full already.
    fn widen(&mut self, now: Duration, loads: &Loads<'_>) -> Vec<Shift> {
        let found = loads.hot_rows();
        for (cpu, row) in &mut self.rows {
            if !found.contains_key(cpu) {
                row.hot = 0;
            }
        }
        let mut shifts = Vec::new();
        for (cpu, seat) in found {
            let row = self.rows.entry(cpu).or_default();
            row.hot += 1;
            if row.hot >= WINDOWS || seat.full {
                row.hot = 0;
                row.backoff.trip(now);
                row.widened = Some(Widened { since: now, rate: loads.rate(cpu), balanced: None });
                let share = loads.arrivals(cpu) / loads.total();
                shifts.push(Shift::Widened { cpu, share, slot: seat.slot });
            }
        }
        shifts
    }
}

/// What every seat gets, if all rows are as they are planned at home and if some are widened.
struct Loads<'a> {
    window: &'a Window,
    homes: &'a Homes,
    /// Rows that all share.
    wide: CpuSet,
    /// By the window's seats.
    seats: Vec<Load>,
}

/// One seat's connections in a window.
#[derive(Clone, Copy)]
struct Load {
    /// With every row at home.
    home: f64,
    /// With the rows widened that are.
    now: f64,
    /// Its part of all.
    fair: f64,
}

impl<'a> Loads<'a> {
    fn new(window: &'a Window, homes: &'a Homes, wide: &CpuSet) -> Self {
        let mut loads = Self { window, homes, wide: wide.clone(), seats: Vec::new() };
        loads.add_up();
        loads
    }

    fn add_up(&mut self) {
        let weight = |seat: &SeatWindow| f64::from(seat.weight);
        let weights: f64 = self.window.seats.iter().map(weight).sum();
        let load = |seat: &SeatWindow| {
            let part = weight(seat) / weights.max(1.0);
            let mut load = Load { home: 0.0, now: 0.0, fair: part * self.total() };
            for cpu in self.cpus() {
                let home = self.home_share(cpu, seat.slot);
                load.home += home * self.arrivals(cpu);
                let share = if self.wide.contains(cpu) { part } else { home };
                load.now += share * self.arrivals(cpu);
            }
            load
        };
        self.seats = self.window.seats.iter().map(load).collect();
    }

    fn cpus(&self) -> std::ops::Range<Cpu> {
        0..self.window.arrivals.len() as Cpu
    }

    /// The share of a CPU's connections that are a slot's at home.
    fn home_share(&self, cpu: Cpu, slot: u32) -> f64 {
        let row = self.homes.get(cpu as usize).map(Vec::as_slice).unwrap_or_default();
        row.iter().filter(|(owner, _)| *owner == slot).map(|(_, share)| share).sum()
    }

    fn total(&self) -> f64 {
        self.window.arrivals.iter().sum::<u64>() as f64
    }

    fn arrivals(&self, cpu: Cpu) -> f64 {
        self.window.arrivals.get(cpu as usize).copied().unwrap_or(0) as f64
    }

    /// Connections of a CPU per second.
    fn rate(&self, cpu: Cpu) -> f64 {
        self.arrivals(cpu) / self.window.span.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Seats that would have much more than their part if every row were at home.
    fn overloaded(&self) -> impl Iterator<Item = (&SeatWindow, &Load)> {
        let seats = self.window.seats.iter().zip(&self.seats);
        seats.filter(|(seat, load)| seat.weight > 0 && load.home >= load.fair * OVERLOAD)
    }

    /// Workers that have less than their part and seldom anything waiting.
    fn underloaded(&self) -> impl Iterator<Item = &SeatWindow> {
        let seats = self.window.seats.iter().zip(&self.seats);
        let free = |(seat, load): &(&SeatWindow, &Load)| {
            seat.weight > 0 && seat.waiting <= SELDOM && load.now <= load.fair * UNDERLOAD
        };
        seats.filter(free).map(|(seat, _)| seat)
    }

    /// Whether a seat that has too much is in distress that others could relieve: its queue is full;
    /// or its connections wait while others' do not; or its CPU is saturated while another idles.
    fn in_distress(&self, seat: &SeatWindow) -> bool {
        let saturated = seat.busy.is_some_and(|busy| busy >= SATURATED);
        let idles = |it: &SeatWindow| it.busy.is_none_or(|busy| busy <= IDLE);
        seat.full
            || (seat.waiting >= WAITING && self.underloaded().next().is_some())
            || (saturated && self.underloaded().any(idles))
    }

    /// The fewest rows to widen so that nobody in distress keeps more than its part, the busiest
    /// ones; and for each the seat that has too much.
    fn hot_rows(&self) -> BTreeMap<Cpu, &SeatWindow> {
        let mut hot = BTreeMap::new();
        if self.total() < LEAST {
            return hot;
        }
        for (seat, load) in self.overloaded().filter(|(seat, _)| self.in_distress(seat)) {
            let flow = |cpu| self.arrivals(cpu) * self.home_share(cpu, seat.slot);
            let (wide, narrow): (Vec<Cpu>, Vec<Cpu>) = self
                .cpus()
                .filter(|cpu| flow(*cpu) > 0.0)
                .partition(|cpu| self.wide.contains(*cpu));
            let mut left = load.home - wide.into_iter().map(flow).sum::<f64>();
            let mut busiest: Vec<(f64, Cpu)> =
                narrow.into_iter().map(|cpu| (flow(cpu), cpu)).collect();
            busiest.sort_by(|a, b| b.0.total_cmp(&a.0));
            for (flow, cpu) in busiest {
                if left <= load.fair {
                    break;
                }
                left -= flow;
                hot.insert(cpu, seat);
            }
        }
        hot
    }

    /// Whether the row's own workers could take it back without having too much.
    fn could_narrow(&self, cpu: Cpu) -> bool {
        let arrivals = self.arrivals(cpu);
        self.window.seats.iter().zip(&self.seats).all(|(seat, load)| {
            let share = self.home_share(cpu, seat.slot);
            let wide = arrivals * load.fair / self.total().max(1.0);
            share <= 0.0 || load.now - wide + share * arrivals <= load.fair * BALANCE
        })
    }

    /// Whether the row's own workers have too much even with the help of others: what fades then is
    /// what they can do, not what is asked of them.
    fn homes_are_full(&self, cpu: Cpu) -> bool {
        self.window.seats.iter().any(|seat| seat.full && self.home_share(cpu, seat.slot) > 0.0)
    }

    fn narrow(&mut self, cpu: Cpu) {
        self.wide = self.wide.iter().filter(|it| *it != cpu).collect();
        self.add_up();
    }
}

#[cfg(test)]
mod tests;
