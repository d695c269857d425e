//! The only door to the kernel: every `unsafe` block and raw system call of this crate is here.
//!
//! The compiler holds the door: `unsafe_code` is denied for the workspace and allowed file by file
//! below this module only.

use std::io;

#[cfg(feature = "cli")]
pub(crate) mod accept;
pub mod bpf;
pub mod bpffs;
pub mod caps;
pub(crate) mod clock;
pub(crate) mod epoll;
pub(crate) mod fcntl;
pub(crate) mod inherited;
pub(crate) mod mapped;
pub(crate) mod membarrier;
pub(crate) mod mounts;
pub mod netlink;
pub mod netns;
pub mod pidfd;
pub mod procfd;
pub mod sched;
#[cfg(feature = "cli")]
pub(crate) mod signal;
pub mod sockopt;
pub mod spawn;

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
#[non_exhaustive]
pub struct SyscallError {
    /// The call, with its object or option where that says more: `getsockopt(SO_COOKIE)`.
    pub call: &'static str,
    /// What the kernel answered.
    #[source]
    pub source: io::Error,
}

impl SyscallError {
    /// The error number; 0 where the failure was not a kernel's.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

/// Turns the C convention (negative and `errno`) into a `Result`.
pub(crate) fn check(call: &'static str, value: i64) -> Result<i64, SyscallError> {
    if value < 0 {
        Err(SyscallError { call, source: io::Error::last_os_error() })
    } else {
        Ok(value)
    }
}
