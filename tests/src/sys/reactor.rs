//! Many connections on one thread: connect without waiting, and sleep until one of them or the next
//! start is due, to the microsecond.

use std::io::{self, Read as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use super::{check, socket};

/// An epoll set; events carry the number that a socket was added with.
#[derive(Debug)]
pub struct Reactor {
    set: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Reactor {
    /// With nothing in it. Lets this thread's timers be exact.
    pub fn new() -> io::Result<Self> {
        // SAFETY: numbers only.
        check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) })?;
        // SAFETY: numbers only.
        let set = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
        let set = unsafe { OwnedFd::from_raw_fd(set) };
        Ok(Self { set, events: vec![libc::epoll_event { events: 0, u64: 0 }; 256] })
    }

    /// Watches a socket for input and errors.
    pub fn add(&self, stream: &TcpStream, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        let (set, fd) = (self.set.as_raw_fd(), stream.as_fd().as_raw_fd());
        // SAFETY: the event outlives the call, which copies it.
        check(unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
    }

    /// Waits no longer than `timeout`; numbers of the sockets that something happened to.
    ///
    /// # Minimum kernel version
    ///
    /// 5.11.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Vec<u64>> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let (events, room) = (self.events.as_mut_ptr(), self.events.len() as i32);
        // SAFETY: room for as many events as there are is promised and given; the time outlives the
        // call, no signal mask is set.
        let count = check(unsafe {
            libc::epoll_pwait2(
                self.set.as_raw_fd(),
                events,
                room,
                &raw const timeout,
                std::ptr::null(),
            )
        });
        match count {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            count => {
                let ready = self.events.iter().take(count? as usize);
                Ok(ready.map(|event| event.u64).collect())
            }
        }
    }
}

/// Begins a connection and does not wait for it.
pub fn connect(address: SocketAddrV4) -> io::Result<TcpStream> {
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    let raw = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    };
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: pointer and length describe `raw`, which outlives the call.
    match check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const raw).cast(), length) }) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(fd.into()),
        result => result.map(|_| fd.into()),
    }
}

/// What has arrived: a number of bytes, 0 at the end of the stream, `None` while nothing has.
pub fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match stream.read(buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

/// Makes an address one of the kind that is served here.
pub fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => panic!("{address} is not IPv4"),
    }
}
