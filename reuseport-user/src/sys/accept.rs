//! Accepting a connection that does not block, in one call.
#![expect(unsafe_code, reason = "std accepts, and makes it non-blocking in a second call")]

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _};

/// `accept4(SOCK_NONBLOCK | SOCK_CLOEXEC)`.
pub(crate) fn nonblocking(listener: BorrowedFd<'_>) -> io::Result<TcpStream> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the descriptor is open while borrowed; the kernel is asked for no address.
    let fd = unsafe {
        libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { TcpStream::from_raw_fd(fd) })
}
