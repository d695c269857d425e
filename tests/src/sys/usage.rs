//! What a child process or this one used, and limits of this one.

use std::io;
use std::mem::zeroed;
use std::process::Child;
use std::time::Duration;

use super::check;

/// How a child ended and what it took.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// The wait status, as `ExitStatus::from_raw` takes it.
    pub status: i32,
    /// Time on a CPU in user mode, all its threads.
    pub user: Duration,
    /// Time on a CPU in the kernel.
    pub system: Duration,
}

/// Waits for a child's end. Takes it by value: its id means nothing afterwards.
pub fn wait(child: Child) -> io::Result<Usage> {
    let pid = child.id() as libc::pid_t;
    drop(child);
    let mut status = 0;
    // SAFETY: an rusage is plain numbers, all zero is valid.
    let mut usage: libc::rusage = unsafe { zeroed() };
    // SAFETY: both pointers are to live values; the child is ours and not waited for yet, as we
    // own it and a `Child` that is dropped is not reaped.
    check(unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) })?;
    Ok(Usage { status, user: time(usage.ru_utime), system: time(usage.ru_stime) })
}

/// Time on a CPU that this process has taken so far, all its threads.
pub fn so_far() -> io::Result<Duration> {
    // SAFETY: an rusage is plain numbers, all zero is valid.
    let mut usage: libc::rusage = unsafe { zeroed() };
    // SAFETY: the pointer is to a live value.
    check(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) })?;
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

fn time(time: libc::timeval) -> Duration {
    Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
}

/// Lets this process open as many files as its hard limit allows.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live value.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}
