//! All that was taken down up to one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use reuseport_common::observe::Times;

use super::histogram::Histogram;
use crate::discover::Queue;
use crate::model::Cpu;

/// What the kernel's maps and `sock_diag` said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// How long it was traced.
    pub elapsed: Duration,
    /// In the order in which they came.
    pub listeners: Vec<OfListener>,
    /// Connections by place of the listener, receiving and accepting CPU.
    pub pairs: BTreeMap<(u32, Cpu, Cpu), u64>,
    /// Connections that came into an accept queue on the port.
    pub queued: u64,
    /// What is not in the rest.
    pub lost: Lost,
    /// Listeners that are there but not traced, because there is no room for more.
    pub no_room: u64,
}

/// What was taken down of one listener.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfListener {
    /// By the CPU that accepted, those that did.
    pub by_cpu: BTreeMap<Cpu, OfCpu>,
    /// Its accept queue; `None` for one that is gone.
    pub queue: Option<Queue>,
    /// Connections that were dropped; `None` where the kernel's count does not tell.
    pub dropped: Option<u64>,
}

/// What was taken down of one listener on one CPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfCpu {
    /// From accept queue to accept.
    pub waits: Histogram,
    /// From SYN-ACK to accept queue.
    pub handshakes: Histogram,
    /// The longest wait so far, in nanoseconds.
    pub longest: u64,
    /// Most connections waiting so far.
    pub deepest: u32,
    /// Accepted, but not seen to come.
    pub unseen: u64,
}

/// Connections that are not counted where they should be, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Lost {
    /// Not told of, because the ring buffer was full. They are counted.
    pub events: u64,
    /// Accepted from a listener on the port that is not traced: on another address, or one that came
    /// since the last look.
    pub other_listeners: u64,
    /// In no pair of CPUs, because the map was full.
    pub pairs: u64,
    /// Runs of the programs, for any TCP socket on the host, that the kernel left out because one was
    /// running on the CPU already: at most so many connections were not seen to come, or not counted.
    pub missed: u64,
}

impl From<&Times> for OfCpu {
    fn from(times: &Times) -> Self {
        Self {
            waits: Histogram::new(&times.waits),
            handshakes: Histogram::known(&times.handshakes),
            longest: times.longest,
            deepest: times.deepest,
            unseen: times.unseen.into(),
        }
    }
}

impl Reading {
    /// What happened since `earlier`. The longest wait and the deepest queue stay those of the whole time.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut new = self.clone();
        new.elapsed = self.elapsed.saturating_sub(earlier.elapsed);
        for (now, before) in new.listeners.iter_mut().zip(&earlier.listeners) {
            let dropped = now.dropped.zip(before.dropped);
            now.dropped = dropped.map(|(now, before)| now.saturating_sub(before)).or(now.dropped);
            for (cpu, now) in &mut now.by_cpu {
                let Some(before) = before.by_cpu.get(cpu) else { continue };
                now.waits = now.waits.since(&before.waits);
                now.handshakes = now.handshakes.since(&before.handshakes);
                now.unseen = now.unseen.saturating_sub(before.unseen);
            }
        }
        for (pair, count) in &mut new.pairs {
            *count = count.saturating_sub(earlier.pairs.get(pair).copied().unwrap_or(0));
        }
        new.queued = self.queued.saturating_sub(earlier.queued);
        new.lost = Lost {
            events: self.lost.events.saturating_sub(earlier.lost.events),
            other_listeners: self.lost.other_listeners.saturating_sub(earlier.lost.other_listeners),
            pairs: self.lost.pairs.saturating_sub(earlier.lost.pairs),
            missed: self.lost.missed.saturating_sub(earlier.lost.missed),
        };
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_what_is_new() {
        let reading = |count: u64, seconds| {
            let by_cpu =
                BTreeMap::from([(3, OfCpu { unseen: count, longest: 7, ..OfCpu::default() })]);
            Reading {
                elapsed: Duration::from_secs(seconds),
                listeners: vec![OfListener { by_cpu, queue: None, dropped: Some(count * 2) }],
                pairs: BTreeMap::from([((0, 0, 1), count)]),
                queued: count,
                lost: Lost { events: count, missed: count, ..Lost::default() },
                no_room: 1,
            }
        };
        let mut later = reading(5, 3);
        later.listeners.push(OfListener { dropped: Some(1), ..OfListener::default() });
        later.pairs.insert((1, 0, 0), 4);
        let new = later.since(&reading(2, 1));
        assert_eq!(new.elapsed, Duration::from_secs(2));
        assert_eq!((new.listeners[0].dropped, new.listeners[0].by_cpu[&3].unseen), (Some(6), 3));
        assert_eq!((new.listeners[0].by_cpu[&3].longest, new.listeners[1].dropped), (7, Some(1)));
        assert_eq!((new.pairs[&(0, 0, 1)], new.pairs[&(1, 0, 0)]), (3, 4));
        assert_eq!((new.queued, new.lost.events, new.lost.missed), (3, 3, 3));
        assert_eq!(new.no_room, 1);
    }
}
