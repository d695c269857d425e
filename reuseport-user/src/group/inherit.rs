//! Sockets that this process was started with: `LISTEN_FDS`, as systemd and `reuseport-steer run`
//! pass them (see sd_listen_fds(3)).

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, RawFd};

use socket2::{SockRef, Socket};

use super::open::Endpoint;
use super::{GroupError, Notice};
use crate::model::Protocol;
use crate::sys::{SyscallError, inherited, sockopt};

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Descriptors that may be sockets for us; each is given out once.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    fds: std::ops::Range<RawFd>,
}

impl Inherited {
    /// What the environment says was passed to this very process.
    pub(super) fn from_env() -> Self {
        Self::parse(std::process::id(), |name| std::env::var(name).ok())
    }

    fn parse(pid: u32, variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name| variable(name)?.parse::<u32>().ok();
        let count = match number("LISTEN_PID") {
            Some(meant) if meant == pid => number("LISTEN_FDS").unwrap_or(0),
            _ => 0,
        };
        // Nobody passes as many; beyond it stands no descriptor anyway.
        Self { fds: FIRST..FIRST + count.min(1 << 16) as RawFd }
    }

    /// Takes those on `endpoint`; others may be for another endpoint, or another purpose.
    pub(super) fn take(&mut self, endpoint: Endpoint) -> Result<Vec<Socket>, GroupError> {
        let mut sockets = Vec::new();
        for fd in self.fds.clone() {
            // Looked at before it is taken: it may be another's.
            let Ok(look) = inherited::duplicate(fd) else { continue };
            if !is_on(look.as_fd(), endpoint) {
                continue;
            }
            check(look.as_fd(), endpoint)?;
            drop(look);
            sockets.extend(inherited::take(fd)?.map(Socket::from));
        }
        Ok(sockets)
    }

    /// A word about each listener that is left: on what was meant, perhaps, but not quite.
    pub(super) fn unclaimed(&self) -> Vec<Notice> {
        let listener = |fd| {
            let look = inherited::is_free(fd).ok()?.then(|| inherited::duplicate(fd))?.ok()?;
            let listens = sockopt::listens(look.as_fd()).ok()?;
            sockopt::local_address(look.as_fd()).ok()?.filter(|_| listens)
        };
        let word = |address: SocketAddr| {
            Notice::new(
                format!("an inherited listener on {address} is on none of the group's addresses"),
                "unless something else in this process serves it, its clients connect and wait in \
                 vain: name that very address, or do not pass it",
            )
        };
        self.fds.clone().filter_map(listener).map(word).collect()
    }
}

/// Whether it is a socket of that kind and address.
fn is_on(fd: BorrowedFd<'_>, endpoint: Endpoint) -> bool {
    let kind = match endpoint.protocol {
        Protocol::Tcp => socket2::Type::STREAM,
        Protocol::Udp => socket2::Type::DGRAM,
    };
    let socket = SockRef::from(&fd);
    let connected = sockopt::has_peer(fd).unwrap_or(true);
    socket.r#type().is_ok_and(|it| it == kind)
        && sockopt::local_address(fd).is_ok_and(|address| address == Some(endpoint.address))
        && !connected
}

/// Whether it can be steered.
fn check(fd: BorrowedFd<'_>, endpoint: Endpoint) -> Result<(), GroupError> {
    let refuse = |reason| Err(GroupError::Inherited { address: endpoint.address, reason });
    let failed = |error: SyscallError| GroupError::from(error);
    if sockopt::protocol(fd).map_err(failed)? == sockopt::IPPROTO_MPTCP {
        return refuse(
            "it is a multipath TCP listener, which cannot be steered: pass a plain TCP one \
             (systemd: no `SocketProtocol=mptcp`)",
        );
    }
    if !sockopt::reuseport(fd).map_err(failed)? {
        return refuse(
            "it was opened without SO_REUSEPORT: set the option before bind (systemd: \
             `ReusePort=yes` in the socket unit)",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};

    use super::*;

    fn environment(pid: &str, fds: &str) -> Inherited {
        Inherited::parse(77, |name| match name {
            "LISTEN_PID" => Some(pid.to_owned()),
            "LISTEN_FDS" => Some(fds.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn only_what_is_meant_for_this_process_counts() {
        assert_eq!(environment("77", "2").fds, 3..5);
        for (pid, fds) in [("78", "2"), ("", "2"), ("77", ""), ("77", "-1"), ("77", "x")] {
            assert!(environment(pid, fds).fds.is_empty(), "{pid} {fds}");
        }
        assert!(Inherited::parse(77, |_| None).fds.is_empty());
    }

    /// Passes a socket as a parent would.
    fn passed(socket: &Socket) -> Inherited {
        let fd = inherited::inheritable(socket.as_fd()).unwrap().into_raw_fd();
        Inherited { fds: fd..fd + 1 }
    }

    fn listening(reuseport: bool) -> (Socket, Endpoint) {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_port(reuseport).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(1).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, Endpoint { protocol: Protocol::Tcp, address })
    }

    #[test]
    fn a_socket_on_the_address_is_taken_once_and_no_other() {
        let (socket, endpoint) = listening(true);
        let mut inherited = passed(&socket);
        let elsewhere =
            Endpoint { address: ([127, 0, 0, 2], endpoint.address.port()).into(), ..endpoint };
        assert!(inherited.take(elsewhere).unwrap().is_empty());
        assert!(
            inherited.take(Endpoint { protocol: Protocol::Udp, ..endpoint }).unwrap().is_empty()
        );
        let left: Vec<String> = inherited.unclaimed().into_iter().map(|it| it.what).collect();
        assert!(left.len() == 1 && left[0].contains(&endpoint.address.to_string()), "{left:?}");
        let taken = inherited.take(endpoint).unwrap();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].as_raw_fd(), inherited.fds.start);
        assert!(inherited.take(endpoint).unwrap().is_empty(), "given out already");
        assert_eq!(inherited.unclaimed(), []);
    }

    #[test]
    fn one_that_cannot_be_steered_is_refused_and_left_where_it_is() {
        let (socket, endpoint) = listening(false);
        let mut passed = passed(&socket);
        let error = passed.take(endpoint).unwrap_err();
        assert!(error.to_string().contains("ReusePort=yes"), "{error}");
        // Still open, and nobody's.
        let left = inherited::take(passed.fds.start).unwrap();
        assert!(left.is_some_and(|fd| TcpListener::from(fd).local_addr().is_ok()));
    }
}
