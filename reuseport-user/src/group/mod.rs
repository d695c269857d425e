//! Per-core listeners for servers written in Rust: one socket for each worker, steered so that a
//! connection is served on the CPU that received it.
//!
//! ```
//! use reuseport_user::group::Group;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
//! let mut group = Group::builder().tcp(address).build()?;
//! let threads = group.take_workers().into_iter().map(|mut worker| {
//!     std::thread::spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!         worker.pin()?;
//!         let listener = worker.listener()?;
//!         // for connection in listener.incoming() { ... }
//! #       drop(listener);
//!         Ok(())
//!     })
//! });
//! # for thread in threads { thread.join().unwrap().unwrap(); }
//! # Ok(())
//! # }
//! ```
//!
//! As the README has it, with errors of `io`:
//!
//! ```no_run
//! # use std::io;
//! # use std::net::{SocketAddr, TcpListener};
//! use reuseport_user::group::{Group, Worker};
//! # fn serve(_listener: TcpListener) -> io::Result<()> { Ok(()) }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let address = SocketAddr::from(([127, 0, 0, 1], 0));
//! let mut group = Group::builder().tcp(address).build()?;
//! let start = |mut worker: Worker| std::thread::spawn(move || -> std::io::Result<()> {
//!     worker.pin()?;
//!     serve(worker.listener()?)
//! });
//! let threads: Vec<_> = group.take_workers().into_iter().map(start).collect();
//! for thread in threads { thread.join().expect("no panic")?; }
//! # Ok(())
//! # }
//! ```
//!
//! With the feature `tokio`, [`Server`] runs all of it: threads, runtimes, signals, an orderly end.
//!
//! # With and without privileges
//!
//! What steers is the best that this process may have ([`Group::rung`]): eBPF takes `CAP_BPF` (and
//! Linux 5.10); without it, or on request, `SO_INCOMING_CPU` (6.2) or classic BPF find the CPU's
//! worker, with neither second choices nor handover; the kernel's hash is the last rung. Nothing
//! fails for lack of privilege, unless a rung is demanded.
//!
//! # Restarts without a lost connection
//!
//! Start the new process beside the old one, on the same address, as the same user: it takes the
//! rows of the old one's table over, whose listeners get nothing new and can be closed once their
//! queues are empty. [`Server`] does that when it ends, and [`Server::until_superseded`] makes it end
//! by itself. The two find each other through pins on bpffs; without pins the old process can start
//! the new one and pass its maps on ([`Group::pass_to`]). Sockets themselves may be passed on, too
//! (`LISTEN_FDS`), on every rung.
//!
//! Processes that are to share the address for good say so ([`GroupBuilder::beside_others`]). The
//! copies that `reuseport-steer run` starts need not: it says so for them, in `REUSEPORT_STEER_RUN`,
//! and replaces them by itself.
//!
//! # Beside the command
//!
//! A group with pins is one like any other to `reuseport-steer status`, `top` and `agent`; what they
//! change holds.

use std::net::SocketAddr;
use std::process::Command;

use crate::sys::sched;
use crate::topology::Topology;

mod builder;
mod error;
mod handover;
mod inherit;
pub(crate) mod launched;
mod load;
mod members;
mod open;
mod refusal;
#[cfg(feature = "tokio")]
mod serve;
mod steering;
mod worker;
mod workers;

pub use crate::model::{Cpu, Pid, Protocol};
pub use crate::rungs::{Choice, PassedOver, Rung, Why};
pub use crate::steer::Notice;
pub use builder::GroupBuilder;
pub use error::{GroupError, Occupant, PinError, TakeError};
pub use handover::Passed;
pub use load::{Busy, InService, LoadGuard};
pub use reuseport_common::abi::Policy;
#[cfg(feature = "tokio")]
pub use serve::{BoxError, Core, CoreReport, Reason, Report, ServeError, Server, Stop};
use worker::Seat;
pub use worker::Worker;
pub use workers::Workers;

use self::open::Opened;
use self::steering::{Climbed, Plans, Steered};

/// Listeners on one or several addresses, one for each worker, and what steers them.
///
/// Dropping it takes the steering off; where others on the address are steered too, only this
/// process's listeners are taken out of it. The sockets are the workers', and stay open. Both take
/// milliseconds, or as long as another change of steering on this host takes.
#[derive(Debug)]
#[must_use = "dropping it ends the steering"]
pub struct Group {
    builder: GroupBuilder,
    cpus: Vec<Cpu>,
    workers: Vec<Worker>,
    addresses: Vec<SocketAddr>,
    choice: Choice,
    steered: Vec<Steered>,
    notices: Vec<Notice>,
    keep: bool,
}

impl Group {
    /// Begins a group: add addresses, then [`GroupBuilder::build`].
    pub fn builder() -> GroupBuilder {
        GroupBuilder::default()
    }

    fn assemble(
        builder: GroupBuilder,
        cpus: Vec<Cpu>,
        opened: Vec<Opened>,
        climbed: Climbed,
    ) -> Self {
        let Climbed { choice, steered, notices } = climbed;
        let addresses = opened.iter().map(|it| it.endpoint.address).collect();
        let workers = Vec::new();
        // From here on its end undoes what was done.
        let mut group =
            Self { builder, cpus, workers, addresses, choice, steered, notices, keep: false };
        let limit = group.builder.spill;
        let worker = |(index, &cpu)| Worker::new(index, cpu, limit);
        group.workers = group.cpus.iter().enumerate().map(worker).collect();
        for (opened, steered) in opened.into_iter().zip(&group.steered) {
            let Opened { endpoint, sockets, inherited } = opened;
            let seats = sockets.into_iter().zip(steered.loads()).enumerate();
            for (worker, (place, (socket, load))) in group.workers.iter_mut().zip(seats) {
                // What waits at one that stays open is for whoever has it next. The kernel queues one
                // more than the backlog.
                let most = group.builder.backlog.saturating_add(1);
                let last = if place < inherited { 0 } else { most };
                worker.add(Seat { endpoint, socket: Some(socket), load, last });
            }
        }
        group
    }

