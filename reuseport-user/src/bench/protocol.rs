//! What clients and server, and the bench and its server process, say to each other.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mechanism::Mechanism;
use crate::model::{Cpu, Pid};

/// Bytes of a request.
pub(super) const REQUEST: usize = 32;
/// Bytes of a reply.
pub(super) const REPLY: usize = 64;

/// A request: what the client wants, and when it wanted to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// When it was due, by the monotonic clock.
    pub(super) due: Duration,
    /// Microseconds of work.
    pub(super) work: u32,
    /// The server is to close after the reply.
    pub(super) last: bool,
}

impl Request {
    pub(super) fn encode(self) -> [u8; REQUEST] {
        let mut bytes = [0; REQUEST];
        bytes[..8].copy_from_slice(&(self.due.as_nanos() as u64).to_le_bytes());
        bytes[8..12].copy_from_slice(&self.work.to_le_bytes());
        bytes[12] = self.last.into();
        bytes
    }

    pub(super) fn decode(bytes: &[u8; REQUEST]) -> Self {
        let due = Duration::from_nanos(u64::from_le_bytes(part(bytes, 0)));
        Self { due, work: u32::from_le_bytes(part(bytes, 8)), last: bytes[12] != 0 }
    }
}

fn part<const N: usize>(bytes: &[u8; REQUEST], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

/// To the server process, one line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Command {
    /// First of all.
    Listen {
        mechanism: Mechanism,
        /// Port 0 for any.
        address: SocketAddr,
        udp: bool,
        cpus: Vec<Cpu>,
        bpffs: std::path::PathBuf,
    },
    /// Forgets what was counted.
    Reset,
    /// Asks for it.
    Stats,
    /// A worker is to stop for so long.
    Stall { worker: usize, lasts: Duration },
    /// Nothing new is to come here; the answer comes when nothing is waiting any more.
    Drain,
}

/// From the server process, one line for each command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Reply {
    Ready {
        address: SocketAddr,
        threads: Vec<Pid>,
    },
    Done,
    Stats(Vec<Tally>),
    /// It cannot go on. `unavailable` where this machine lacks what the mechanism takes.
    Failed {
        message: String,
        unavailable: bool,
    },
}

/// What one worker has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) cpu: Cpu,
    /// Connections by the CPU that received them; of datagrams it is not known.
    pub(super) received: std::collections::BTreeMap<Cpu, u64>,
    /// How often our program chose this worker, by the CPU that received the packet; empty without it.
    pub(super) chosen: std::collections::BTreeMap<Cpu, u64>,
    /// From when a connection was due until it was accepted, in nanoseconds, by count.
    pub(super) accept: Vec<(u64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let request = Request { due: Duration::from_nanos(1 << 40), work: 2000, last: true };
        assert_eq!(Request::decode(&request.encode()), request);
    }
}
