//! Measuring like a sceptic: paired, interleaved in random order, and never without the spread.

use std::fmt;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

/// A small generator (SplitMix64): the order of a run and its resampling follow from a seed that is
/// printed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// A number from the exponential distribution of mean 1: what lies between events that come at
    /// random.
    pub fn exponential(&mut self) -> f64 {
        // In (0, 1]: 53 bits, as many as a float holds.
        let uniform = ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -uniform.ln()
    }

    /// Puts `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Some figures and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// The one in the middle.
    pub median: f64,
    /// A tenth is below.
    pub p10: f64,
    /// A tenth is above.
    pub p90: f64,
    /// Bootstrap 95 % confidence interval of the median.
    pub confidence: (f64, f64),
}

/// Resamplings of a bootstrap.
const RESAMPLES: usize = 2000;

impl Spread {
    /// Of at least one figure.
    pub fn of(figures: &[f64], rng: &mut Rng) -> Self {
        assert!(!figures.is_empty(), "nothing was measured");
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let mut sample: Vec<f64> =
                    sorted.iter().map(|_| sorted[rng.below(sorted.len())]).collect();
                sample.sort_by(f64::total_cmp);
                quantile(&sample, 0.5)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        Self {
            count: sorted.len(),
            median: quantile(&sorted, 0.5),
            p10: quantile(&sorted, 0.1),
            p90: quantile(&sorted, 0.9),
            confidence: (quantile(&medians, 0.025), quantile(&medians, 0.975)),
        }
    }

    /// For the result file.
    pub fn json(&self) -> Value {
        let Self { count, median, p10, p90, confidence: (low, high) } = self;
        json!({"n": count, "median": median, "p10": p10, "p90": p90, "ci95": [low, high]})
    }

    /// Whether it keeps below `limit`, as far as the confidence interval can tell.
    pub fn below(&self, limit: f64) -> Verdict {
        let (low, high) = self.confidence;
        Verdict::of(high <= limit, low > limit)
    }

    /// Whether it keeps above `limit`.
    pub fn above(&self, limit: f64) -> Verdict {
        let (low, high) = self.confidence;
        Verdict::of(low >= limit, high < limit)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, median, p10, p90, confidence: (low, high) } = self;
        let digits = f.precision().unwrap_or(3);
        write!(
            f,
            "{median:.digits$}  [p10..p90 {p10:.digits$}..{p90:.digits$}]  \
             95% CI {low:.digits$}..{high:.digits$}  n={count}"
        )
    }
}

/// The value below which the share `q` of sorted figures lies, interpolated.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// `numerator / denominator`, pair by pair.
pub fn ratios(numerators: &[f64], denominators: &[f64]) -> Vec<f64> {
    numerators.iter().zip(denominators).map(|(a, b)| a / b).collect()
}

/// `a - b`, pair by pair.
pub fn differences(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// What figures say of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The whole confidence interval is on the right side.
    Met,
    /// It lies on both sides.
    Open,
    /// All of it is on the wrong side.
    Missed,
}

impl Verdict {
    fn of(met: bool, missed: bool) -> Self {
        match (met, missed) {
            (true, _) => Self::Met,
            (_, true) => Self::Missed,
            _ => Self::Open,
        }
    }

    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Open => "inconclusive",
            Self::Missed => "MISSED",
        }
    }
}

/// Ticks of all CPUs since boot, by what they were spent on.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    total: u64,
    idle: u64,
    steal: u64,
}

impl Ticks {
    /// Now.
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").expect("read /proc/stat");
        let line = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).take(8).filter_map(|it| it.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        Self { total: ticks.iter().sum(), idle: at(3) + at(4), steal: at(7) }
    }

    /// Percent of the CPUs' time since then that was not idle, and that the hypervisor took.
    pub fn busy_and_steal(&self) -> (f64, f64) {
        let now = Self::now();
        let total = (now.total - self.total).max(1) as f64;
        let busy = total - (now.idle - self.idle) as f64;
        (busy * 100.0 / total, (now.steal - self.steal) as f64 * 100.0 / total)
    }

    /// Percent of the CPUs' time that others use while we only wait.
    pub fn background() -> f64 {
        let start = Self::now();
        sleep(Duration::from_secs(1));
        start.busy_and_steal().0
    }
}
