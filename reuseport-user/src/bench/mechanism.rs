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
}

impl Mechanism {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 10] = [
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
    ];

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
            Self::Ebpf | Self::EbpfSpill | Self::EbpfWrongCpu => Some(Rung::Ebpf),
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
