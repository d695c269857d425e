//! Socket options that the standard library does not offer.

#![expect(unsafe_code, reason = "getsockopt and setsockopt take raw pointers")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::{SyscallError, check};
use crate::model::Cpu;

/// The CPU that handled the socket's latest packet; of a socket just accepted, the CPU that
/// received the connection.
///
/// # Minimum kernel version
/// 3.19.
pub fn incoming_cpu(socket: BorrowedFd<'_>) -> Result<Cpu, SyscallError> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `socket` is open while borrowed; the kernel writes at most `length` bytes, which is
    // the size of `value`, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_CPU,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    check("getsockopt(SO_INCOMING_CPU)", i64::from(result))?;
    Ok(value as Cpu)
}

/// Asks the kernel to prefer this listener for connections that `cpu` receives, or with `None` to
/// forget the preference.
///
/// # Minimum kernel version
/// 6.2 for a reuseport group (earlier ones take the option and do not honour it for TCP).
pub fn set_incoming_cpu(socket: BorrowedFd<'_>, cpu: Option<Cpu>) -> Result<(), SyscallError> {
    let value: libc::c_int = cpu.map_or(-1, |cpu| cpu as libc::c_int);
    // SAFETY: `socket` is open while borrowed; the kernel reads the size of `value` given beside
    // it, and `value` outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_CPU,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check("setsockopt(SO_INCOMING_CPU)", i64::from(result))?;
    Ok(())
}
