//! Whether a migrated connection wakes the listener it was moved to.
//!
//! Kernels with CVE-2026-46015 queue it there and tell nobody: whoever sleeps in `epoll_wait` or
//! `accept` sleeps on until the next connection, and a client that would have been reset hangs
//! instead. Versions do not tell (the fix was backported here and there): one migration of our own
//! between two listeners on the loopback interface does.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use crate::loopback::{ADDRESSES, LoopbackError, Pair};
use crate::sys::{bpf, sockopt};

/// What a migration did to the listener that got the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// Woke it.
    Wakes,
    /// The connection was there to accept, and nobody had been told.
    DoesNotWake,
    /// Nothing was migrated: no loopback interface that works, or a limit in the way.
    Unknown,
}

/// Whether the program that was loaded migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    /// It does.
    Loaded,
    /// Not in this kernel.
    Unsupported,
    /// The kernel would, and leave the connections hanging (CVE-2026-46015).
    Hangs,
}

impl Migration {
    /// What to do on a kernel that can migrate. Not knowing is no reason to do without: nearly every
    /// kernel in use is repaired.
    pub(super) fn with(wakeup: Wakeup) -> Self {
        match wakeup {
            Wakeup::Wakes | Wakeup::Unknown => Self::Loaded,
            Wakeup::DoesNotWake => Self::Hangs,
        }
    }

    /// Whether it is the migrating program.
    pub fn migrates(self) -> bool {
        self == Self::Loaded
    }

    /// What to tell whoever attaches, and what can be done about it.
    pub fn notice(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Loaded | Self::Unsupported => None,
            Self::Hangs => Some((
                "connections queued at a listener that closes are not migrated: this kernel would \
                 leave them hanging until the next connection (CVE-2026-46015)",
                "update the kernel, boot it, and attach again; until then such connections are \
                 reset, as without steering",
            )),
        }
    }
}

/// Migrates a connection of our own in the calling thread's network namespace.
///
/// Takes well below a millisecond, unless the wakeup or the handshake does not come: then a tenth of
/// a second or two. Uses a free port, and leaves nothing behind.
pub fn probe() -> Wakeup {
    ADDRESSES
        .into_iter()
        .map(|address| migrate(address).unwrap_or(Wakeup::Unknown))
        .find(|&wakeup| wakeup != Wakeup::Unknown)
        .unwrap_or(Wakeup::Unknown)
}

/// Connects to one of two listeners, closes it, and sees what the other learns of that.
fn migrate(address: SocketAddr) -> Result<Wakeup, LoopbackError> {
    let mut pair = Pair::open(address)?;
    // Not the one that steers: its counters and its log are for the group's connections.
    let program = bpf::load_passing_migrator("wakeup_probe")?;
    sockopt::attach_reuseport(pair.listeners[0].as_fd(), program.as_fd())?;
    let Some((client, closes)) = pair.connect()? else { return Ok(Wakeup::Unknown) };
    // Migrates at once, before `close` returns.
    drop(pair.listeners.remove(closes));
    let told = pair.told()? == Some(1 - closes);
    let migrated = match pair.listeners[0].accept() {
        Ok((_, peer)) => peer.as_socket() == client.local_addr()?.as_socket(),
        Err(_) => false,
    };
    Ok(judge(told, migrated))
}

/// Only a connection that has been moved says something of wakeups.
fn judge(told: bool, migrated: bool) -> Wakeup {
    match (migrated, told) {
        (true, true) => Wakeup::Wakes,
        (true, false) => Wakeup::DoesNotWake,
        (false, _) => Wakeup::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns;

    #[test]
    fn a_migrated_connection_wakes_its_new_listener_here() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            assert_eq!(migrate(address.parse().unwrap()).unwrap(), Wakeup::Wakes, "{address}");
        }
        assert_eq!(probe(), Wakeup::Wakes);
    }

    #[test]
    fn without_a_loopback_interface_nothing_is_known() {
        assert_eq!(netns::inside(&netns::fresh().unwrap(), probe).unwrap(), Wakeup::Unknown);
    }

    #[test]
    fn only_a_moved_connection_is_evidence() {
        assert_eq!(judge(true, true), Wakeup::Wakes);
        assert_eq!(judge(false, true), Wakeup::DoesNotWake);
        assert_eq!(judge(false, false), Wakeup::Unknown);
        assert_eq!(judge(true, false), Wakeup::Unknown);
    }

    #[test]
    fn says_why_it_does_without() {
        let (what, remedy) = Migration::Hangs.notice().unwrap();
        assert!(what.contains("CVE-2026-46015") && remedy.contains("kernel"), "{what}; {remedy}");
        assert_eq!(Migration::Loaded.notice(), None);
        assert_eq!(Migration::Unsupported.notice(), None);
    }
}
