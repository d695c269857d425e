//! What ends the wait for the next tick: a listener that comes or goes, a worker's death, or somebody
//! who asks.
//!
//! Listeners are the kernel's news by a BPF program, and looked for again and again where there can be
//! none. `sock_diag` is not asked to tell, though it could without a privilege: it announces every TCP
//! socket of the namespace that is destroyed (`SKNLGRP_INET_TCP_DESTROY`), listeners among them, all
//! in state `TCP_CLOSE`, so that only their missing peer sets them apart; and none that begins to
//! listen, so that looking would have to go on as often. A socket filter keeps the connections from
//! waking us, but is asked last: for each of them the kernel has a worker thread write a message of 380
//! bytes first. Measured on 6.18 with such a filter and nobody woken, a connection on the loopback
//! interface, both of whose sockets are announced, took 2.0 us more in the process (40.2 against 38.2)
//! and 8.3 us more in that thread (10.4 against 2.1; medians of 8 interleaved pairs of 8000): a fifth
//! of a connection's cost, for a listener that its worker closes and lives on, seen 50 ms earlier.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::iter;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use reuseport_common::watch::Change;

use crate::bpf::BpfError;
use crate::bpf::watch::Watch;
use crate::model::Pid;
use crate::sys::epoll::Epoll;
use crate::sys::{SyscallError, pidfd};

/// The tokens of the socket and of the kernel's news; a process's is its id, which never is these.
const ASKED: u64 = u64::MAX;
const CHANGES: u64 = u64::MAX - 1;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// Somebody called [`Waker::wake`].
    Asked,
    /// A worker ended.
    Died(Pid),
    /// A listener came or went.
    Changed(Change),
}

/// Wakes the agent from any thread or signal handler.
#[derive(Debug)]
pub struct Waker(UnixStream);

impl Waker {
    /// Makes the agent look at what was asked of it, and tick.
    pub fn wake(&self) {
        // A full socket wakes too.
        let _full = (&self.0).write(&[0]);
    }

    /// What a signal handler writes to; it never blocks.
    pub fn socket(&self) -> io::Result<UnixStream> {
        self.0.try_clone()
    }
}

/// The descriptors that the agent sleeps on.
#[derive(Debug)]
pub(super) struct Wakes {
    epoll: Epoll,
    asked: UnixStream,
    /// A pidfd for each worker.
    workers: BTreeMap<Pid, OwnedFd>,
    /// What the kernel tells of listeners, where it does.
    watch: Option<Watch>,
}

impl Wakes {
    pub(super) fn new() -> Result<(Self, Waker), SyscallError> {
        let pair = || {
            let (asked, waker) = UnixStream::pair()?;
            asked.set_nonblocking(true)?;
            waker.set_nonblocking(true)?;
            Ok((asked, waker))
        };
        let (asked, waker) =
            pair().map_err(|source| SyscallError { call: "socketpair", source })?;
        let epoll = Epoll::new()?;
        epoll.watch(asked.as_fd(), ASKED)?;
        let workers = BTreeMap::new();
        Ok((Self { epoll, asked, workers, watch: None }, Waker(waker)))
    }

    /// Listens to what the kernel tells of listeners.
    pub(super) fn hear(&mut self, watch: Watch) -> Result<(), SyscallError> {
        self.epoll.watch(watch.as_fd(), CHANGES)?;
        self.watch = Some(watch);
        Ok(())
    }

    /// Has the kernel tell of listeners on these ports and no others.
    pub(super) fn listen_to(&mut self, ports: &BTreeSet<u16>) -> Result<(), BpfError> {
        self.watch.as_mut().map_or(Ok(()), |watch| watch.set_ports(ports))
    }

    /// Watches these processes and no others. One that cannot be watched (too many descriptors) is
    /// left to the next tick.
    pub(super) fn follow(&mut self, pids: &BTreeSet<Pid>) {
        self.workers.retain(|pid, _| pids.contains(pid));
        for &pid in pids {
            if self.workers.contains_key(&pid) {
                continue;
            }
            let watched = pidfd::open(pid).and_then(|process| {
                self.epoll.watch(process.as_fd(), u64::from(pid))?;
                Ok(process)
            });
            if let Ok(process) = watched {
                self.workers.insert(pid, process);
            }
        }
    }

    /// Waits until something happens or `timeout` has passed; says all that happened.
    pub(super) fn wait(&mut self, timeout: Duration) -> Result<Vec<Wake>, SyscallError> {
        let mut wakes = Vec::new();
        let mut timeout = timeout;
        while let Some(token) = self.epoll.wait(timeout)? {
            timeout = Duration::ZERO;
            // Edge-triggered: to the last word.
            match token {
                ASKED => {
                    while self.asked.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
                    wakes.push(Wake::Asked);
                }
                CHANGES => {
                    let changes =
                        self.watch.iter_mut().flat_map(|watch| iter::from_fn(|| watch.take()));
                    wakes.extend(changes.map(Wake::Changed));
                }
                pid => {
                    // Its number may come to mean another process.
                    self.workers.remove(&(pid as Pid));
                    wakes.push(Wake::Died(pid as Pid));
                }
            }
        }
        Ok(wakes)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_death_and_a_call_end_the_wait() {
        let (mut wakes, waker) = Wakes::new().unwrap();
        assert_eq!(wakes.wait(Duration::ZERO).unwrap(), []);
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        wakes.follow(&BTreeSet::from([child.id()]));
        assert_eq!(wakes.wait(Duration::ZERO).unwrap(), []);
        child.kill().unwrap();
        assert_eq!(wakes.wait(PATIENCE).unwrap(), [Wake::Died(child.id())]);
        child.wait().unwrap();
        waker.wake();
        waker.wake();
        assert_eq!(wakes.wait(PATIENCE).unwrap(), [Wake::Asked]);
        assert_eq!(wakes.wait(Duration::ZERO).unwrap(), []);
    }

    #[test]
    fn who_is_no_longer_followed_wakes_nobody() {
        let (mut wakes, _waker) = Wakes::new().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        wakes.follow(&BTreeSet::from([child.id(), Pid::MAX]));
        assert_eq!(wakes.workers.len(), 1);
        wakes.follow(&BTreeSet::new());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(wakes.wait(Duration::from_millis(50)).unwrap(), []);
    }
}
