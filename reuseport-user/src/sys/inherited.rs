//! Descriptors that this process was started with, by number: `LISTEN_FDS` and our own handover.
//!
//! An inherited descriptor came through `execve`, so it is not close-on-exec, while every one that
//! Rust opens is. Taking one sets the flag: it is given to nobody else, here or in our children.
#![expect(unsafe_code, reason = "a number from the environment becomes an owned descriptor")]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use super::{SyscallError, check};

/// Takes over descriptor `fd`; `None` where it is not open, or is somebody's already.
pub(crate) fn take(fd: RawFd) -> Result<Option<OwnedFd>, SyscallError> {
    if !is_free(fd)? {
        return Ok(None);
    }
    set_close_on_exec(fd, true)?;
    // SAFETY: open, and nobody's in this process: what is opened here is close-on-exec from the start,
    // and what was taken before is since then.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Whether descriptor `fd` is open, and was not taken.
pub(crate) fn is_free(fd: RawFd) -> Result<bool, SyscallError> {
    // Standard input, output and error are everybody's.
    if fd <= 2 {
        return Ok(false);
    }
    // SAFETY: asks about a number; an unused one is answered with EBADF.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    match check("fcntl(F_GETFD)", i64::from(flags)) {
        Ok(flags) => Ok(flags as i32 & libc::FD_CLOEXEC == 0),
        Err(error) if error.errno() == libc::EBADF => Ok(false),
        Err(error) => Err(error),
    }
}

/// A duplicate that every child inherits until it is dropped.
pub(crate) fn inheritable(fd: BorrowedFd<'_>) -> Result<OwnedFd, SyscallError> {
    let call = "fcntl(F_DUPFD_CLOEXEC)";
    let copy = fd.try_clone_to_owned().map_err(|source| SyscallError { call, source })?;
    set_close_on_exec(copy.as_raw_fd(), false)?;
    Ok(copy)
}

/// A duplicate of descriptor `fd` of this very process; `EBADF` where it is not open.
pub(crate) fn duplicate(fd: RawFd) -> Result<OwnedFd, SyscallError> {
    // SAFETY: takes numbers only; an unused one is answered with EBADF.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    let copy = check("fcntl(F_DUPFD_CLOEXEC)", i64::from(copy))?;
    // SAFETY: the kernel just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as RawFd) })
}

fn set_close_on_exec(fd: RawFd, on: bool) -> Result<(), SyscallError> {
    let flags = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: changes a flag of the descriptor, no memory of ours.
    let set = unsafe { libc::fcntl(fd, libc::F_SETFD, flags) };
    check("fcntl(F_SETFD)", i64::from(set)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsFd as _, IntoRawFd as _};

    use super::*;

    #[test]
    fn what_is_inherited_is_taken_once() {
        let file = File::open("/dev/null").unwrap();
        assert!(take(file.as_raw_fd()).unwrap().is_none(), "ours from the start");
        // As a parent would have left it.
        let inherited = inheritable(file.as_fd()).unwrap().into_raw_fd();
        let taken = take(inherited).unwrap().expect("inherited");
        assert_eq!(taken.as_raw_fd(), inherited);
        assert!(take(inherited).unwrap().is_none(), "taken already");
        drop(taken);
        assert!(take(0).unwrap().is_none() && take(-1).unwrap().is_none());
        assert!(take(1 << 20).unwrap().is_none(), "not open");
    }

    #[test]
    fn our_own_are_duplicated_by_number() {
        let file = File::open("/dev/null").unwrap();
        assert_ne!(duplicate(file.as_raw_fd()).unwrap().as_raw_fd(), file.as_raw_fd());
        assert_eq!(duplicate(1 << 20).unwrap_err().errno(), libc::EBADF);
    }
}