    /// Hands out the workers, one per CPU, in order of their CPUs; none the second time.
    pub fn take_workers(&mut self) -> Vec<Worker> {
        std::mem::take(&mut self.workers)
    }

    /// The addresses listened on, in the order in which the builder was told them, with the ports
    /// that the kernel chose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What steers, and why nothing better does.
    pub fn rung(&self) -> &Choice {
        &self.choice
    }

    /// What the operator should know: a program that could not be seen, pins that could not be made.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// Takes over from older processes of this program, if they serve still: new connections come
    /// here, and theirs is the second choice. It is done already, unless the builder was told
    /// [`GroupBuilder::standby`].
    ///
    /// # Errors
    ///
    /// [`GroupError`] where the table cannot be changed: the older ones serve on. It can be tried again.
    ///
    /// # Minimum kernel version
    ///
    /// As the rung's. Below eBPF nobody is taken over from, and all share.
    pub fn take_over(&mut self) -> Result<(), GroupError> {
        self.change(Steered::take_over)
    }

    /// Whether [`Group::take_over`] is still to be called.
    #[cfg(feature = "tokio")]
    fn waits(&self) -> bool {
        self.steered.iter().any(Steered::waits)
    }

    /// Whether a newer process has taken over on every address: new connections go there, and this
    /// process can end as soon as it has no more work. Never so below the eBPF rung, nor where the
    /// kernel cannot be asked.
    pub fn is_superseded(&self) -> bool {
        let settings = self.builder.settings();
        self.steered.iter().all(|it| it.is_superseded(&settings))
    }

    /// Sends new connections to others on the same addresses, if anybody else serves there; says
    /// whether. What is queued here already is still to be accepted: see [`Group::is_drained`].
    ///
    /// # Errors
    ///
    /// [`GroupError`] where it cannot be seen who else is there, or the table not be changed: then new
    /// connections come here as before.
    ///
    /// # Minimum kernel version
    ///
    /// As the rung's; below eBPF it does nothing and says no.
    pub fn steer_away(&mut self) -> Result<bool, GroupError> {
        let mut away = false;
        self.change(|steered, plans| {
            away |= steered.steer_away(plans)?;
            Ok(())
        })?;
        Ok(away)
    }

    /// Whether no connection waits to be accepted here, and, after [`Group::steer_away`], no handshake
    /// is left that was under way then: the listeners can be closed.
    ///
    /// # Errors
    ///
    /// [`GroupError`] where the accept queues cannot be read.
    pub fn is_drained(&mut self) -> Result<bool, GroupError> {
        for steered in &mut self.steered {
            if !steered.is_drained()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets the process that `command` starts take over from this one where there are no pins to find
    /// it by; does nothing where there are. A process with several groups calls it for each. Start it
    /// while the result lives.
    ///
    /// # Errors
    ///
    /// [`GroupError`] where a descriptor cannot be duplicated: there are no more, mostly.
    ///
    /// # Minimum kernel version
    ///
    /// As the eBPF rung's; below it there is nothing to pass.
    pub fn pass_to(&self, command: &mut Command) -> Result<Passed, GroupError> {
        let held = self.steered.iter().filter_map(|it| it.held.as_ref()?.descriptors.as_ref());
        handover::pass(held, command)
    }

    /// How often the program chose each worker's listener on the first address so far, by receiving
    /// CPU; `None` where none of ours is in force.
    #[cfg(feature = "cli")]
    pub(crate) fn selections(&self) -> Option<Vec<Vec<u64>>> {
        self.steered.first()?.selections()
    }

    /// The program that steers the first address, where it is ours.
    #[cfg(feature = "cli")]
    pub(crate) fn program_id(&self) -> Option<u32> {
        Some(self.steered.first()?.held.as_ref()?.pinned.program_id)
    }

    /// Leaves what steers as it is, and returns the workers that are left: pins and program stay for
    /// as long as a socket of the group is open, here or elsewhere.
    pub fn persist(mut self) -> Vec<Worker> {
        self.keep = true;
        self.take_workers()
    }

    /// Takes the steering off listeners that stay open when this process closes them, as
    /// [`Drop`] does for the others: it cannot be done without having one of them open.
    #[cfg(feature = "tokio")]
    fn leave_inherited(&mut self) -> Result<(), GroupError> {
        self.change(
            |steered, plans| {
                if steered.members.inherited { steered.leave(plans) } else { Ok(()) }
            },
        )
    }

    /// Does something to every address, with what plans take.
    fn change(
        &mut self,
        mut work: impl FnMut(&mut Steered, &Plans<'_>) -> Result<(), GroupError>,
    ) -> Result<(), GroupError> {
        let mut steered = std::mem::take(&mut self.steered);
        let done = self.plans(|plans| steered.iter_mut().try_for_each(|it| work(it, plans)));
        self.steered = steered;
        done
    }

    fn plans<R>(
        &self,
        work: impl FnOnce(&Plans<'_>) -> Result<R, GroupError>,
    ) -> Result<R, GroupError> {
        // CPUs come and go.
        let topology =
            Topology::read().or_else(|_| sched::affinity(0).map(|it| Topology::flat(&it)))?;
        work(&Plans { builder: &self.builder, topology: &topology, cpus: &self.cpus })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.keep {
            // Nobody to tell: what cannot be taken off goes with the last socket, its pins with the
            // next `attach` or `detach`.
            let _left = self.change(Steered::leave);
        }
    }
}
