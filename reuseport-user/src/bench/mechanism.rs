//! How a connection finds its worker: what is compared, and what controls the comparison.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::rungs::Rung;

/// A mechanism, or a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// One listener, and one worker that accepts from it.
    Single,
    /// One listener, from which every worker accepts: `EPOLLEXCLUSIVE`.
    Shared,
    /// One thread accepts, and hands connections to the workers in turn.
    HandOff,
    /// A listener for each worker; the kernel's hash chooses. What all others are compared with.
    Hash,
    /// The same once more: whatever it differs by is noise.
    HashAgain,
    /// A classic BPF program that returns the CPU's listener.
    ClassicBpf,
    /// `SO_INCOMING_CPU` on each listener.
    IncomingCpu,
    /// The eBPF program: strictly the CPU's worker.
    Ebpf,
    /// The eBPF program with an agent that spills from workers that hang or are overloaded.
    EbpfSpill,
    /// The eBPF program, with each worker on another CPU than its connections: all are remote.
    EbpfWrongCpu,
    /// Variants of spilling, from here on: no agent, but workers that publish their own load. This
    /// one says whether it is between two calls of `epoll_wait`.
    EbpfBusy,
    /// Events of the batch that it is at; more than none is too much.
    #[serde(rename = "ebpf-ready-0")]
    EbpfReady0,
    /// The same; more than 2.
    #[serde(rename = "ebpf-ready-2")]
    EbpfReady2,
    /// Connections that waited when the last one was accepted; more than none is too much.
    #[serde(rename = "ebpf-queue-0")]
    EbpfQueue0,
    /// The same; more than 1.
    #[serde(rename = "ebpf-queue-1")]
    EbpfQueue1,
    /// The same; more than 4.
    #[serde(rename = "ebpf-queue-4")]
    EbpfQueue4,
}

/// What a worker publishes as its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// 1 between two calls of `epoll_wait`, 0 within.
    Busy,
    /// Events of the batch that it is at.
    Ready,
    /// Connections that waited when the last one was accepted.
    Queue,
}

impl Mechanism {
    /// All, in the order in which they are shown: first those that are compared unless told.
    pub const ALL: [Self; 16] = [
        Self::Single,
        Self::Shared,
        Self::HandOff,
        Self::Hash,
        Self::HashAgain,
        Self::ClassicBpf,
        Self::IncomingCpu,
        Self::Ebpf,
        Self::EbpfSpill,
        Self::EbpfWrongCpu,
        Self::EbpfBusy,
        Self::EbpfReady0,
        Self::EbpfReady2,
        Self::EbpfQueue0,
        Self::EbpfQueue1,
        Self::EbpfQueue4,
    ];

    /// Whether it is compared unless told: not the variants of spilling.
    pub(super) fn is_usual(self) -> bool {
        self.publishes().is_none()
    }

    /// As on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Shared => "shared",
            Self::HandOff => "hand-off",
            Self::Hash => "hash",
            Self::HashAgain => "hash-again",
            Self::ClassicBpf => "classic-bpf",
            Self::IncomingCpu => "incoming-cpu",
            Self::Ebpf => "ebpf",
            Self::EbpfSpill => "ebpf-spill",
            Self::EbpfWrongCpu => "ebpf-wrong-cpu",
            Self::EbpfBusy => "ebpf-busy",
            Self::EbpfReady0 => "ebpf-ready-0",
            Self::EbpfReady2 => "ebpf-ready-2",
            Self::EbpfQueue0 => "ebpf-queue-0",
            Self::EbpfQueue1 => "ebpf-queue-1",
            Self::EbpfQueue4 => "ebpf-queue-4",
        }
    }

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Single => "one listener, one worker",
            Self::Shared => "one listener, all accept (EPOLLEXCLUSIVE)",
            Self::HandOff => "one acceptor hands off",
            Self::Hash => "reuseport, kernel's hash",
            Self::HashAgain => "the same again (A/A control)",
            Self::ClassicBpf => "reuseport, classic BPF by CPU",
            Self::IncomingCpu => "reuseport, SO_INCOMING_CPU",
            Self::Ebpf => "reuseport, eBPF by CPU",
            Self::EbpfSpill => "reuseport, eBPF by CPU, agent spills",
            Self::EbpfWrongCpu => "reuseport, eBPF to the wrong CPU (control)",
            Self::EbpfBusy => "reuseport, eBPF by CPU, spills from who is busy",
            Self::EbpfReady0 => "reuseport, eBPF by CPU, spills above 0 ready events",
            Self::EbpfReady2 => "reuseport, eBPF by CPU, spills above 2 ready events",
            Self::EbpfQueue0 => "reuseport, eBPF by CPU, spills above 0 waiting",
            Self::EbpfQueue1 => "reuseport, eBPF by CPU, spills above 1 waiting",
            Self::EbpfQueue4 => "reuseport, eBPF by CPU, spills above 4 waiting",
        }
    }

    /// Whether the kernel chooses among listeners, one for each worker.
    pub const fn has_group(self) -> bool {
        !matches!(self, Self::Single | Self::Shared | Self::HandOff)
    }

    /// What puts its group on its way, where it has one.
    pub const fn rung(self) -> Option<Rung> {
        match self {
            Self::Single | Self::Shared | Self::HandOff => None,
            Self::Hash | Self::HashAgain => Some(Rung::Hash),
            Self::ClassicBpf => Some(Rung::ClassicBpf),
            Self::IncomingCpu => Some(Rung::IncomingCpu),
            _ => Some(Rung::Ebpf),
        }
    }

    /// What its workers publish, and above what of it new connections go to another.
    pub(super) const fn publishes(self) -> Option<(Signal, u32)> {
        match self {
            Self::EbpfBusy => Some((Signal::Busy, 0)),
            Self::EbpfReady0 => Some((Signal::Ready, 0)),
            Self::EbpfReady2 => Some((Signal::Ready, 2)),
            Self::EbpfQueue0 => Some((Signal::Queue, 0)),
            Self::EbpfQueue1 => Some((Signal::Queue, 1)),
            Self::EbpfQueue4 => Some((Signal::Queue, 4)),
            _ => None,
        }
    }

    /// Whether every connection is to be served on the CPU that received it.
    pub const fn is_local(self) -> bool {
        matches!(self, Self::ClassicBpf | Self::IncomingCpu | Self::Ebpf)
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} `{name}`; there are {all}")]
pub struct Unknown {
    /// What was to be named.
    pub what: &'static str,
    /// What was said.
    pub name: String,
    /// The names that there are.
    pub all: String,
}

/// Finds what has that name.
pub(super) fn find<T: Copy>(
    what: &'static str,
    all: &[T],
    of: impl Fn(T) -> &'static str,
    name: &str,
) -> Result<T, Unknown> {
    let found = all.iter().copied().find(|&it| of(it).eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let all: Vec<_> = all.iter().map(|&it| of(it)).collect();
        Unknown { what, name: name.to_owned(), all: all.join(", ") }
    })
}

impl FromStr for Mechanism {
    type Err = Unknown;

    fn from_str(name: &str) -> Result<Self, Unknown> {
        find("mechanism", &Self::ALL, Self::name, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_everywhere() {
        for mechanism in Mechanism::ALL {
            assert_eq!(mechanism.name().parse(), Ok(mechanism));
            let json = serde_json::to_value(mechanism).unwrap();
            assert_eq!(json, mechanism.name());
        }
        let error = "ebfp".parse::<Mechanism>().unwrap_err().to_string();
        assert!(error.contains("`ebfp`") && error.contains("incoming-cpu"), "{error}");
    }
}
