//! What processes that we started have open on a port, in our own network namespace: quick looks,
//! at these processes and their children alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::procfs::{self, Open};
use super::sock_diag::{self, Kind, Socket};
use crate::model::Pid;
use crate::sys::netlink::{DumpError, SockDiag};

/// Cookies of the listeners that each of `roots` or its descendants has open; a multipath listener
/// counts.
pub fn listening(
    port: u16,
    addrs: &[IpAddr],
    roots: &[Pid],
) -> Result<BTreeMap<Pid, BTreeSet<u64>>, DumpError> {
    let mut diag = SockDiag::open()?;
    let mut sockets = sock_diag::list(&mut diag, Kind::TcpListeners, port)?;
    // A dump is only asked for where there can be one: the kernel would look for a module. Kernels
    // before 5.19 cannot list them.
    if Path::new("/proc/sys/net/mptcp").exists() {
        sockets.extend(sock_diag::list(&mut diag, Kind::MptcpListeners, port).unwrap_or_default());
    }
    sockets.retain(|socket| addrs.is_empty() || addrs.contains(&socket.address.ip()));
    let mut found = BTreeMap::new();
    if sockets.is_empty() {
        return Ok(found);
    }
    for &root in roots {
        let open = open_sockets(root);
        let own = sockets.iter().filter(|socket| open.contains(&socket.inode));
        let cookies: BTreeSet<u64> = own.map(|socket| socket.cookie).collect();
        if !cookies.is_empty() {
            found.insert(root, cookies);
        }
    }
    Ok(found)
}

/// Connections that wait to be accepted from these listeners, by cookie.
pub fn waiting(port: u16, listeners: &BTreeSet<u64>) -> Result<u32, DumpError> {
    let mut diag = SockDiag::open()?;
    let sockets = sock_diag::list(&mut diag, Kind::TcpListeners, port)?;
    let ours = sockets.iter().filter(|socket| listeners.contains(&socket.cookie));
    Ok(ours.map(|socket| socket.queued).sum())
}

/// Connections on the port that `root` or its descendants have accepted and not closed.
pub fn connections(port: u16, root: Pid) -> Result<usize, DumpError> {
    let mut diag = SockDiag::open()?;
    let sockets = sock_diag::list(&mut diag, Kind::TcpConnections, port)?;
    let accepted: Vec<&Socket> = sockets.iter().filter(|socket| socket.inode != 0).collect();
    if accepted.is_empty() {
        return Ok(0);
    }
    let open = open_sockets(root);
    Ok(accepted.into_iter().filter(|socket| open.contains(&socket.inode)).count())
}

/// Somebody who listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Where.
    pub address: SocketAddr,
    /// IPv6 only; false for IPv4.
    pub v6only: bool,
    /// A process that has it open, where one can be seen.
    pub pid: Option<Pid>,
    /// Its name.
    pub name: String,
}

/// Who listens on the port, whosever process it is.
pub fn listeners(port: u16) -> Result<Vec<Listening>, DumpError> {
    let mut diag = SockDiag::open()?;
    let sockets = sock_diag::list(&mut diag, Kind::TcpListeners, port)?;
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    let mut inodes: Vec<u64> = sockets.iter().map(|socket| socket.inode).collect();
    inodes.sort_unstable();
    let holders = procfs::holders(&inodes).by_inode;
    let describe = |socket: Socket| {
        let holder = holders.get(&socket.inode).and_then(|holders| holders.first());
        let pid = holder.map(|holder| holder.pid);
        Listening {
            address: socket.address,
            v6only: socket.v6only,
            pid,
            name: pid.map(procfs::name).unwrap_or_default(),
        }
    };
    Ok(sockets.into_iter().map(describe).collect())
}

/// Direct children of a process, ascending.
pub fn children(pid: Pid) -> Vec<Pid> {
    procfs::children(pid)
}

/// The process and all its descendants.
pub fn tree(root: Pid) -> Vec<Pid> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        all.extend(procfs::children(pid));
        next += 1;
    }
    all
}

/// Whether the process group has a member below `root` that has not ended.
pub fn is_group_alive(root: Pid, group: Pid) -> bool {
    tree(root).into_iter().any(|pid| procfs::group(pid) == group)
}

/// Inodes of the sockets that a tree of processes has open.
fn open_sockets(root: Pid) -> BTreeSet<u64> {
    let files = tree(root).into_iter().filter_map(|pid| procfs::open_files(pid).ok()).flatten();
    let inode = |(_, open)| match open {
        Open::Socket(inode) => Some(inode),
        _ => None,
    };
    files.filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::sockopt;

    #[test]
    fn sees_what_this_process_has_open() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (port, me) = (address.port(), std::process::id());
        let cookie = sockopt::cookie(listener.as_fd()).unwrap();
        let ours = BTreeSet::from([cookie]);
        let parent = std::os::unix::process::parent_id();

        let expected = BTreeMap::from([(me, ours.clone()), (parent, ours.clone())]);
        assert_eq!(listening(port, &[], &[me, parent]).unwrap(), expected);
        let elsewhere = "127.0.0.2".parse().unwrap();
        assert_eq!(listening(port, &[elsewhere], &[me]).unwrap(), BTreeMap::new());
        let all = listeners(port).unwrap();
        assert_eq!((all[0].address, all[0].pid), (address, Some(me)));

        assert_eq!((waiting(port, &ours).unwrap(), connections(port, me).unwrap()), (0, 0));
        let client = TcpStream::connect(address).unwrap();
        assert_eq!((waiting(port, &ours).unwrap(), connections(port, me).unwrap()), (1, 0));
        let accepted = listener.accept().unwrap();
        assert_eq!((waiting(port, &ours).unwrap(), connections(port, me).unwrap()), (0, 1));
        drop(accepted);
        assert_eq!(connections(port, me).unwrap(), 0);
        drop(client);
    }
}
