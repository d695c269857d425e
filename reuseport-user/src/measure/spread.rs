//! Some figures and how far they lie apart.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Rng;

/// Median and the range that holds the middle 80 % of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// 10th percentile.
    pub p10: f64,
    /// 50th percentile.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
}

impl Spread {
    /// `None` without samples, or when one is not a number.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples)?;
        let [p10, median, p90] = [0.1, 0.5, 0.9].map(|fraction| quantile(&sorted, fraction));
        Some(Self { p10, median, p90 })
    }
}

/// From one figure to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "[f64; 2]", from = "[f64; 2]")]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `figure` is in it.
    pub fn contains(self, figure: f64) -> bool {
        self.low <= figure && figure <= self.high
    }

    /// With both ends put through `monotonous`, which rises.
    #[must_use]
    pub fn map(self, monotonous: impl Fn(f64) -> f64) -> Self {
        Self { low: monotonous(self.low), high: monotonous(self.high) }
    }
}

impl From<Interval> for [f64; 2] {
    fn from(interval: Interval) -> Self {
        [interval.low, interval.high]
    }
}

impl From<[f64; 2]> for Interval {
    fn from([low, high]: [f64; 2]) -> Self {
        Self { low, high }
    }
}

/// A spread, and where the true median probably lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// How many figures it is made of.
    pub n: usize,
    /// How far they lie apart.
    #[serde(flatten)]
    pub spread: Spread,
    /// Bootstrap 95 % confidence interval of the median.
    pub ci95: Interval,
}

/// Resamplings of a bootstrap.
const RESAMPLES: usize = 2000;

impl Estimate {
    /// `None` without samples, or when one is not a number.
    pub fn of(samples: &[f64], rng: &mut Rng) -> Option<Self> {
        let sorted = sorted(samples)?;
        let mut times = vec![0; sorted.len()];
        let mut medians: Vec<f64> =
            (0..RESAMPLES).map(|_| resampled_median(&sorted, &mut times, rng)).collect();
        medians.sort_unstable_by(f64::total_cmp);
        let ci95 = Interval { low: quantile(&medians, 0.025), high: quantile(&medians, 0.975) };
        Some(Self { n: samples.len(), spread: Spread::of(samples)?, ci95 })
    }

    /// The one in the middle.
    pub fn median(&self) -> f64 {
        self.spread.median
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n, spread: Spread { p10, median, p90 }, ci95: Interval { low, high } } = self;
        let digits = f.precision().unwrap_or(3);
        write!(
            f,
            "{median:.digits$}  [p10..p90 {p10:.digits$}..{p90:.digits$}]  \
             95% CI {low:.digits$}..{high:.digits$}  n={n}"
        )
    }
}

/// Median of as many figures drawn with replacement; `times` is room to count how often each was.
fn resampled_median(sorted: &[f64], times: &mut [usize], rng: &mut Rng) -> f64 {
    times.fill(0);
    for _ in sorted {
        times[rng.usize(..sorted.len())] += 1;
    }
    // The two in the middle, which are one where the number is odd.
    let (lower, upper) = ((sorted.len() - 1) / 2, sorted.len() / 2);
    let (mut drawn, mut at_lower) = (0, None);
    for (figure, times) in sorted.iter().zip(times) {
        drawn += *times;
        if drawn > lower && at_lower.is_none() {
            at_lower = Some(*figure);
        }
        if drawn > upper {
            return f64::midpoint(at_lower.unwrap_or(*figure), *figure);
        }
    }
    f64::NAN
}

fn sorted(samples: &[f64]) -> Option<Vec<f64>> {
    if samples.is_empty() || samples.iter().any(|sample| sample.is_nan()) {
        return None;
    }
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Some(sorted)
}

/// The value below which `fraction` of sorted figures lies: linear between the closest ranks.
///
/// # Panics
/// Without figures.
pub fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let rank = fraction * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    low + (high - low) * rank.fract()
}
