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
