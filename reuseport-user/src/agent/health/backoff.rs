//! Hysteresis: how long something must have been well before it counts as well.

use std::time::Duration;

/// A hold time that doubles with every relapse.
///
/// What trips again within `most` of its release has relapsed. So it can trip at most once in
/// `most`, but for the few times that the hold time needs to grow from `least` to `most`.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    least: Duration,
    most: Duration,
    hold: Duration,
    released: Option<Duration>,
}

impl Backoff {
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, hold: least, released: None }
    }

    /// It went wrong at `now`.
    pub(super) fn trip(&mut self, now: Duration) {
        self.hold = if self.remembers(now) { (self.hold * 2).min(self.most) } else { self.least };
    }

    /// It counts as well again from `now`.
    pub(super) fn release(&mut self, now: Duration) {
        self.released = Some(now);
    }

    /// Whether it would still be a relapse.
    pub(super) fn remembers(&self, now: Duration) -> bool {
        self.released.is_some_and(|at| now.saturating_sub(at) < self.most)
    }

    /// How long it must be well before its release.
    pub(super) fn hold(&self) -> Duration {
        self.hold
    }

    /// The hold time without any relapse.
    pub(super) fn least(&self) -> Duration {
        self.least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn doubles_with_every_relapse_and_forgives() {
        let mut backoff = Backoff::new(SECOND, SECOND * 8);
        let mut holds = Vec::new();
        let mut now = Duration::ZERO;
        for pause in [0, 1, 2, 7, 1, 7, 8] {
            now += SECOND * pause;
            backoff.trip(now);
            holds.push(backoff.hold().as_secs());
            backoff.release(now);
        }
        assert_eq!(holds, [1, 2, 4, 8, 8, 8, 1], "the last one was well for long enough");
    }
}
