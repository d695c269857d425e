//! How much of their time the CPUs are used, from `/proc/stat`.

use std::fs;
use std::time::{Duration, Instant};

/// Two readings further apart than this say nothing of the moment.
const STALE: Duration = Duration::from_millis(500);

/// Ticks of one CPU since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ticks {
    all: u64,
    idle: u64,
}

/// The last reading.
#[derive(Debug, Default)]
pub(super) struct Usage {
    last: Option<(Instant, Vec<Ticks>)>,
}

impl Usage {
    /// The share of each CPU's time that was used since the last call, by id; `None` where that was
    /// too long ago, or nothing can be read. What the hypervisor took counts as used.
    pub(super) fn since_last(&mut self) -> Option<Vec<f64>> {
        let now = (Instant::now(), parse(&fs::read_to_string("/proc/stat").ok()?));
        let (at, before) = self.last.replace(now)?;
        let (_, now) = self.last.as_ref().filter(|(now, _)| *now - at < STALE)?;
        Some(now.iter().zip(&before).map(|(now, before)| used(*before, *now)).collect())
    }
}

fn used(before: Ticks, now: Ticks) -> f64 {
    let all = now.all.saturating_sub(before.all);
    let idle = now.idle.saturating_sub(before.idle);
    if all == 0 { 0.0 } else { all.saturating_sub(idle) as f64 / all as f64 }
}

/// By CPU id; offline ones, which have no line, stay at zero.
fn parse(stat: &str) -> Vec<Ticks> {
    let mut cpus = Vec::new();
    for line in stat.lines().filter_map(|line| line.strip_prefix("cpu")) {
        let mut words = line.split_ascii_whitespace();
        // The line of all CPUs together has no number.
        let id = (!line.starts_with(' ')).then(|| words.next()?.parse::<usize>().ok()).flatten();
        let Some(id) = id else { continue };
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        let ticks: Vec<u64> = words.take(8).filter_map(|word| word.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        if cpus.len() <= id {
            cpus.resize(id + 1, Ticks::default());
        }
        cpus[id] = Ticks { all: ticks.iter().sum(), idle: at(3) + at(4) };
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_prints() {
        let stat = "cpu  10 0 10 100 5 0 1 2 0 0\ncpu0 4 0 5 50 5 0 1 2 0 0\ncpu2 6 0 5 50 0 0 0 0 0 0\n\
                    intr 5 0\nctxt 1\n";
        let ticks = |all, idle| Ticks { all, idle };
        assert_eq!(parse(stat), [ticks(67, 55), Ticks::default(), ticks(61, 50)]);
        assert!((used(ticks(100, 80), ticks(200, 105)) - 0.75).abs() < 1e-9);
        assert!(used(ticks(100, 80), ticks(100, 80)).abs() < 1e-9);
    }

    #[test]
    fn a_busy_cpu_shows() {
        let mut usage = Usage::default();
        assert_eq!(usage.since_last(), None);
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {}
        let used = usage.since_last().unwrap();
        assert!(used.iter().any(|share| *share > 0.3), "{used:?}");
        assert!(used.iter().all(|share| (0.0..=1.0).contains(share)), "{used:?}");
    }
}
