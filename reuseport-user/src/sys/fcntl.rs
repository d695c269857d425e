//! The one thing about an open file that this project writes: which signal tells of readiness.
#![expect(unsafe_code, reason = "fcntl has no safe wrapper in std")]

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::{SyscallError, check};

/// `F_SETSIG` and `F_GETSIG`, the same on every architecture, and not in every libc.
const F_SETSIG: c_int = 10;
const F_GETSIG: c_int = 11;

/// The signal that tells of readiness where `O_ASYNC` is on; 0 is the default, `SIGIO`.
pub(crate) fn signal(file: BorrowedFd<'_>) -> Result<c_int, SyscallError> {
    // SAFETY: takes two numbers; the descriptor is open for as long as its borrow.
    let signal = unsafe { libc::fcntl(file.as_raw_fd(), F_GETSIG) };
    check("fcntl(F_GETSIG)", i64::from(signal)).map(|signal| signal as c_int)
}

/// Sets it, for the open file: for everybody who has it open. Takes no privilege.
pub(crate) fn set_signal(file: BorrowedFd<'_>, signal: c_int) -> Result<(), SyscallError> {
    // SAFETY: takes three numbers; the descriptor is open for as long as its borrow.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, signal) };
    check("fcntl(F_SETSIG)", i64::from(result)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn every_duplicate_sees_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let copy = listener.try_clone().unwrap();
        assert_eq!(signal(listener.as_fd()).unwrap(), 0);
        set_signal(copy.as_fd(), libc::SIGIO).unwrap();
        assert_eq!(signal(listener.as_fd()).unwrap(), libc::SIGIO);
        set_signal(listener.as_fd(), 0).unwrap();
        assert_eq!(signal(copy.as_fd()).unwrap(), 0);
        assert_eq!(set_signal(copy.as_fd(), 65).unwrap_err().errno(), libc::EINVAL);
    }
}
