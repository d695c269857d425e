//! Who listens on a port, who serves each listener, and on which CPUs; and taking a listener over
//! for a moment.
//!
//! [`discover`] asks the kernel for the sockets (`sock_diag`), `/proc` for the processes that have
//! them open, and looks at those processes where holding a listener does not say who serves it.
//! [`acquire`] duplicates one listener for as long as a closure runs.

pub mod acquire;
mod error;
mod evidence;
pub mod family;
mod look;
pub(crate) mod namespaces;
mod order;
pub mod overrides;
pub(crate) mod procfs;
mod roster;
pub(crate) mod sock_diag;
mod target;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

pub use error::{Candidate, DiscoverError};
pub use look::{Look, Queue};
pub use order::listen_order;
pub(crate) use procfs::started;
pub use roster::Roster;
pub use target::{NetnsChoice, Target};

use self::namespaces::{Found, Place};
use self::sock_diag::{Kind, Socket};
use crate::model::{Group, GroupKey, Holder, Listener, Netns, Protocol, Served};
use crate::sys::caps::{Cap, Confinement};

/// How often, and how far apart, listeners that nobody seems to serve are looked at again. Arbitrary:
/// an exit takes microseconds, on a busy host a time slice.
const LOOKS_BACK: usize = 3;
const LOOK_BACK_PAUSE: Duration = Duration::from_millis(4);

/// Finds the groups that `target` means, their listeners, and who serves them.
///
/// Groups come in order of family, address, device; listeners in order of their first holder's process
/// and descriptor. Changes nothing but for the socket cookies that the kernel makes on request.
pub fn discover(target: &Target) -> Result<Vec<Group>, DiscoverError> {
    let Found { mut place, mut sockets } = namespaces::find(target)?;
    choose(&mut sockets, target)?;
    let mut inodes: Vec<u64> = sockets.iter().map(|socket| socket.inode).collect();
    inodes.sort_unstable();
    let holders = procfs::holders(&inodes);
    // A dump is only asked for where there can be one: the kernel would look for a module.
    if target.protocol == Protocol::Tcp && Path::new("/proc/sys/net/mptcp").exists() {
        refuse_multipath(&mut place, &sockets, target.port)?;
    }
    let reason = why_unheld(holders.unreadable);
    if holders.by_inode.is_empty() {
        let listeners = sockets.len();
        return Err(DiscoverError::NoHolder { port: target.port, listeners, reason });
    }
    let mut groups = group(place.netns(), target.protocol, sockets, holders.by_inode);
    workers::assign(&mut groups, &reason);
    forget_gone(&mut groups, &mut place, target)?;
    if groups.is_empty() {
        return Err(namespaces::nobody(
            place,
            target,
            "the namespace whose listeners just went away".into(),
        ));
    }
    Ok(groups)
}

/// Leaves out listeners whose worker ended while we looked at it: what nobody can be seen to serve
/// may be gone by now.
fn forget_gone(
    groups: &mut Vec<Group>,
    place: &mut Place,
    target: &Target,
) -> Result<(), DiscoverError> {
    for _ in 0..LOOKS_BACK {
        let unknown = |it: &Listener| matches!(it.served, Served::Unknown(_));
        if !groups.iter().flat_map(|group| &group.listeners).any(unknown) {
            break;
        }
        // A process that ends lets go of its descriptors first, and of the sockets right after.
        sleep(LOOK_BACK_PAUSE);
        let sockets = place.list(target.protocol.into(), target.port)?;
        let alive: BTreeSet<u64> = sockets.iter().map(|socket| socket.cookie).collect();
        for group in groups.iter_mut() {
            group.listeners.retain(|it| alive.contains(&it.cookie));
        }
        groups.retain(|group| !group.listeners.is_empty());
    }
    Ok(())
}

/// Keeps the sockets on the addresses that were asked for.
fn choose(sockets: &mut Vec<Socket>, target: &Target) -> Result<(), DiscoverError> {
    let has = |address: IpAddr| sockets.iter().any(|socket| socket.address.ip() == address);
    if let Some(&address) = target.addrs.iter().find(|&&address| !has(address)) {
        let mut found: Vec<_> = sockets.iter().map(|socket| socket.address).collect();
        found.sort_unstable();
        found.dedup();
        return Err(DiscoverError::AddressNotFound { port: target.port, address, found });
    }
    if !target.addrs.is_empty() {
        sockets.retain(|socket| target.addrs.contains(&socket.address.ip()));
    }
    Ok(())
}

/// A multipath listener shows up among the TCP ones: its first subflow, which listens for it and has
/// the same file or none. Only the multipath dump tells.
fn refuse_multipath(place: &mut Place, sockets: &[Socket], port: u16) -> Result<(), DiscoverError> {
    // Kernels before 5.19 cannot list them; there taking the listener tells (`SO_PROTOCOL`).
    let Ok(outer) = place.list(Kind::MptcpListeners, port) else { return Ok(()) };
    let is_ours = |outer: &&Socket| sockets.iter().any(|socket| socket.address == outer.address);
    let Some(socket) = outer.iter().find(is_ours) else { return Ok(()) };
    let holders = procfs::holders(&[socket.inode]).by_inode;
    let pid = holders.get(&socket.inode).and_then(|holders| holders.first()).map(|it| it.pid);
    let name = pid.map(procfs::name).unwrap_or_default();
    Err(DiscoverError::Mptcp { pid, name, address: socket.address })
}

/// Why a listener has no holder that we can see.
fn why_unheld(unreadable: usize) -> String {
    if unreadable > 0 {
        let obstacle = Confinement::read().explain(Cap::SysPtrace);
        format!("{unreadable} processes do not let us see what they have open; {obstacle}")
    } else {
        "its process is in another pid namespace (share it: shareProcessNamespace, hostPID), \
         hidden by /proc's hidepid, or just ended"
            .to_owned()
    }
}

/// Sorts sockets into groups.
fn group(
    netns: &Netns,
    protocol: Protocol,
    sockets: Vec<Socket>,
    mut holders: BTreeMap<u64, Vec<Holder>>,
) -> Vec<Group> {
    let mut groups: BTreeMap<_, Group> = BTreeMap::new();
    for socket in sockets {
        let Socket { address, v6only, device, uid, inode, cookie, queued, backlog, .. } = socket;
        let key = GroupKey { netns: netns.cookie, protocol, address, v6only, device, uid };
        let listeners = Vec::new();
        let group = groups.entry((address, device, v6only, uid)).or_insert_with(|| Group {
            key,
            netns: netns.clone(),
            listeners,
        });
        group.listeners.push(Listener {
            cookie,
            inode,
            queued,
            backlog,
            holders: holders.remove(&inode).unwrap_or_default(),
            served: Served::Unknown(String::new()),
        });
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        // Cookies are made when first asked for, per CPU: their order means nothing to people. That of
        // processes and descriptors is mostly that of creation, and can be seen with `ss` and `ls`.
        group.listeners.sort_by_key(|listener| {
            let first = listener.holders.first().map(|holder| (holder.pid, holder.fd));
            (first.is_none(), first, listener.inode)
        });
    }
    groups
}

#[cfg(test)]
mod tests;
