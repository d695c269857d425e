//! The port: free before we start, listened on by whom we started, drained before they end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::discover::acquire::with_listener;
use crate::discover::family::{self, Listening};
use crate::discover::{DiscoverError, Target, discover};
use crate::model::{Evidence, Pid, Served};
use crate::steer::SteerError;
use crate::sys::sockopt;

use super::LaunchError;

/// Connections that may wait to be accepted, at most `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Refuses a port that somebody listens on, where our copies would be in their way or among them.
pub(super) fn refuse_taken(target: &Target) -> Result<(), LaunchError> {
    for Listening { address, v6only, pid, name } in family::listeners(target.port)? {
        let meets = |&own: &IpAddr| meet(own, address.ip(), v6only);
        if target.addrs.is_empty() || target.addrs.iter().any(meets) {
            let who = pid.map_or("a process that we cannot see".to_owned(), |pid| {
                format!("process {pid} ({name})")
            });
            return Err(LaunchError::PortInUse { port: target.port, who, address });
        }
    }
    Ok(())
}

/// Whether one port on both addresses would be one port; listeners of ours on IPv6 take IPv4, too.
fn meet(own: IpAddr, other: IpAddr, other_is_v6only: bool) -> bool {
    let (own, other) = (own.to_canonical(), other.to_canonical());
    match (own, other) {
        (IpAddr::V6(own), IpAddr::V4(_)) => own.is_unspecified(),
        (IpAddr::V4(_), IpAddr::V6(other)) => other.is_unspecified() && !other_is_v6only,
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
            own == other || own.is_unspecified() || other.is_unspecified()
        }
    }
}

/// A listener of our own to hand over, and its cookie.
pub(super) fn open(address: SocketAddr) -> Result<(OwnedFd, u64), LaunchError> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    let socket = open().map_err(|source| LaunchError::Listen { address, source })?;
    let listener = OwnedFd::from(socket);
    let cookie = sockopt::cookie(std::os::fd::AsFd::as_fd(&listener))?;
    Ok((listener, cookie))
}

/// Nothing goes to the listener any more, whoever else still has it open.
pub(super) fn stop_listening(listener: &OwnedFd) {
    // It fails only where it did not listen anyway.
    drop(SockRef::from(listener).shutdown(Shutdown::Read));
}

/// Which of the processes (with their descendants) listen, by cookies of their listeners.
pub(super) fn listening(
    target: &Target,
    roots: &[Pid],
) -> Result<BTreeMap<Pid, BTreeSet<u64>>, LaunchError> {
    Ok(family::listening(target.port, &target.addrs, roots)?)
}

/// Which of the processes (with their descendants) are seen to accept from a listener they were
/// given.
pub(super) fn accepting(target: &Target, roots: &[Pid]) -> Result<BTreeSet<Pid>, SteerError> {
    let mut seen = BTreeSet::new();
    for listener in discover(target)?.iter().flat_map(|group| &group.listeners) {
        let Served::By(workers) = &listener.served else { continue };
        // To have it open is no proof: so has the launcher, and a copy that never looks at it.
        let strong = workers.iter().filter(|worker| worker.evidence <= Evidence::EpollSet);
        seen.extend(strong.map(|worker| worker.pid));
    }
    let accepts = |root: &Pid| family::tree(*root).iter().any(|pid| seen.contains(pid));
    Ok(roots.iter().copied().filter(accepts).collect())
}

/// Refuses listeners that cannot be steered: without `SO_REUSEPORT`, multipath, or not ours to take.
pub(super) fn examine(target: &Target, cookies: &BTreeSet<u64>) -> Result<(), SteerError> {
    let groups = match discover(target) {
        // It ended meanwhile: the supervisor sees to that.
        Err(DiscoverError::NobodyListens { .. }) => return Ok(()),
        groups => groups?,
    };
    for group in groups {
        for listener in group.listeners.iter().filter(|it| cookies.contains(&it.cookie)) {
            match with_listener(listener, &group.key, |_| ()) {
                // As above.
                Err(error) if !error.is_gone() => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_meet_or_do_not() {
        let meets = |own: &str, other: &str, v6only| {
            meet(own.parse().unwrap(), other.parse().unwrap(), v6only)
        };
        for (own, other, v6only) in [
            ("127.0.0.1", "127.0.0.1", false),
            ("0.0.0.0", "127.0.0.1", false),
            ("127.0.0.1", "0.0.0.0", false),
            ("127.0.0.1", "::", false),
            ("127.0.0.1", "::ffff:127.0.0.1", false),
            ("::", "127.0.0.1", false),
            ("::", "::1", true),
            ("::1", "::", true),
        ] {
            assert!(meets(own, other, v6only), "{own} {other} {v6only}");
        }
        for (own, other, v6only) in [
            ("127.0.0.1", "127.0.0.2", false),
            ("0.0.0.0", "::1", false),
            ("0.0.0.0", "::", true),
            ("127.0.0.1", "::1", true),
            ("::1", "0.0.0.0", false),
            ("::1", "::2", true),
        ] {
            assert!(!meets(own, other, v6only), "{own} {other} {v6only}");
        }
    }
}
