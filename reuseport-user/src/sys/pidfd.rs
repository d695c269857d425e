//! Process descriptors: a handle on a process that cannot come to mean another one, and the way to
//! duplicate one of its descriptors.
#![expect(unsafe_code, reason = "pidfd_open and pidfd_getfd have no wrapper in std or libc")]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::{SyscallError, check};
use crate::model::Pid;

/// Opens process `pid` (a thread group leader).
///
/// # Minimum kernel version
///
/// 5.3.
pub fn open(pid: Pid) -> Result<OwnedFd, SyscallError> {
    // SAFETY: takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check("pidfd_open", fd)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Duplicates descriptor `target` of the process into this one, close-on-exec.
///
/// The duplicate keeps the file open: hold it for microseconds.
///
/// # Minimum kernel version
///
/// 5.6.
pub fn getfd(process: BorrowedFd<'_>, target: i32) -> Result<OwnedFd, SyscallError> {
    // SAFETY: takes three numbers and touches no memory of ours; `process` is open while borrowed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), target, 0) };
    let fd = check("pidfd_getfd", fd)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Threads with less power than the tests have.
#[cfg(test)]
pub(crate) mod weakened {
    use super::check;

    const CAP_SYS_PTRACE: u32 = 1 << 19;

    /// Runs `work` on a thread without `CAP_SYS_PTRACE`.
    pub(crate) fn without_ptrace<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        on_thread(
            || {
                // Version 3, the calling thread; then effective, permitted, inheritable, twice.
                let mut header = [0x2008_0522_u32, 0];
                let mut sets = [0u32; 6];
                // SAFETY: both arrays are as large as version 3 of the call says.
                let got =
                    unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) };
                check("capget", got).unwrap();
                sets[..2].iter_mut().for_each(|set| *set &= !CAP_SYS_PTRACE);
                // SAFETY: as above; the call only reads them.
                let set =
                    unsafe { libc::syscall(libc::SYS_capset, &raw mut header, &raw mut sets) };
                check("capset", set).unwrap();
            },
            work,
        )
    }

    /// Runs `work` on a thread that a seccomp filter forbids `pidfd_getfd`, as Docker's does.
    pub(crate) fn without_getfd<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        on_thread(
            || {
                let mut steps = [
                    step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
                    step(libc::BPF_JMP | libc::BPF_JEQ, 0, 1, libc::SYS_pidfd_getfd as u32),
                    step(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
                    step(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ALLOW),
                ];
                let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
                // SAFETY: the program and its four steps outlive the call, which copies them; the
                // filter binds this thread alone.
                let result = unsafe {
                    libc::syscall(
                        libc::SYS_seccomp,
                        libc::SECCOMP_SET_MODE_FILTER,
                        0,
                        &raw const program,
                    )
                };
                check("seccomp", result).unwrap();
            },
            work,
        )
    }

    fn on_thread<R: Send>(weaken: impl FnOnce() + Send, work: impl FnOnce() -> R + Send) -> R {
        let both = || {
            weaken();
            work()
        };
        std::thread::scope(|scope| scope.spawn(both).join()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::sockopt;

    #[test]
    fn duplicates_the_same_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let me = open(std::process::id()).unwrap();
        let copy = getfd(me.as_fd(), listener.as_raw_fd()).unwrap();
        assert_ne!(copy.as_raw_fd(), listener.as_raw_fd());
        assert_eq!(
            sockopt::cookie(copy.as_fd()).unwrap(),
            sockopt::cookie(listener.as_fd()).unwrap()
        );
    }

    #[test]
    fn reports_what_is_not_there() {
        let me = open(std::process::id()).unwrap();
        assert_eq!(getfd(me.as_fd(), 999_999).unwrap_err().errno(), libc::EBADF);
        // Above the largest possible `pid_max`.
        assert_eq!(open((1 << 22) + 1).unwrap_err().errno(), libc::ESRCH);
    }
}
