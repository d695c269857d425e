//! Two listeners of our own in one group on the loopback interface, to try on them what the kernel
//! does.
//!
//! Versions do not tell what a kernel does, because fixes are backported here and there; a
//! connection does. It takes well below a millisecond, unless it does not come: then a tenth of a
//! second. The ports are free ones, and nothing is left behind.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::sys::SyscallError;
use crate::sys::epoll::Epoll;

/// Longest wait for a handshake or a wakeup: either takes microseconds where it comes at all.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);

/// Addresses to try in turn: a machine may have only one of the families.
pub(crate) const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 0),
];

/// Why nothing could be tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoopbackError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

/// Two listeners, in order of their `listen()`.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) listeners: Vec<Socket>,
    address: SocketAddr,
    epoll: Epoll,
}

impl Pair {
    /// Opens them on `address`, whose port is 0, in the calling thread's network namespace.
    pub(crate) fn open(address: SocketAddr) -> Result<Self, LoopbackError> {
        let first = listener(address)?;
        let unavailable = || io::Error::from(io::ErrorKind::AddrNotAvailable);
        let address = first.local_addr()?.as_socket().ok_or_else(unavailable)?;
        let listeners = vec![first, listener(address)?];
        // Both are watched before anything happens. A later `epoll_wait` returns only what a wakeup
        // put on the ready list, exactly as if it had slept all the while; `poll` would look for
        // itself.
        let epoll = Epoll::new()?;
        for (listener, token) in listeners.iter().zip(0..) {
            epoll.watch(listener.as_fd(), token)?;
        }
        Ok(Self { listeners, address, epoll })
    }

    /// Connects, and says which listener is told of it; `None` where neither is in time.
    pub(crate) fn connect(&self) -> Result<Option<(Socket, usize)>, LoopbackError> {
        let client = Socket::new(Domain::for_address(self.address), Type::STREAM, None)?;
        // Closed by a reset: leaves no TIME_WAIT behind.
        client.set_linger(Some(Duration::ZERO))?;
        client.connect_timeout(&self.address.into(), PATIENCE)?;
        Ok(self.told()?.map(|place| (client, place)))
    }

    /// The listener that is told of a connection next, by its place in the order of `listen()`.
    pub(crate) fn told(&self) -> Result<Option<usize>, LoopbackError> {
        Ok(self.epoll.wait(PATIENCE)?.map(|token| token as usize))
    }
}

fn listener(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(8)?;
    Ok(socket)
}
