//! A moment that everything now in the making has passed.
#![expect(unsafe_code, reason = "membarrier(2)")]

use std::thread::sleep;
use std::time::Duration;

/// `MEMBARRIER_CMD_GLOBAL`.
const GLOBAL: libc::c_int = 1;

/// Where the kernel does not wait for us: no softirq runs as long (it yields after 2 ms, and a
/// virtual CPU may be stopped meanwhile).
const LONG: Duration = Duration::from_millis(100);

/// Returns when whatever the kernel was doing about a packet on any CPU is done: a selection that
/// read the table before its change, with all that followed from it; likewise the run of any program.
///
/// `membarrier` waits for an RCU grace period, and packets are handled within one read-side section.
/// With `nohz_full` CPUs the kernel refuses that; then a pause that is long enough has to do.
pub(crate) fn wait_for_packets() {
    // SAFETY: takes two integers.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0) };
    if answer != 0 {
        sleep(LONG);
    }
}
