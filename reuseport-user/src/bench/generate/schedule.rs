//! When requests are due.

use std::time::Duration;

use crate::bench::workload::Pace;
use crate::measure::{Rng, exponential};

/// A Poisson process; nothing in a closed loop.
pub(super) struct Schedule {
    /// Between two, on average.
    gap: Option<Duration>,
    next: Duration,
    rng: Rng,
}

impl Schedule {
    /// The part of one of `clients`, from `start` on.
    pub(super) fn new(pace: Pace, clients: usize, start: Duration, seed: u64) -> Self {
        let gap = match pace {
            Pace::Closed { .. } => None,
            // Positive, as the options were checked to be.
            Pace::Open { rate } => Some(Duration::from_secs_f64(clients as f64 / rate)),
        };
        let mut schedule = Self { gap, next: start, rng: Rng::with_seed(seed) };
        schedule.advance();
        schedule
    }

    /// When the next one is due, in an open loop.
    pub(super) fn due(&self) -> Option<Duration> {
        self.gap.map(|_| self.next)
    }

    /// On to the one after it.
    pub(super) fn advance(&mut self) {
        if let Some(gap) = self.gap {
            self.next += gap.mul_f64(exponential(&mut self.rng));
        }
    }

    /// For the work that requests are.
    pub(super) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }
}

/// A seed of its own for each of many that share one.
pub(in crate::bench) fn derive(seed: u64, place: u64) -> u64 {
    Rng::with_seed(seed ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15)).u64(..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_poisson_process_of_its_rate() {
        let start = Duration::from_secs(5);
        let mut schedule = Schedule::new(Pace::Open { rate: 4000.0 }, 2, start, 7);
        let mut gaps = Vec::new();
        let mut last = start;
        for _ in 0..20_000 {
            let due = schedule.due().unwrap();
            gaps.push(due.saturating_sub(last).as_secs_f64());
            last = due;
            schedule.advance();
        }
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean * 2000.0 - 1.0).abs() < 0.03, "{mean}");
        // Of an exponential distribution, the deviation is the mean.
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn follows_from_its_seed() {
        let new = |seed| Schedule::new(Pace::Open { rate: 1e3 }, 1, Duration::ZERO, seed).due();
        assert_eq!(new(1), new(1));
        assert_ne!(new(1), new(2));
        assert_ne!(derive(1, 0), derive(1, 1));
        assert_eq!(
            Schedule::new(Pace::Closed { connections: 1 }, 1, Duration::ZERO, 1).due(),
            None
        );
    }
}
