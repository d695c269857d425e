//! When to tick: at once when something happened, seldom when nothing does, never in a frenzy.

use std::time::{Duration, Instant};

/// How long the world is given to finish what it began: a worker that dies closes several listeners,
/// one that starts opens them one by one.
const SETTLE: Duration = Duration::from_millis(5);

/// Least time between two ticks, however much happens: a storm of restarts costs as much as a few.
pub(super) const SPACING: Duration = Duration::from_millis(50);

/// Decides when the next tick is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between ticks when nothing happens.
    interval: Duration,
    /// The first event since the last tick.
    event: Option<Instant>,
    /// End of the last tick.
    last: Option<Instant>,
    /// Ticks in a row that found something unfinished.
    unsettled: u32,
}

impl Pace {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, event: None, last: None, unsettled: 0 }
    }

    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Something happened: tick soon.
    pub(super) fn event(&mut self, now: Instant) {
        self.event.get_or_insert(now);
    }

    /// A tick ended. What it found is `settled` unless something was changed or is still to be
    /// finished: a server that listens and has not forked its workers yet tells nobody when it has,
    /// so it is looked at again soon, and less and less often.
    pub(super) fn ticked(&mut self, now: Instant, settled: bool) {
        self.last = Some(now);
        self.event = None;
        self.unsettled = if settled { 0 } else { self.unsettled.saturating_add(1) };
    }

    /// When the next tick is due, which may be past.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let Some(last) = self.last else { return now };
        match self.event {
            Some(event) => (event + SETTLE).max(last + SPACING),
            None => last + self.pause(),
        }
    }

    /// Between ticks without an event.
    fn pause(&self) -> Duration {
        match self.unsettled {
            0 => self.interval,
            // 50, 100, 200 ... ms.
            times => (SPACING * 2_u32.saturating_pow(times - 1).min(1 << 16)).min(self.interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn an_event_is_answered_at_once_and_a_storm_now_and_then() {
        let start = Instant::now();
        let mut pace = Pace::new(SECOND);
        assert_eq!(pace.due(start), start, "the first tick waits for nothing");
        pace.ticked(start, true);
        assert_eq!(pace.due(start), start + SECOND);
        let event = start + ms(300);
        pace.event(event);
        assert_eq!(pace.due(event), event + SETTLE);

        // One event every millisecond for a second: never more than one tick in 50 ms.
        let mut ticks = 0;
        for now in (0..1000).map(|elapsed| start + ms(300 + elapsed)) {
            pace.event(now);
            if pace.due(now) <= now {
                pace.ticked(now, false);
                ticks += 1;
            }
        }
        assert_eq!(ticks, 20);
    }

    #[test]
    fn later_events_do_not_put_the_answer_off() {
        let start = Instant::now();
        let mut pace = Pace::new(SECOND);
        pace.ticked(start, true);
        pace.event(start + ms(100));
        pace.event(start + ms(104));
        assert_eq!(pace.due(start), start + ms(105));
    }

    #[test]
    fn what_is_unfinished_is_looked_at_again_and_again_but_less_and_less() {
        let start = Instant::now();
        let mut pace = Pace::new(SECOND);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pace.ticked(start, false);
            pauses.push(pace.due(start) - start);
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000].map(ms));
        pace.ticked(start, true);
        assert_eq!(pace.due(start) - start, SECOND);
        // An interval that is shorter than that is kept.
        let mut quick = Pace::new(ms(1));
        quick.ticked(start, false);
        assert_eq!(quick.due(start) - start, ms(1));
        for _ in 0..100 {
            pace.ticked(start, false);
        }
        assert_eq!(pace.due(start) - start, SECOND);
    }
}
