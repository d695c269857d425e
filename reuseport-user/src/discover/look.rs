//! A glance at a port: which sockets are there, asked of the kernel again and again.
//!
//! It takes one dump where [`super::discover`] looks through `/proc`. Whether anything is different
//! is all that it can tell.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::error::DiscoverError;
use super::namespaces::Place;
use super::sock_diag::{self, Kind, Socket};
use super::target::Target;
use crate::model::{Netns, Protocol};
use crate::sys::netlink::SockDiag;

/// An open channel to one namespace's sockets on a port. It keeps the namespace alive: drop it when
/// nobody listens there any more.
#[derive(Debug)]
pub struct Look {
    diag: SockDiag,
    target: Target,
}

impl Look {
    /// Opens one for the namespace that the target names, or for `found` where it names none.
    pub fn open(target: &Target, found: &Netns) -> Result<Self, DiscoverError> {
        let diag = Place::of(target, found)?.diag()?;
        Ok(Self { diag, target: target.clone() })
    }

    /// Opens one for the namespace that this process lives in, whatever the target names.
    pub fn here(target: &Target) -> Result<Self, DiscoverError> {
        Ok(Self { diag: SockDiag::open()?, target: target.clone() })
    }

    /// Cookies of the target's sockets that are there now.
    pub fn cookies(&mut self) -> Result<BTreeSet<u64>, DiscoverError> {
        let Target { port, protocol, addrs, .. } = &self.target;
        let sockets = sock_diag::list(&mut self.diag, (*protocol).into(), *port)?;
        let meant = |ip| addrs.is_empty() || addrs.contains(&ip);
        let sockets = sockets.into_iter().filter(|socket| meant(socket.address.ip()));
        Ok(sockets.map(|socket| socket.cookie).collect())
    }

    /// Accept queues of the listeners on the target's port, by cookie: those of the same family as
    /// `address`, in one dump.
    pub fn queues(&mut self, address: &SocketAddr) -> Result<Vec<Queue>, DiscoverError> {
        let Target { port, protocol, .. } = &self.target;
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let kind = (*protocol).into();
        let sockets = sock_diag::list_family(&mut self.diag, kind, *port, family)?;
        let queue = |it: Socket| {
            let Socket { cookie, queued, backlog, dropped, .. } = it;
            Queue { cookie, queued, backlog, dropped }
        };
        Ok(sockets.into_iter().map(queue).collect())
    }

    /// Cookies of the connections to the target's port, whatever the address, whose handshake is not
    /// done. Which listener they are for is not told. None for UDP.
    pub fn handshakes(&mut self) -> Result<BTreeSet<u64>, DiscoverError> {
        if self.target.protocol != Protocol::Tcp {
            return Ok(BTreeSet::new());
        }
        let open = sock_diag::list(&mut self.diag, Kind::TcpHandshakes, self.target.port)?;
        Ok(open.into_iter().map(|socket| socket.cookie).collect())
    }
}

/// A listener's accept queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The listener.
    pub cookie: u64,
    /// Connections waiting to be accepted.
    pub queued: u32,
    /// Most that may wait.
    pub backlog: u32,
    /// Connections and segments for it that were dropped since it is there, mostly because the queue was
    /// full; where it defers accepting (`TCP_DEFER_ACCEPT`) also the last segment of each handshake;
    /// wraps.
    pub dropped: u32,
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::discover::{NetnsChoice, discover};

    #[test]
    fn sees_who_comes_and_who_goes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let netns = NetnsChoice::Pid(std::process::id());
        let target = Target { netns, ..Target::tcp(port) };
        let group = discover(&target).unwrap().remove(0);
        let mut look = Look::open(&target, &group.netns).unwrap();
        assert_eq!(look.cookies().unwrap(), BTreeSet::from([group.listeners[0].cookie]));
        let address = group.key.address;
        let queue =
            Queue { cookie: group.listeners[0].cookie, queued: 0, backlog: 128, dropped: 0 };
        assert_eq!(look.queues(&address).unwrap(), [queue]);
        let _client = TcpStream::connect(address).unwrap();
        assert_eq!(look.queues(&address).unwrap(), [Queue { queued: 1, ..queue }]);
        let elsewhere = Target { addrs: vec!["127.0.0.2".parse().unwrap()], ..target };
        let mut other = Look::open(&elsewhere, &group.netns).unwrap();
        assert_eq!(other.cookies().unwrap(), BTreeSet::new());
        drop(listener);
        assert_eq!(look.cookies().unwrap(), BTreeSet::new());
    }
}
