//! The clock that the kernel stamps events with, and the one that counts a thread's own time.
#![expect(unsafe_code, reason = "std's Instant does not tell its value")]

use std::sync::OnceLock;
use std::time::Duration;

/// `CLOCK_MONOTONIC`: no jump of the time of day changes it, and it stands still while the machine does.
pub(crate) fn monotonic() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

/// The same as `bpf_ktime_get_ns` reads it, which knows no time namespaces.
pub(crate) fn kernel() -> Duration {
    static OFFSET: OnceLock<i128> = OnceLock::new();
    let offset = OFFSET.get_or_init(|| {
        // Kernels without time namespaces have no such file, and no offset.
        offset(&std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default())
    });
    let nanos = monotonic().as_nanos() as i128 - offset;
    Duration::from_nanos(nanos.max(0) as u64)
}

/// What our time namespace adds to the monotonic clock, in nanoseconds.
fn offset(offsets: &str) -> i128 {
    let line = offsets.lines().find_map(|line| line.strip_prefix("monotonic"));
    let mut numbers = line.unwrap_or_default().split_whitespace().map_while(|it| it.parse().ok());
    let (seconds, nanos): (i128, i128) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}

/// `CLOCK_THREAD_CPUTIME_ID`: how long the calling thread has been running.
#[cfg(feature = "cli")]
pub(crate) fn thread() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Between two ticks of the kernel's timer.
#[cfg(feature = "cli")]
pub(crate) fn tick() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable and whole; the clock exists on every Linux.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable and whole; the clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespaces_offset_is_read() {
        let offsets = "monotonic       86400         7\nboottime            -3         0\n";
        assert_eq!(offset(offsets), 86_400_000_000_007);
        assert_eq!(offset("monotonic          -2 500000000\n"), -1_500_000_000);
        assert_eq!(offset(""), 0);
        // Nobody runs the tests in one.
        let apart = kernel().abs_diff(monotonic());
        assert!(apart < Duration::from_secs(1), "{apart:?}");
    }

    #[test]
    fn goes_on_by_the_time_that_passes() {
        let before = monotonic();
        std::thread::sleep(Duration::from_millis(2));
        let passed = monotonic().saturating_sub(before);
        assert!(passed >= Duration::from_millis(2) && before > Duration::ZERO, "{passed:?}");
    }
}
