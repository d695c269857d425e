//! The kernel's histograms of times, read.

use reuseport_common::hist::{BUCKETS, highest};
use serde::Serialize;

/// How many of each [`reuseport_common::hist::bucket`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram([u64; BUCKETS]);

/// Times in microseconds. Each is the upper end of its bucket: at most an eighth too long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the connections took no longer.
    pub p50_us: f64,
    /// Nine of ten.
    pub p90_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// All.
    pub max_us: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Histogram {
    /// Of the kernel's counts.
    pub fn new(counts: &[u32; BUCKETS]) -> Self {
        Self(counts.map(u64::from))
    }

    /// As [`Histogram::new`], without what is in the first bucket: times that are not known.
    pub fn known(counts: &[u32; BUCKETS]) -> Self {
        let mut all = Self::new(counts);
        all.0[0] = 0;
        all
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }

    /// What came since `earlier`. The kernel's counts have 32 bits and may have begun anew.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut new = self.clone();
        for (count, before) in new.0.iter_mut().zip(&earlier.0) {
            *count = u64::from((*count as u32).wrapping_sub(*before as u32));
        }
        new
    }

    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Its percentiles, none above `longest` nanoseconds; `None` where there are no times.
    pub fn percentiles(&self, longest: u64) -> Option<Percentiles> {
        let last = self.0.iter().rposition(|&count| count > 0)?;
        let upper = |bucket| highest(bucket).min(longest) as f64 / 1000.0;
        let at = |share: f64| upper(self.rank((self.count() as f64 * share).ceil() as u64));
        // The last bucket has no upper end.
        let max = if last == BUCKETS - 1 { longest as f64 / 1000.0 } else { upper(last) };
        Some(Percentiles { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), max_us: max })
    }

    /// The bucket of the time that `rank` are not longer than.
    fn rank(&self, rank: u64) -> usize {
        let mut seen = 0;
        let reaches = |&count: &u64| {
            seen += count;
            seen >= rank.max(1)
        };
        self.0.iter().position(reaches).unwrap_or(BUCKETS - 1)
    }
}

#[cfg(test)]
mod tests {
    use reuseport_common::hist::bucket;

    use super::*;

    fn of(times: &[u64]) -> Histogram {
        let mut counts = [0; BUCKETS];
        for &time in times {
            counts[bucket(time)] += 1;
        }
        Histogram::new(&counts)
    }

    #[test]
    fn percentiles_are_those_of_the_samples_but_for_an_eighth() {
        let times: Vec<u64> = (1..=1000).map(|it| it * 1000).collect();
        let found = of(&times).percentiles(1_000_000).unwrap();
        for (found, exact) in [(found.p50_us, 500.0), (found.p90_us, 900.0), (found.p99_us, 990.0)]
        {
            assert!(found >= exact && found <= exact * 1.125, "{found} for {exact}");
        }
        assert!((found.max_us - 1000.0).abs() < 1e-9, "{found:?}");
        assert_eq!(Histogram::default().percentiles(0), None);
    }

    #[test]
    fn one_sample_is_all_of_them() {
        let found = of(&[300_000_000]).percentiles(300_000_000).unwrap();
        assert_eq!([found.p50_us, found.p99_us, found.max_us].map(|it| it as u64), [300_000; 3]);
    }

    #[test]
    fn the_last_bucket_ends_with_the_longest() {
        let found = of(&[1_000_000_000_000]).percentiles(1_000_000_000_000).unwrap();
        assert!((found.max_us - 1e9).abs() < 1e-3, "{found:?}");
    }

    #[test]
    fn differences_also_where_the_kernel_began_anew() {
        let mut earlier = of(&[100, 100]);
        let mut later = of(&[100, 100, 5000]);
        assert_eq!(later.since(&earlier), of(&[5000]));
        earlier.0[3] = u64::from(u32::MAX);
        later.0[3] = 1;
        assert_eq!(later.since(&earlier).0[3], 2);
        later.add(&of(&[5000]));
        assert_eq!(later.0[bucket(5000)], 2);
    }

    #[test]
    fn unknown_times_do_not_count() {
        let mut counts = [0; BUCKETS];
        (counts[0], counts[9]) = (5, 1);
        assert_eq!(Histogram::known(&counts).count(), 1);
        assert_eq!(Histogram::new(&counts).count(), 6);
    }
}
