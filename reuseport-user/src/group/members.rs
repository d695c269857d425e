//! Who else is in the kernel's group, and our own sockets in the terms that the rest of the crate
//! speaks.

use std::os::fd::{AsFd as _, AsRawFd as _};

use reuseport_common::abi::Role;

use super::GroupError;
use super::open::{Endpoint, Opened};
use crate::discover::namespaces::Place;
use crate::discover::sock_diag::{Kind, Socket};
use crate::discover::{DiscoverError, NetnsChoice, Target, discover, procfs};
use crate::model::{
    Cpu, CpuSet, Evidence, Group, GroupKey, Holder, Listener, Netns, Pid, Served, Worker,
};
use crate::steer::attach::AttachOptions;
use crate::steer::attach::own::Request;
use crate::sys::caps::Confinement;
use crate::sys::{netns, sockopt};
use crate::topology::Topology;

/// A kernel's group with our sockets in it.
#[derive(Clone, Debug)]
pub(super) struct Members {
    /// All of it; ours come first, in order of the workers.
    pub(super) group: Group,
    /// How many are ours.
    pub(super) own: usize,
    /// Cookies of those that an older process of this program serves.
    pub(super) older: Vec<u64>,
    /// Whether this process takes over from nobody: older ones are its equals.
    beside_others: bool,
    /// Whether nobody can have attached a program before us.
    pub(super) fresh: bool,
    /// Whether some of ours are not ours alone: they stay open when we close them.
    #[cfg_attr(not(feature = "tokio"), expect(dead_code, reason = "the server's end asks"))]
    pub(super) inherited: bool,
}

impl Members {
    /// Looks who is there. `cpus` are the workers' of `opened`.
    pub(super) fn find(
        opened: &Opened,
        cpus: &[Cpu],
        beside_others: bool,
    ) -> Result<Self, GroupError> {
        let Opened { endpoint, sockets, inherited } = opened;
        let mut place = Place::own()?;
        let listed = place.list(Kind::from(endpoint.protocol), endpoint.address.port())?;
        let mut listeners = Vec::new();
        let mut key = None;
        for (socket, &cpu) in sockets.iter().zip(cpus) {
            let cookie = sockopt::cookie(socket.as_fd())?;
            let seen = listed.iter().find(|it| it.cookie == cookie);
            let seen = seen.ok_or(GroupError::Vanished { address: endpoint.address })?;
            key = Some(GroupKey {
                netns: place.netns().cookie,
                protocol: endpoint.protocol,
                address: seen.address,
                v6only: seen.v6only,
                device: seen.device,
                uid: seen.uid,
            });
            listeners.push(Listener {
                cookie,
                inode: seen.inode,
                queued: seen.queued,
                backlog: seen.backlog,
                holders: vec![own_holder(socket)],
                served: Served::By(vec![own_worker(cpu)]),
            });
        }
        let key = key.ok_or(GroupError::NoWorkers)?;
        let netns = place.netns().clone();
        let own = listeners.len();
        let group = Group { key, netns, listeners };
        let inherited = *inherited > 0;
        let (older, fresh) = (Vec::new(), !inherited);
        let mut members = Self { group, own, older, beside_others, fresh, inherited };
        members.add_others(&listed)?;
        Ok(members)
    }

    /// Of our own sockets alone, where the kernel may not be asked who else is there.
    pub(super) fn unseen(opened: &Opened, cpus: &[Cpu]) -> Result<Self, GroupError> {
        let Opened { endpoint: Endpoint { protocol, address }, sockets, inherited } = opened;
        let own = |(socket, &cpu): (&socket2::Socket, &Cpu)| -> Result<Listener, GroupError> {
            Ok(Listener {
                cookie: sockopt::cookie(socket.as_fd())?,
                inode: 0,
                queued: 0,
                backlog: 0,
                holders: vec![own_holder(socket)],
                served: Served::By(vec![own_worker(cpu)]),
            })
        };
        let listeners: Vec<_> = sockets.iter().zip(cpus).map(own).collect::<Result<_, _>>()?;
        let v6only = address.is_ipv6() && sockets.iter().any(|it| it.only_v6().unwrap_or(false));
        let key = GroupKey {
            netns: 0,
            protocol: *protocol,
            address: *address,
            v6only,
            device: 0,
            uid: Confinement::read().uid,
        };
        let netns = Netns { cookie: 0, inode: 0, pid: Some(std::process::id()), own: true };
        Ok(Self {
            own: listeners.len(),
            group: Group { key, netns, listeners },
            older: Vec::new(),
            beside_others: true,
            fresh: false,
            inherited: *inherited > 0,
        })
    }

