//! What a group is to be.

use std::net::SocketAddr;
use std::path::PathBuf;

use reuseport_common::abi::Policy;

use super::handover::Handed;
use super::inherit::Inherited;
use super::open::{self, Endpoint};
use super::steering::Plans;
use super::workers::Workers;
use super::{Group, GroupError, launched};
use crate::bpf::pins::BPFFS;
use crate::model::Protocol;
use crate::rungs::Rung;
use crate::steer::{Notice, Settings};
use crate::sys::sched;
use crate::topology::Topology;

/// Connections that may wait to be accepted, unless told; the kernel's own `net.core.somaxconn` since
/// 5.4, which caps it.
const BACKLOG: u32 = 4096;

/// Opens a [`Group`]. Nothing happens before [`GroupBuilder::build`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `build`"]
pub struct GroupBuilder {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) workers: Workers,
    pub(super) backlog: u32,
    pub(super) v6only: bool,
    pub(super) policy: Policy,
    pub(super) spill: Option<u32>,
    pub(super) rung: Option<Rung>,
    /// `None` for the launcher's, or the usual one.
    pub(super) bpffs: Option<PathBuf>,
    pub(super) standby: bool,
    pub(super) beside_others: bool,
}

impl Default for GroupBuilder {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            workers: Workers::default(),
            backlog: BACKLOG,
            v6only: false,
            policy: Policy::Cpu,
            spill: None,
            rung: None,
            bpffs: None,
            standby: false,
            beside_others: false,
        }
    }
}

impl GroupBuilder {
    /// Listens on `address` with TCP. Call it again for further addresses: each worker has a listener
    /// on each. Port 0 lets the kernel choose one; see [`Group::addresses`].
    pub fn tcp(self, address: impl Into<SocketAddr>) -> Self {
        self.endpoint(Protocol::Tcp, address.into())
    }

    /// Receives datagrams on `address`; as [`GroupBuilder::tcp`] otherwise.
    pub fn udp(self, address: impl Into<SocketAddr>) -> Self {
        self.endpoint(Protocol::Udp, address.into())
    }

    /// Where this group's pins are.
    pub(super) fn settings(&self) -> Settings {
        let bpffs = self.bpffs.clone().unwrap_or_else(|| BPFFS.into());
        Settings { bpffs, ..Settings::default() }
    }

    fn endpoint(mut self, protocol: Protocol, address: SocketAddr) -> Self {
        self.endpoints.push(Endpoint { protocol, address });
        self
    }

    /// How many workers, and where; one per CPU unless told.
    pub fn workers(self, workers: Workers) -> Self {
        Self { workers, ..self }
    }

    /// How many connections may wait at each listener to be accepted; 4096 unless told, and never
    /// more than `net.core.somaxconn`.
    pub fn backlog(self, connections: u32) -> Self {
        Self { backlog: connections, ..self }
    }

    /// Whether listeners on IPv6 addresses refuse IPv4; they take both unless told.
    pub fn v6only(self, v6only: bool) -> Self {
        Self { v6only, ..self }
    }

    /// What decides where a connection goes; the CPU that received it unless told. Other policies
    /// take eBPF.
    pub fn policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Above how many connections in service a worker's new ones go to the nearest other worker that
    /// has room. They stay with it whatever its load unless told. It takes eBPF, and a worker that
    /// publishes its load: [`Server::serve`](super::Server::serve) does, others hold a
    /// [`LoadGuard`](super::LoadGuard).
    pub fn spill_above(self, connections: u32) -> Self {
        Self { spill: Some(connections), ..self }
    }

    /// Demands a mechanism: [`GroupBuilder::build`] fails where it is not to be had. Unless told, the
    /// best that is to be had is taken, and [`Group::rung`] says which and why.
    pub fn rung(self, rung: Rung) -> Self {
        Self { rung: Some(rung), ..self }
    }

    /// Where bpffs is mounted; `/sys/fs/bpf` unless told, or what `reuseport-steer run` was told that
    /// started this process. Pins there let `reuseport-steer` and the next
    /// process of this program find the group. Where this process may not use it, steering works
    /// without, and [`Group::notices`] says so.
    pub fn bpffs(self, directory: impl Into<PathBuf>) -> Self {
        Self { bpffs: Some(directory.into()), ..self }
    }

    /// Where an older process of this program serves the address, lets it go on until
    /// [`Group::take_over`], so that this one can get ready first. [`Server`](super::Server) takes
    /// over when all its threads run. Unless told, this process takes over at once.
    pub fn standby(self) -> Self {
        Self { standby: true, ..self }
    }

    /// Shares the address with all other processes, older ones of the same program among them, and
    /// takes over from none: for several instances side by side, as of a systemd template unit. To
    /// replace one, end it first, or pass its sockets on (`LISTEN_FDS`). Copies that `reuseport-steer
    /// run` starts are side by side without this.
    pub fn beside_others(self) -> Self {
        Self { beside_others: true, ..self }
    }

    /// Opens the sockets and steers them. On an error nothing is left open or attached.
    ///
    /// Sockets on these addresses that systemd or `reuseport-steer run` passed (`LISTEN_FDS`) are
    /// used in place of new ones. Where other processes of this user listen on the address with
    /// `SO_REUSEPORT`, this one joins them; older ones of the same program get no new connections
    /// from then on and can end in peace, all others share.
    ///
    /// # Errors
    ///
    /// [`GroupError`]: no address, no CPU that was asked for, an address that somebody else has, or a
    /// rung that was demanded and cannot be had.
    ///
    /// # Minimum kernel version
    ///
    /// 3.9 for `SO_REUSEPORT`, 5.10 as tested; what steers, and from when on, is [`Rung`]'s matter.
    pub fn build(mut self) -> Result<Group, GroupError> {
        if self.endpoints.is_empty() {
            return Err(GroupError::NoAddress);
        }
        if let Some(bpffs) = launched::bpffs() {
            self.beside_others = true;
            self.bpffs.get_or_insert(bpffs);
        }
        let allowed = sched::affinity(0)?;
        let mut notices = Vec::new();
        let topology = Topology::read().unwrap_or_else(|error| {
            notices.push(Notice::new(
                format!("which CPUs are near each other is not known: {error}"),
                "they count as equally far apart, and the best rung may be out of reach: mount /sys here",
            ));
            Topology::flat(&allowed)
        });
        let cpus = self.workers.choose(&allowed, &topology)?;
        let options = open::Options { backlog: self.backlog, v6only: self.v6only };
        let mut inherited = Inherited::from_env();
        let opened = open::open(&self.endpoints, cpus.len(), options, &mut inherited)?;
        notices.extend(inherited.unclaimed());
        let handed = Handed::from_env();
        let plans = Plans { builder: &self, topology: &topology, cpus: &cpus };
        let mut climbed = plans.climb(&opened, &|it| handed.take(&it.group.key))?;
        climbed.notices.extend(notices);
        Ok(Group::assemble(self, cpus, opened, climbed))
    }
}
