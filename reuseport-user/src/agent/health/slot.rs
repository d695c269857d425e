//! Eviction of one slot: whether its worker still accepts, and when it is well again.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::backoff::Backoff;

/// Without progress for as long as this, a worker has stalled.
pub const STALL: Duration = Duration::from_millis(30);

/// Polls that must agree on it, the first one apart: one that came late proves nothing.
const STALL_POLLS: usize = 3;

/// A queue must be nearly full for as long as this: one burst is no reason to turn others away.
const FULL: Duration = Duration::from_millis(10);

/// Others must have had room for as long as this, and in service, before a slot is evicted for being
/// full. Where all have too much, one that was out for a moment looks as if it had room: they would
/// be evicted in turn for ever, and nothing be gained.
const LASTING_ROOM: Duration = Duration::from_secs(1);

/// How long a slot that was evicted must be well before it comes back, and the most that relapses
/// make of it.
const HOLD: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What one poll saw of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Connections waiting to be accepted.
    pub queued: u32,
    /// Most that may wait.
    pub backlog: u32,
    /// Selections of the slot so far. Looked at only where something is queued.
    pub selections: u64,
}

impl Reading {
    /// More than three quarters of the backlog: the kernel will soon drop SYNs, which costs their
    /// clients a second each.
    fn nearly_full(self) -> bool {
        u64::from(self.queued) * 4 > u64::from(self.backlog) * 3
    }

    fn half_empty(self) -> bool {
        self.queued == 0 || u64::from(self.queued) * 2 <= u64::from(self.backlog)
    }
}

/// Why a slot was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its worker accepts nothing, or next to nothing, of what arrives.
    Stalled,
    /// Its accept queue is nearly full.
    Full,
}

/// What others can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Nothing.
    None,
    /// Somebody has room at the moment.
    Now,
    /// Somebody has had room for some time, in service.
    Lasting,
}

/// A change of a slot's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Turn {
    /// Its rows go to their second choices.
    Evicted {
        /// Why.
        cause: Cause,
        /// Since when it had shown.
        after: Duration,
        /// Connections that wait in its queue.
        queued: u32,
    },
    /// It gets its rows back.
    Restored {
        /// For how long it had been out.
        after: Duration,
    },
}

#[derive(Clone, Copy, Debug)]
struct Eviction {
    since: Duration,
    cause: Cause,
    /// Drained means at most this many in the queue.
    low: u32,
    drained: Option<Duration>,
}

/// One slot's state.
///
/// A queue that is not empty says little: under load it is found so again and again. The kernel does
/// not count what is accepted, but what is selected and what waits are known, and what was selected
/// and does not wait was accepted. Handshakes under way blur that for one round trip; runs of the
/// program that are no connections (stray segments, a second run for a SYN cookie, SYNs that a full
/// queue drops) look like progress, so for those a full queue is a sign of its own.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Readings since the queue was last empty or shrank, back to just what proves a stall.
    window: VecDeque<(Duration, Reading)>,
    /// Since when the queue has been nearly full.
    full: Option<Duration>,
    /// Since when it has been in service with its queue half empty at least.
    roomy: Option<Duration>,
    last: Reading,
    evicted: Option<Eviction>,
    backoff: Backoff,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            window: VecDeque::new(),
            full: None,
            roomy: None,
            last: Reading::default(),
            evicted: None,
            backoff: Backoff::new(HOLD.0, HOLD.1),
        }
    }
}

impl Slot {
    /// Takes in what a poll saw.
    pub fn observe(&mut self, now: Duration, reading: Reading) {
        if reading.queued == 0 || reading.queued < self.last.queued {
            self.window.clear();
        }
        if reading.queued > 0 {
            self.window.push_back((now, reading));
        }
        // One more than needed is dropped, so that what was accepted before a stall does not hide it.
        while self.window.len() > STALL_POLLS + 1
            && self.window.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= STALL)
        {
            self.window.pop_front();
        }
        self.full = if reading.nearly_full() { self.full.or(Some(now)) } else { None };
        let roomy = reading.half_empty() && self.evicted.is_none();
        self.roomy = if roomy { self.roomy.or(Some(now)) } else { None };
        self.last = reading;
        if let Some(eviction) = &mut self.evicted {
            let drained = reading.queued <= eviction.low;
            eviction.drained = if drained { eviction.drained.or(Some(now)) } else { None };
        }
    }

    /// What is wrong with it by its last reading, and since when that has shown.
    fn trouble(&self, now: Duration) -> Option<(Cause, Duration)> {
        if let Some((first, _)) = self.window.front().filter(|_| self.has_stalled(now)) {
            return Some((Cause::Stalled, *first));
        }
        let full = self.full.filter(|since| now.saturating_sub(*since) >= FULL);
        full.map(|since| (Cause::Full, since))
    }

    fn has_stalled(&self, now: Duration) -> bool {
        let (Some((at, first)), Some((_, last))) = (self.window.front(), self.window.back()) else {
            return false;
        };
        let arrived = last.selections.saturating_sub(first.selections);
        let accepted = arrived.saturating_sub(u64::from(last.queued.saturating_sub(first.queued)));
        self.window.len() > STALL_POLLS
            && now.saturating_sub(*at) >= STALL
            && accepted * 4 <= arrived
    }

    /// Whether it can take what others spill.
    pub fn room(&self, now: Duration) -> Room {
        match self.roomy {
            Some(_) if self.trouble(now).is_some() => Room::None,
            Some(since) if now.saturating_sub(since) >= LASTING_ROOM => Room::Lasting,
            Some(_) => Room::Now,
            None => Room::None,
        }
    }

    /// Evicts or restores it, given what others can take. To evict helps only where they have room;
    /// where they have not, what an earlier relapse added to the hold time is waived.
    pub fn turn(&mut self, now: Duration, others: Room) -> Option<Turn> {
        let Some(eviction) = self.evicted else {
            let (cause, since) = self.trouble(now)?;
            let needed = if cause == Cause::Full { Room::Lasting } else { Room::Now };
            if others < needed {
                return None;
            }
            self.backoff.trip(now);
            self.roomy = None;
            let queued = self.last.queued;
            self.evicted = Some(Eviction { since: now, cause, low: queued / 4, drained: None });
            return Some(Turn::Evicted { cause, after: now.saturating_sub(since), queued });
        };
        let hold = if others > Room::None { self.backoff.hold() } else { self.backoff.least() };
        let drained = eviction.drained?;
        if now.saturating_sub(drained) < hold {
            return None;
        }
        self.backoff.release(now);
        self.evicted = None;
        self.window.clear();
        Some(Turn::Restored { after: now.saturating_sub(eviction.since) })
    }

    /// Why it is evicted and since when; `None` for one that is not.
    pub fn evicted(&self) -> Option<(Cause, Duration)> {
        self.evicted.map(|eviction| (eviction.cause, eviction.since))
    }

    /// Whether anything waits in its queue, by the last reading.
    pub fn is_waiting(&self) -> bool {
        self.last.queued > 0
    }
}

#[cfg(test)]
mod tests;
