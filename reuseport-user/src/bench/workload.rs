//! What the clients ask for, and how.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mechanism::{Mechanism, Unknown, find};
use super::topology::Topology;
use crate::measure::Rng;

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Connect, 32 bytes, 64 bytes, close; as fast as it goes.
    W1,
    /// The same with 50 us of work each, at a fixed rate.
    W2,
    /// 20 us of work, but 2 ms in 1 of 100, at a fixed rate.
    W3,
    /// 100 requests on each connection, as fast as it goes.
    W4,
    /// Datagrams back and forth: the choice is made for each.
    W5,
    /// As W1 at a fixed rate; one worker stops for a second.
    ///
    /// It sleeps in its thread, as workers are threads and `SIGSTOP` would stop all of them. To the
    /// kernel and to the agent both are the same: the listener stays open and its queue fills, and
    /// nobody accepts. Neither looks at what state a thread is in.
    W6,
    /// As W1 at a fixed rate; the server is replaced by a new process.
    W7,
    /// As W2; in the middle all packets come to arrive on one CPU.
    W8,
}

/// How much work a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    None,
    Each(Duration),
    /// The first, but the second in one of a hundred.
    Bimodal(Duration, Duration),
}

impl Work {
    /// The next request's, in microseconds.
    pub(super) fn draw(self, rng: &mut Rng) -> u32 {
        let work = match self {
            Self::None => return 0,
            Self::Each(work) => work,
            Self::Bimodal(_, rare) if rng.u32(..100) == 0 => rare,
            Self::Bimodal(usual, _) => usual,
        };
        work.as_micros() as u32
    }
}

/// When the next request is made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "loop", rename_all = "kebab-case")]
pub enum Pace {
    /// When an earlier one is answered: so many at a time, over all clients.
    Closed {
        /// Connections at a time.
        connections: usize,
    },
    /// At times of a Poisson process, whether earlier ones are answered or not.
    Open {
        /// Requests per second, over all clients.
        rate: f64,
    },
}

/// What happens in the middle of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A worker stops for so long.
    Stall(Duration),
    /// A new server takes over.
    Replace,
    /// All clients go to the first CPU.
    Skew,
}

impl Workload {
    /// All, in order.
    pub const ALL: [Self; 8] =
        [Self::W1, Self::W2, Self::W3, Self::W4, Self::W5, Self::W6, Self::W7, Self::W8];

    /// As on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W3 => "w3",
            Self::W4 => "w4",
            Self::W5 => "w5",
            Self::W6 => "w6",
            Self::W7 => "w7",
            Self::W8 => "w8",
        }
    }

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::W1 => "short connections",
            Self::W2 => "short connections, 50 us of work, fixed rate",
            Self::W3 => "bimodal work: 20 us, 1 in 100 2 ms, fixed rate",
            Self::W4 => "keep-alive, 100 requests per connection",
            Self::W5 => "UDP echo",
            Self::W6 => "one worker stops for a second, fixed rate",
            Self::W7 => "the server is replaced by a new process, fixed rate",
            Self::W8 => "packets come to arrive on one CPU only, 50 us of work, fixed rate",
        }
    }

    pub(super) const fn work(self) -> Work {
        match self {
            Self::W2 | Self::W8 => Work::Each(Duration::from_micros(50)),
            Self::W3 => Work::Bimodal(Duration::from_micros(20), Duration::from_millis(2)),
            _ => Work::None,
        }
    }

    /// Requests on each connection.
    pub(super) const fn requests(self) -> u32 {
        if matches!(self, Self::W4) { 100 } else { 1 }
    }

    pub(super) const fn is_udp(self) -> bool {
        matches!(self, Self::W5)
    }

    /// Whether requests come at a fixed rate.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::W2 | Self::W3 | Self::W6 | Self::W7 | Self::W8)
    }

    pub(super) const fn event(self) -> Option<Event> {
        match self {
            Self::W6 => Some(Event::Stall(Duration::from_secs(1))),
            Self::W7 => Some(Event::Replace),
            Self::W8 => Some(Event::Skew),
            _ => None,
        }
    }

    /// Shortest time in which it can show what it is about.
    pub(super) fn least(self) -> Duration {
        match self.event() {
            Some(Event::Stall(stall)) => stall * 2,
            Some(Event::Replace | Event::Skew) => Duration::from_secs(1),
            // A 99th percentile is made of one request in a hundred.
            None if self.is_open() => Duration::from_secs(2),
            None => Duration::ZERO,
        }
    }

    /// Shortest time before that in which all settle: at a fixed rate one mechanism adapts, and a
    /// 99th percentile would show how it began. How fast it adapts is what events are for.
    pub(super) fn least_warmup(self) -> Duration {
        if self.is_open() { Duration::from_secs(1) } else { Duration::ZERO }
    }

    /// Why a mechanism cannot serve it; `None` where it can.
    pub fn excludes(self, mechanism: Mechanism) -> Option<&'static str> {
        match (self, mechanism) {
            (Self::W5, Mechanism::HandOff) => Some("nothing is accepted that could be handed off"),
            (Self::W5, Mechanism::EbpfSpill) => {
                Some("the agent reads accept queues, which UDP has not")
            }
            (Self::W5, it) if it.publishes().is_some() => {
                Some("what is published is about connections")
            }
            (Self::W7, Mechanism::Single | Mechanism::Shared | Mechanism::HandOff) => {
                Some("its one listener cannot be opened twice")
            }
            _ => None,
        }
    }

    /// Whether it can be had on a topology.
    pub(super) fn fits(self, topology: Topology) -> bool {
        self != Self::W8 || topology == Topology::T1
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Workload {
    type Err = Unknown;

    fn from_str(name: &str) -> Result<Self, Unknown> {
        find("workload", &Self::ALL, Self::name, name)
    }
}
