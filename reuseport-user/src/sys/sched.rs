//! CPU affinity of threads, and how exactly they sleep.
#![expect(unsafe_code, reason = "libc's cpu_set_t ends at CPU 1023; the raw calls do not")]

use super::{SyscallError, check};
use crate::model::{Cpu, CpuSet, Pid};

/// Where growing the mask ends: far above the kernel's own `NR_CPUS` ceiling.
const MOST_CPUS: usize = 1 << 16;

/// CPUs that thread `tid` may run on; 0 is the calling thread. Needs no privilege.
pub fn affinity(tid: Pid) -> Result<CpuSet, SyscallError> {
    let mut cpus = 1024;
    loop {
        let mut mask = vec![0u64; cpus / 64];
        // SAFETY: `mask` is writable for its whole length, which is what the call is told.
        let written = unsafe {
            libc::syscall(
                libc::SYS_sched_getaffinity,
                tid,
                size_of_val(mask.as_slice()),
                mask.as_mut_ptr(),
            )
        };
        match check("sched_getaffinity", written) {
            Ok(_) => return Ok(members(&mask)),
            // The kernel has more CPUs than the mask has bits.
            Err(error) if error.errno() == libc::EINVAL && cpus < MOST_CPUS => cpus *= 2,
            Err(error) => return Err(error),
        }
    }
}

/// Pins thread `tid` to `cpus`; 0 is the calling thread. Others' threads need `CAP_SYS_NICE` or the
/// same user.
pub fn set_affinity(tid: Pid, cpus: &CpuSet) -> Result<(), SyscallError> {
    set_mask(tid, &mask(cpus))
}

/// [`set_affinity`] with a mask made before: allocates nothing, as after a fork.
pub(crate) fn set_mask(tid: Pid, mask: &[u64]) -> Result<(), SyscallError> {
    // SAFETY: `mask` is readable for its whole length, which is what the call is told.
    let result = unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(mask), mask.as_ptr())
    };
    check("sched_setaffinity", result).map(drop)
}

/// Lets the calling thread's sleeps end within a nanosecond of their time, not the usual 50 us.
#[cfg(feature = "cli")]
pub(crate) fn sleep_exactly() -> Result<(), SyscallError> {
    // SAFETY: takes numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
    check("prctl(PR_SET_TIMERSLACK)", i64::from(result)).map(drop)
}

/// The calling thread's id.
#[cfg(feature = "cli")]
pub(crate) fn thread_id() -> Pid {
    // SAFETY: takes and touches nothing.
    unsafe { libc::gettid() as Pid }
}

/// The CPUs whose bits are set.
fn members(mask: &[u64]) -> CpuSet {
    let bits = mask.iter().zip(0..).flat_map(|(&word, index)| {
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
    });
    bits.collect()
}

/// A mask just long enough.
pub(crate) fn mask(cpus: &CpuSet) -> Vec<u64> {
    let mut mask = vec![0u64; cpus.iter().last().map_or(1, |last: Cpu| last as usize / 64 + 1)];
    for cpu in cpus.iter() {
        mask[cpu as usize / 64] |= 1 << (cpu % 64);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_hold_any_cpu() {
        for cpus in [CpuSet::from([0]), CpuSet::from([1, 63, 64]), CpuSet::from([0, 1023, 4000])] {
            assert_eq!(members(&mask(&cpus)), cpus);
        }
        assert_eq!(mask(&CpuSet::default()), [0]);
    }

    #[test]
    fn pins_and_reads_back() {
        let thread = std::thread::spawn(|| {
            let all = affinity(0).unwrap();
            let one: CpuSet = all.first().into_iter().collect();
            set_affinity(0, &one).unwrap();
            assert_eq!(affinity(0).unwrap(), one);
            assert_eq!(set_affinity(0, &CpuSet::default()).unwrap_err().errno(), libc::EINVAL);
        });
        thread.join().unwrap();
        assert_eq!(affinity((1 << 22) + 1).unwrap_err().errno(), libc::ESRCH);
    }
}
