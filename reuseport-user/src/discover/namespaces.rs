//! Listeners of the namespaces that a target names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use super::error::{Candidate, DiscoverError};
use super::procfs;
use super::sock_diag::{self, Kind, Socket};
use super::target::{NetnsChoice, Target};
use crate::model::{Netns, Pid, Protocol};
use crate::sys::caps::{Cap, Confinement};
use crate::sys::netlink::SockDiag;
use crate::sys::netns::{self, NetnsError};

/// A namespace we can look into.
#[derive(Debug)]
pub(crate) struct Place {
    netns: Netns,
    /// To enter it; `None` for our own, which needs no entering.
    file: Option<File>,
}

/// What a namespace has.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) sockets: Vec<Socket>,
}

impl Place {
    /// The calling thread's namespace.
    pub(crate) fn own() -> Result<Self, DiscoverError> {
        let inode = own_inode()?;
        let netns = Netns { cookie: 0, inode, pid: Some(std::process::id()), own: true };
        Ok(Self { netns, file: None })
    }

    fn open(path: &Path, pid: Option<Pid>) -> Result<Self, DiscoverError> {
        let failed = |source| DiscoverError::OpenNetns { path: path.to_owned(), source };
        let file = netns::open(path).map_err(failed)?;
        let inode = netns::inode(path).map_err(failed)?;
        let own = inode == own_inode()?;
        let netns = Netns { cookie: 0, inode, pid, own };
        Ok(Self { netns, file: (!own).then_some(file) })
    }

    /// The namespace that a target names, or one that was found before.
    pub(crate) fn of(target: &Target, found: &Netns) -> Result<Self, DiscoverError> {
        let path = match (&target.netns, found.pid) {
            (NetnsChoice::Path(path), _) => path.clone(),
            (NetnsChoice::Pid(pid), _) => format!("/proc/{pid}/ns/net").into(),
            (NetnsChoice::Auto, Some(pid)) if !found.own => format!("/proc/{pid}/ns/net").into(),
            (NetnsChoice::Auto, _) => return Self::own(),
        };
        Self::open(&path, found.pid)
    }

    /// Opens a channel to its sockets.
    pub(crate) fn diag(&self) -> Result<SockDiag, DiscoverError> {
        match &self.file {
            None => Ok(SockDiag::open()?),
            Some(file) => Ok(netns::inside(file, SockDiag::open)??),
        }
    }

    /// The namespace, with its cookie once it was looked into.
    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Lists sockets inside, and learns the cookie.
    pub(crate) fn list(&mut self, kind: Kind, port: u16) -> Result<Vec<Socket>, DiscoverError> {
        let inode = self.netns.inode;
        let work = move || -> Result<_, DiscoverError> {
            let mut diag = SockDiag::open()?;
            Ok((netns::cookie(inode)?, sock_diag::list(&mut diag, kind, port)?))
        };
        let (cookie, sockets) = match &self.file {
            None => work()?,
            Some(file) => netns::inside(file, work)??,
        };
        self.netns.cookie = cookie;
        Ok(sockets)
    }
}

fn own_inode() -> Result<u64, DiscoverError> {
    let path = Path::new(netns::OWN);
    let failed = |source| DiscoverError::OpenNetns { path: path.to_owned(), source };
    netns::inode(path).map_err(failed)
}

