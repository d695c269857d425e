//! The clock that the kernel stamps events with, and the one that counts a thread's own time.
#![expect(unsafe_code, reason = "std's Instant does not tell its value")]

use std::time::Duration;

/// `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` reads it.
pub(crate) fn monotonic() -> Duration {
    read(libc::CLOCK_MONOTONIC)
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
    fn goes_on_by_the_time_that_passes() {
        let before = monotonic();
        std::thread::sleep(Duration::from_millis(2));
        let passed = monotonic().saturating_sub(before);
        assert!(passed >= Duration::from_millis(2) && before > Duration::ZERO, "{passed:?}");
    }
}
