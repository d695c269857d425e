//! A small epoll: readiness of descriptors, told by their tokens.
#![expect(unsafe_code, reason = "epoll has no safe wrapper in std")]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::{SyscallError, check};

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    /// `epoll_create1(EPOLL_CLOEXEC)`.
    pub(crate) fn new() -> Result<Self, SyscallError> {
        // SAFETY: takes a number.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check("epoll_create1", i64::from(fd))?;
        // SAFETY: just made, and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches `fd` for `EPOLLIN`, edge-triggered; `token` comes back with its events.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> Result<(), SyscallError> {
        self.add(fd, libc::EPOLLIN | libc::EPOLLET, token)
    }

    /// Watches `fd` for `events`; `token` comes back with them.
    pub(crate) fn add(
        &self,
        fd: BorrowedFd<'_>,
        events: libc::c_int,
        token: u64,
    ) -> Result<(), SyscallError> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: both descriptors are open while borrowed; `event` outlives the call.
        let result = unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
        };
        check("epoll_ctl(EPOLL_CTL_ADD)", i64::from(result)).map(drop)
    }

    /// Token of the next event; `None` if there is none for as long as `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<Option<u64>, SyscallError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let milliseconds = left.as_micros().div_ceil(1000) as libc::c_int;
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            // SAFETY: `event` is writable and has room for the one event that is asked for.
            let result =
                unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, milliseconds) };
            match check("epoll_wait", i64::from(result)) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(event.u64)),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Replaces `tokens` by those of what is ready; by none if nothing is for as long as `timeout`,
    /// which is kept to the nanosecond as far as the thread's timer slack lets it be.
    #[cfg(feature = "cli")]
    pub(crate) fn wait_all(
        &self,
        tokens: &mut Vec<u64>,
        timeout: Option<Duration>,
    ) -> Result<(), SyscallError> {
        tokens.clear();
        let milliseconds = match timeout {
            None => -1,
            Some(timeout) => {
                if !timeout.is_zero() && !self.poll(timeout)? {
                    return Ok(());
                }
                0
            }
        };
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        // SAFETY: `events` is writable and has room for as many as are asked for.
        let result = unsafe {
            let most = events.len() as libc::c_int;
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), most, milliseconds)
        };
        match check("epoll_wait", i64::from(result)) {
            Ok(count) => tokens.extend(events[..count as usize].iter().map(|event| event.u64)),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether anything is ready before `timeout` has passed. `epoll_wait` knows milliseconds only,
    /// and `epoll_pwait2` came with 5.11.
    #[cfg(feature = "cli")]
    fn poll(&self, timeout: Duration) -> Result<bool, SyscallError> {
        let mut fd = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let time = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        // SAFETY: one descriptor is passed and told; `time` outlives the call, the mask may be null.
        let result = unsafe { libc::ppoll(&raw mut fd, 1, &raw const time, std::ptr::null()) };
        match check("ppoll", i64::from(result)) {
            Ok(count) => Ok(count > 0),
            Err(error) if error.errno() == libc::EINTR => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn tells_each_edge_once() {
        let epoll = Epoll::new().unwrap();
        let (mut left, right) = UnixStream::pair().unwrap();
        epoll.watch(right.as_fd(), 7).unwrap();
        assert_eq!(epoll.wait(Duration::ZERO).unwrap(), None);
        left.write_all(b"x").unwrap();
        assert_eq!(epoll.wait(Duration::from_secs(10)).unwrap(), Some(7));
        assert_eq!(epoll.wait(Duration::ZERO).unwrap(), None);
    }
}