/// Finds the one namespace that the target means, and its sockets on the port.
pub(crate) fn find(target: &Target) -> Result<Found, DiscoverError> {
    match &target.netns {
        NetnsChoice::Pid(pid) => {
            let path = format!("/proc/{pid}/ns/net");
            let place = match Place::open(path.as_ref(), Some(*pid)) {
                Err(DiscoverError::OpenNetns { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    return Err(DiscoverError::NoProcess(*pid));
                }
                result => result?,
            };
            only(place, target, &format!("the network namespace of process {pid}"))
        }
        NetnsChoice::Path(path) => {
            let looked = format!("network namespace {}", path.display());
            only(Place::open(path, None)?, target, &looked).map_err(|error| match error {
                DiscoverError::EnterNetns(NetnsError::NotNetns(_)) => {
                    DiscoverError::NotNetns { path: path.clone() }
                }
                error => error,
            })
        }
        NetnsChoice::Auto => search(target),
    }
}

/// Looks into one namespace.
fn only(mut place: Place, target: &Target, looked: &str) -> Result<Found, DiscoverError> {
    let sockets = place.list(target.protocol.into(), target.port)?;
    if sockets.is_empty() {
        return Err(nobody(place, target, looked.to_owned()));
    }
    Ok(Found { place, sockets })
}

/// Looks into every namespace that a visible process lives in.
fn search(target: &Target) -> Result<Found, DiscoverError> {
    let mut own = Place::own()?;
    let sockets = own.list(target.protocol.into(), target.port)?;
    let mut found: Vec<Found> = Vec::new();
    let mut looked = 1;
    let mut closed = 0;
    let mut own_is_empty = None;
    if sockets.is_empty() {
        own_is_empty = Some(own);
    } else {
        found.push(Found { place: own, sockets });
    }
    let (others, hidden) = others()?;
    for pid in others.into_values() {
        let path = format!("/proc/{pid}/ns/net");
        let looked_into = Place::open(path.as_ref(), Some(pid)).and_then(|mut place| {
            let sockets = place.list(target.protocol.into(), target.port)?;
            Ok(Found { place, sockets })
        });
        match looked_into {
            Ok(Found { sockets, .. }) if sockets.is_empty() => looked += 1,
            Ok(more) => {
                looked += 1;
                found.push(more);
            }
            // The process is gone, or its namespace is not for us.
            Err(
                DiscoverError::OpenNetns { .. }
                | DiscoverError::EnterNetns(NetnsError::NotPermitted(_)),
            ) => closed += 1,
            Err(error) => return Err(error),
        }
    }
    // An address that only one of them has makes it the one.
    if found.len() > 1 && !target.addrs.is_empty() {
        let wanted = |found: &Found| {
            found.sockets.iter().any(|socket| target.addrs.contains(&socket.address.ip()))
        };
        if found.iter().any(wanted) {
            found.retain(wanted);
        }
    }
    match (found.len(), own_is_empty) {
        (0, Some(own)) => {
            let mut text = match looked {
                1 => "this network namespace".to_owned(),
                _ => format!("{looked} network namespaces"),
            };
            if closed > 0 {
                text = format!(
                    "{text} ({closed} more could not be entered: CAP_SYS_ADMIN is missing, or run inside)"
                );
            }
            if hidden > 0 {
                // Some are closed to everybody, and then there is nothing to be done about it.
                let missing = !Confinement::read().has(Cap::SysPtrace);
                let why = if missing { ": CAP_SYS_PTRACE is missing" } else { "" };
                text = format!("{text} ({hidden} processes do not show theirs{why})");
            }
            Err(nobody(own, target, text))
        }
        (1, _) => Ok(found.remove(0)),
        _ => Err(ambiguous(target.port, found)),
    }
}

/// Namespaces that processes live in, other than ours: inode to one such process. And how many
/// processes do not let us see theirs.
fn others() -> Result<(BTreeMap<u64, Pid>, usize), DiscoverError> {
    let own = own_inode()?;
    let mut others = BTreeMap::new();
    let mut hidden = 0;
    for pid in procfs::pids() {
        match procfs::netns(pid) {
            Ok(inode) if inode != own => _ = others.entry(inode).or_insert(pid),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden += 1,
            _ => {}
        }
    }
    Ok((others, hidden))
}

/// The error that lists where the listeners are.
fn ambiguous(port: u16, found: Vec<Found>) -> DiscoverError {
    let mut inodes: Vec<u64> =
        found.iter().flat_map(|found| &found.sockets).map(|socket| socket.inode).collect();
    inodes.sort_unstable();
    let holders = procfs::holders(&inodes).by_inode;
    let candidate = |found: Found| {
        let held = found.sockets.iter().find_map(|socket| holders.get(&socket.inode)?.first());
        let mut netns = found.place.netns;
        netns.pid = held.map(|holder| holder.pid).or(netns.pid);
        let mut addresses: Vec<_> = found.sockets.iter().map(|socket| socket.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let name = netns.pid.map(procfs::name).unwrap_or_default();
        Candidate { netns, name, addresses }
    };
    DiscoverError::Ambiguous { port, candidates: found.into_iter().map(candidate).collect() }
}

/// The error that says where we looked, and what is there instead.
pub(crate) fn nobody(mut place: Place, target: &Target, looked: String) -> DiscoverError {
    let Target { port, protocol, .. } = *target;
    let mut instead = |kind| place.list(kind, port).is_ok_and(|sockets| !sockets.is_empty());
    let hint = match protocol {
        Protocol::Tcp if instead(Kind::TcpBound) => {
            "; a socket is bound to it but does not listen yet"
        }
        Protocol::Tcp if instead(Kind::UdpUnconnected) => "; a UDP socket is bound to it (--udp)",
        Protocol::Udp if instead(Kind::TcpListeners) => "; a TCP listener is (without --udp)",
        _ => "",
    };
    DiscoverError::NobodyListens { port, protocol, looked, hint: hint.to_owned() }
}
