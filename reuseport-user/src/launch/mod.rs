//! `run`: starts copies of any program, one per CPU, steers them, and keeps them running.
//!
//! ```text
//! options -> seats (placement) --+
//!                                |   events   +------------+   actions
//! signals, deaths, looks --------+----------> | supervisor | ----------> start, signal, steer
//!                                             +------------+
//! ```
//!
//! [`seats`] says which CPU each copy gets. [`run`] starts the copies: bound to their CPU before they
//! become the program, each the leader of a process group, killed by the kernel when we are. What
//! happens when is the supervisor's business, which knows no kernel; the driver carries it out.

use std::net::SocketAddr;
use std::time::Duration;

use crate::discover::Target;
use crate::model::CpuSet;
use crate::steer::{Ladder, Settings};
use crate::sys::sched;
use crate::topology::Topology;

mod child;
mod driver;
mod error;
mod finish;
pub mod guard;
mod logs;
mod look;
mod notify;
mod placement;
mod ports;
mod signals;
mod steering;
mod supervisor;
mod template;

pub use driver::run;
pub use error::{LaunchError, Status};
pub use placement::{Place, PlacementError, Seat, Workers, place};
pub use template::{Template, TemplateError};

/// What to launch, and how.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// Where the copies listen: our own network namespace, whatever it names.
    pub target: Target,
    /// Open a listener for each copy here, and hand it over; else each opens its own.
    pub listen: Option<SocketAddr>,
    /// By which mechanism they are steered.
    pub rung: Ladder,
    /// Program and arguments.
    pub command: Template,
    /// Longest from a copy's start to its listening.
    pub listen_timeout: Duration,
    /// Longest that a copy that is being replaced keeps its connections.
    pub drain_timeout: Duration,
    /// Longest from a copy's being told to end to its being killed.
    pub stop_timeout: Duration,
    /// Restarts of one worker in a row, none of which lasted, that are not too many.
    pub max_restarts: u32,
    /// Where pins live.
    pub settings: Settings,
}

/// Where each copy goes, of the CPUs that this process may run on.
pub fn seats(workers: &Workers, how: Place) -> Result<Vec<Seat>, LaunchError> {
    let topology = Topology::read()?;
    let allowed: CpuSet = sched::affinity(0)?;
    Ok(place(&topology, &allowed, workers, how)?)
}