    /// Looks again: who of us is still open, and who else is there.
    pub(super) fn refresh(&mut self) -> Result<(), GroupError> {
        let GroupKey { protocol, address, .. } = self.group.key;
        let listed = Place::own()?.list(Kind::from(protocol), address.port())?;
        self.group.listeners.truncate(self.own);
        self.group.listeners.retain_mut(|listener| {
            let seen = listed.iter().find(|it| it.cookie == listener.cookie);
            listener.queued = seen.map_or(0, |it| it.queued);
            seen.is_some()
        });
        self.own = self.group.listeners.len();
        self.add_others(&listed)
    }

    /// Our listeners.
    pub(super) fn own(&self) -> &[Listener] {
        &self.group.listeners[..self.own]
    }

    /// The others'.
    pub(super) fn others(&self) -> &[Listener] {
        &self.group.listeners[self.own..]
    }

    /// Connections that wait at our listeners to be accepted.
    pub(super) fn queued(&self) -> Result<u32, GroupError> {
        let GroupKey { protocol, address, .. } = self.group.key;
        let listed = Place::own()?.list(protocol.into(), address.port())?;
        let own = |it: &&Socket| self.own().iter().any(|listener| listener.cookie == it.cookie);
        Ok(listed.iter().filter(own).map(|it| it.queued).sum())
    }

    /// What to do about this group, for [`crate::steer::attach::own`].
    pub(super) fn request<'a>(
        &'a self,
        options: &'a AttachOptions,
        topology: &'a Topology,
        role: Role,
        superseded: &'a [u64],
    ) -> Request<'a> {
        let Self { ref group, own, fresh, .. } = *self;
        Request { options, topology, group, fresh, role, own, superseded }
    }

    /// Finds out who serves the others that are `listed`.
    fn add_others(&mut self, listed: &[Socket]) -> Result<(), GroupError> {
        let key = self.group.key;
        let own: Vec<u64> = self.own().iter().map(|listener| listener.cookie).collect();
        let same = |it: &&Socket| {
            (it.address, it.v6only, it.device, it.uid)
                == (key.address, key.v6only, key.device, key.uid)
        };
        self.older.clear();
        if listed.iter().filter(same).all(|it| own.contains(&it.cookie)) {
            return Ok(());
        }
        self.fresh = false;
        let target = Target {
            port: key.address.port(),
            addrs: vec![key.address.ip()],
            netns: NetnsChoice::Path(netns::OWN.into()),
            protocol: key.protocol,
        };
        let found = match discover(&target) {
            Ok(groups) => groups,
            // They went away, or may not be looked at.
            Err(DiscoverError::NobodyListens { .. } | DiscoverError::NoHolder { .. }) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let group = found.into_iter().find(|group| group.key == key);
        let us = std::process::id();
        let (name, started) = (procfs::name(us), (procfs::started(us), us));
        let is_older = |pid: Pid| {
            !self.beside_others
                && pid != us
                && (procfs::started(pid), pid) < started
                && procfs::name(pid) == name
        };
        for listener in group.into_iter().flat_map(|group| group.listeners) {
            if own.contains(&listener.cookie) {
                continue;
            }
            if listener.holders.iter().any(|holder| is_older(holder.pid)) {
                self.older.push(listener.cookie);
            }
            self.group.listeners.push(listener);
        }
        Ok(())
    }
}

fn own_holder(socket: &socket2::Socket) -> Holder {
    Holder { pid: std::process::id(), fd: socket.as_raw_fd() }
}

/// As told: its thread does not run yet.
fn own_worker(cpu: Cpu) -> Worker {
    let pid = std::process::id();
    let name = procfs::name(pid);
    Worker { pid, tid: None, name, cpus: CpuSet::from([cpu]), evidence: Evidence::Told }
}
