//! Opening the sockets of a group: all of them or none.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use socket2::{Domain, Socket, Type};

use super::inherit::Inherited;
use super::{GroupError, Occupant};
use crate::discover::procfs;
use crate::discover::sock_diag::{self, Kind};
use crate::model::{Pid, Protocol};
use crate::sys::caps::Confinement;
use crate::sys::netlink::SockDiag;

/// Where to listen, as the builder was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) protocol: Protocol,
    /// Port 0 lets the kernel choose.
    pub(super) address: SocketAddr,
}

/// How to listen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) backlog: u32,
    pub(super) v6only: bool,
}

/// The sockets of one address, in order of the workers.
#[derive(Debug)]
pub(super) struct Opened {
    /// With the port that the kernel chose.
    pub(super) endpoint: Endpoint,
    pub(super) sockets: Vec<Socket>,
    /// How many of them, the first ones, this process was started with.
    pub(super) inherited: usize,
}

/// Opens one socket per worker on every endpoint. Sockets that were handed to this process come
/// first. On error all are closed again.
pub(super) fn open(
    endpoints: &[Endpoint],
    workers: usize,
    options: Options,
    inherited: &mut Inherited,
) -> Result<Vec<Opened>, GroupError> {
    let needed = endpoints.len() * workers;
    let mut opened = Vec::new();
    for &endpoint in endpoints {
        let mut sockets = inherited.take(endpoint)?;
        let Endpoint { protocol, mut address } = endpoint;
        if sockets.len() > workers {
            let sockets = sockets.len();
            return Err(GroupError::TooManyInherited { address, sockets, workers });
        }
        let inherited = sockets.len();
        while sockets.len() < workers {
            let endpoint = Endpoint { protocol, address };
            let socket =
                bind(endpoint, options).map_err(|error| explain(error, endpoint, needed))?;
            // The others share the port that the first was given.
            address = local_address(&socket)?;
            sockets.push(socket);
        }
        let endpoint = Endpoint { protocol, address };
        opened.push(Opened { endpoint, sockets, inherited });
    }
    // Not before all are bound: what fails fails before the first client comes.
    for Opened { endpoint, sockets, .. } in &opened {
        if endpoint.protocol == Protocol::Tcp {
            for socket in sockets {
                let backlog = i32::try_from(options.backlog).unwrap_or(i32::MAX);
                socket.listen(backlog).map_err(|error| explain(error, *endpoint, needed))?;
            }
        }
    }
    Ok(opened)
}

/// The address that a socket of ours has.
pub(super) fn local_address(socket: &Socket) -> Result<SocketAddr, GroupError> {
    let address = crate::sys::sockopt::local_address(socket.as_fd())?;
    Ok(address.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))))
}

fn bind(endpoint: Endpoint, options: Options) -> io::Result<Socket> {
    let Endpoint { protocol, address } = endpoint;
    // Named, so that nothing turns TCP into multipath TCP, which cannot be steered.
    let (kind, protocol) = match protocol {
        Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
        Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if protocol == socket2::Protocol::TCP {
        // As std does: connections in TIME_WAIT do not keep a restarted server from its port.
        socket.set_reuse_address(true)?;
    }
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(options.v6only)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn explain(source: io::Error, endpoint: Endpoint, needed: usize) -> GroupError {
    let Endpoint { protocol, address } = endpoint;
    match source.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            GroupError::InUse { protocol, address, occupant: find_occupant(endpoint) }
        }
        Some(libc::EMFILE | libc::ENFILE) => GroupError::TooManyOpen { needed, source },
        Some(libc::ENOMEM) => GroupError::GroupFull { address },
        _ => GroupError::Bind { protocol, address, source },
    }
}

/// Who stands in the way. Our own sockets on the address are not it: they share the port.
fn find_occupant(endpoint: Endpoint) -> Occupant {
    let Endpoint { protocol, address } = endpoint;
    let Ok(mut diag) = SockDiag::open() else { return Occupant::Unseen };
    let mut kinds = vec![Kind::from(protocol)];
    kinds.extend((protocol == Protocol::Tcp).then_some(Kind::TcpBound));
    let listed = kinds.into_iter().filter_map(|kind| {
        // Kernels before 6.8 do not list what is only bound.
        sock_diag::list(&mut diag, kind, address.port()).ok()
    });
    let meets = |other: SocketAddr| {
        let any = other.ip().is_unspecified() || address.ip().is_unspecified();
        other.ip() == address.ip() || any
    };
    let sockets: Vec<_> = listed.flatten().filter(|socket| meets(socket.address)).collect();
    let uid = Confinement::read().uid;
    let holder = |inode: u64| -> Option<(Pid, String)> {
        let by_inode = procfs::holders(&[inode]).by_inode;
        let pid = by_inode.get(&inode)?.first()?.pid;
        Some((pid, procfs::name(pid)))
    };
    if let Some(other) = sockets.iter().find(|socket| socket.uid != uid) {
        return Occupant::OtherUser { uid: other.uid, holder: holder(other.inode) };
    }
    let own = std::process::id();
    for socket in &sockets {
        match holder(socket.inode) {
            Some((pid, _)) if pid == own => {}
            holder => return Occupant::NotReuseport { holder },
        }
    }
    // Another group of this very process, which was opened without the option.
    match sockets.first().and_then(|socket| holder(socket.inode)) {
        Some(holder) => Occupant::NotReuseport { holder: Some(holder) },
        None => Occupant::Unseen,
    }
}
