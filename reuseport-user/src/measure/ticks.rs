//! How busy the machine is, with what is measured and with other things.

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::Duration;

/// Ticks of all CPUs since boot, by what they were spent on.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    total: u64,
    idle: u64,
    steal: u64,
}

impl Ticks {
    /// Now, from `/proc/stat`.
    pub fn now() -> io::Result<Self> {
        Ok(Self::read(&fs::read_to_string("/proc/stat")?))
    }

    fn read(stat: &str) -> Self {
        let line = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).take(8).filter_map(|it| it.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        Self { total: ticks.iter().sum(), idle: at(3) + at(4), steal: at(7) }
    }

    /// Percent of the CPUs' time between the two that was not idle, and that the hypervisor took.
    pub fn busy_and_steal(&self, now: &Self) -> (f64, f64) {
        let total = now.total.saturating_sub(self.total).max(1) as f64;
        let busy = total - now.idle.saturating_sub(self.idle) as f64;
        let steal = now.steal.saturating_sub(self.steal) as f64;
        (busy.max(0.0) * 100.0 / total, steal * 100.0 / total)
    }

    /// Percent of the CPUs' time that others use while we only wait, for a second.
    pub fn background() -> io::Result<f64> {
        let start = Self::now()?;
        sleep(Duration::from_secs(1));
        Ok(start.busy_and_steal(&Self::now()?).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_time_in_between() {
        let before = Ticks::read("cpu  10 0 10 100 0 0 0 0 0 0\ncpu0 1 2 3\n");
        let after = Ticks::read("cpu  60 0 20 120 5 0 5 10 50 0\n");
        let (busy, steal) = before.busy_and_steal(&after);
        assert!((busy - 75.0).abs() < 1e-9 && (steal - 10.0).abs() < 1e-9, "{busy} {steal}");
        let (busy, steal) = before.busy_and_steal(&before);
        assert!(steal.abs() < 1e-9 && busy <= 100.0, "no time has passed");
    }
}
