//! What the demo and its workers say to each other: JSON lines over a Unix socket that the worker
//! gets as its standard input. When it closes, whichever side is left cleans up and ends, so that a
//! killed demo leaves no workers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{Cpu, Pid};

/// Bytes of a request.
pub(super) const REQUEST: usize = 32;

/// Bytes of a reply.
pub(super) const REPLY: usize = 64;

/// From the demo to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    /// Pin to `cpu` and listen on the loopback `port`. The first command, given once.
    Listen {
        /// Where to run.
        cpu: Cpu,
        /// Where to listen.
        port: u16,
    },
    /// Report the connections accepted since the last such command.
    Stats,
    /// Set the listener's `SO_INCOMING_CPU` to the worker's CPU, or clear it.
    PreferCpu(bool),
}

/// From a worker to the demo, one per command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// Listening.
    Ready {
        /// Who.
        pid: Pid,
    },
    /// Connections accepted by the CPU that received them.
    Stats(BTreeMap<Cpu, u64>),
    /// Done as asked.
    Done,
    /// The port is taken.
    PortTaken,
    /// Something else failed, and the worker exits.
    Failed(String),
}
