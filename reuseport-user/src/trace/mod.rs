//! What happens to a port's connections between the kernel and the server: how long they wait to be
//! accepted, and on which CPUs they are received and accepted. Of any listeners, steered or not.
//!
//! The programs are loaded by [`Trace::start`] and go with it; nothing is pinned, and no server is
//! touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reuseport_common::observe::Total;

use crate::bpf::BpfError;
pub use crate::bpf::observe::Hook;
use crate::bpf::observe::{Observe, Options, Pairs};
use crate::discover::acquire::with_any_listener;
use crate::discover::{DiscoverError, Look, Queue, Target, discover};
use crate::model::{Cpu, Group, GroupKey, Listener, Protocol, Served};
use crate::sys::{clock, membarrier, sockopt};
use crate::topology::{Topology, TopologyError};

mod connection;
mod histogram;
mod reading;
mod running;
mod summary;

pub use connection::{Arrival, Connection};
pub use histogram::{Histogram, Percentiles};
pub use reading::{Lost, OfCpu, OfListener, Reading};
pub(crate) use running::{Running, running};
pub use summary::{CpuSummary, ListenerSummary, Locality, Measures, OfGroup, Pair, Summary};

/// Fewest listeners that there is room for: a small group may grow.
const FEWEST: usize = 16;

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// There is no accept queue.
    #[error("UDP sockets accept nothing: trace sees TCP listeners only; leave out --udp")]
    Udp,
    /// Nobody to trace.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The kernel refused.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// `/sys` could not be read.
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

/// A listener that is traced.
#[derive(Clone, Debug)]
pub struct Traced {
    /// Its group.
    pub group: GroupKey,
    /// `SO_COOKIE`.
    pub cookie: u64,
    /// Who accepts from it, as it was first seen.
    pub served: Served,
    /// Whether it is given connections with their first data only (`TCP_DEFER_ACCEPT`), as it was first
    /// seen; `None` where it may not be asked. For one that does, the kernel drops the last segment of
    /// each handshake, waits for the data, and counts that among what it dropped.
    pub defers: Option<bool>,
    /// What had been dropped when it was first seen.
    dropped: u32,
}

/// Where the counts of a listener are.
#[derive(Debug)]
enum Seat {
    /// Under this index in the kernel's maps.
    At(u32),
    /// Here: it is gone, and its index another's.
    Left(Counts),
}

/// A listener's connections by receiving and accepting CPU, and the rest.
type Counts = (BTreeMap<(Cpu, Cpu), u64>, OfListener);

/// A trace in progress. On drop the programs are gone.
#[derive(Debug)]
pub struct Trace {
    target: Target,
    topology: Topology,
    observe: Observe,
    look: Look,
    /// In the order in which they came.
    traced: Vec<Traced>,
    /// Where the counts of each of them are.
    seats: Vec<Seat>,
    /// The latest place of a listener among them, by its cookie: it may stop and listen again.
    places: BTreeMap<u64, usize>,
    /// Indices in the kernel's maps that are nobody's.
    free: Vec<u32>,
    started: Instant,
    /// How long it was traced, once it is over.
    lasted: Option<Duration>,
    last: Reading,
    /// Keeps the namespace that `target` names by its descriptor.
    _netns: Option<File>,
}

impl Trace {
    /// Begins to trace the target's listeners; with `events`, each connection too.
    ///
    /// # Minimum kernel version
    ///
    /// 5.10 with BTF; `CAP_BPF` and `CAP_PERFMON`.
    pub fn start(target: &Target, events: bool) -> Result<Self, TraceError> {
        if target.protocol == Protocol::Udp {
            return Err(TraceError::Udp);
        }
        let groups = discover(target)?;
        let topology = Topology::read()?;
        // The listeners on one port that a target means are all in one namespace.
        let netns = &groups[0].netns;
        // Also when others begin to listen on the port elsewhere.
        let (target, keeps) = target.within(netns)?;
        let mut look = Look::open(&target, netns)?;
        let dropped = queues(&mut look, groups.iter().map(|it| it.key))?;
        let traced = listeners(&groups, &dropped, &BTreeSet::new());
        // Room for as many more, which a rolling restart brings.
        let room = (traced.len() * 2).max(FEWEST);
        let options = Options {
            netns: netns.inode as u32,
            port: target.port,
            listeners: room as u32,
            cpus: topology.rows(),
            events,
        };
        let cookies: Vec<u64> = traced.iter().map(|it| it.cookie).collect();
        let observe = Observe::start(&options, &cookies)?;
        let (started, lasted, last) = (Instant::now(), None, Reading::default());
        let taken = traced.len();
        Ok(Self {
            target,
            topology,
            observe,
            look,
            traced,
            seats: (0..taken as u32).map(Seat::At).collect(),
            places: cookies.into_iter().zip(0..).collect(),
            free: (taken as u32..room as u32).rev().collect(),
            started,
            lasted,
            last,
            _netns: keeps,
        })
    }

    /// How accepts are seen.
    pub fn hook(&self) -> Hook {
        self.observe.hook
    }

    /// Why they are not seen at [`Hook::Function`].
    pub fn why(&self) -> Option<&str> {
        self.observe.why.as_deref()
    }

    /// The listeners, in the order in which they came; also those that are gone.
    pub fn traced(&self) -> &[Traced] {
        &self.traced
    }

    /// All that happened so far. Listeners that are new are traced from now on, as long as there is room.
    pub fn read(&mut self) -> Result<Reading, TraceError> {
        let there = self.look.cookies()?;
        let seated = self.seated();
        let room = !self.free.is_empty() || !seated.is_subset(&there);
        if !there.is_subset(&seated) && room {
            // Looking at processes that come and go can fail; what is counted does not depend on it.
            let _next_time = self.welcome(&there, &seated);
        }
        let keys = self.traced.iter().map(|it| it.group);
        let queues = queues(&mut self.look, keys.collect::<Vec<_>>())?;
        let pairs = self.observe.pairs()?;
        let elapsed = self.lasted.unwrap_or_else(|| self.started.elapsed());
        let mut reading = Reading { elapsed, ..Reading::default() };
        for place in 0..self.traced.len() {
            let (pairs, of) = self.counts(place, &pairs, &queues)?;
            let pair = |((received, accepted), count)| ((place as u32, received, accepted), count);
            reading.pairs.extend(pairs.into_iter().map(pair));
            reading.listeners.push(of);
        }
        reading.queued = self.observe.total(Total::Queued)?;
        reading.lost = Lost {
            events: self.observe.total(Total::LostEvents)?,
            other_listeners: self.observe.total(Total::Unlisted)?,
            pairs: self.observe.total(Total::Unpaired)?,
            missed: self.observe.missed(),
        };
        if self.free.is_empty() {
            reading.no_room = there.difference(&self.seated()).count() as u64;
        }
        self.last = reading.clone();
        Ok(reading)
    }

    /// Cookies of the listeners that have an index.
    fn seated(&self) -> BTreeSet<u64> {
        let seated = self.places.iter().filter(|it| matches!(self.seats[*it.1], Seat::At(_)));
        seated.map(|(&cookie, _)| cookie).collect()
    }

    /// What was counted of the listener at a place.
    fn counts(
        &self,
        place: usize,
        pairs: &Pairs,
        queues: &BTreeMap<u64, Queue>,
    ) -> Result<Counts, TraceError> {
        let index = match &self.seats[place] {
            Seat::At(index) => *index,
            Seat::Left(counts) => return Ok(counts.clone()),
        };
        let listener = &self.traced[place];
        let queue = queues.get(&listener.cookie).copied();
        let dropped = match (listener.defers, queue) {
            (None | Some(true), _) => None,
            (Some(false), Some(queue)) => Some(queue.dropped.wrapping_sub(listener.dropped).into()),
            (Some(false), None) => self.last.listeners.get(place).map_or(Some(0), |it| it.dropped),
        };
        let by_cpu = self.observe.times(index)?;
        let by_cpu = by_cpu.iter().map(OfCpu::from).zip(0..);
        let by_cpu = by_cpu.filter(|(times, _)| *times != OfCpu::default());
        let by_cpu = by_cpu.map(|(times, cpu)| (cpu, times)).collect();
        let own = pairs.range((index, 0, 0)..=(index, Cpu::MAX, Cpu::MAX));
        let own = own.map(|(&(_, received, accepted), &count)| ((received, accepted), count));
        Ok((own.collect(), OfListener { by_cpu, queue, dropped }))
    }

    /// The last reading, for when there cannot be another one.
    pub fn last(&self) -> &Reading {
        &self.last
    }

    /// What a reading means.
    pub fn summary(&self, reading: &Reading) -> Summary {
        Summary::of(reading, &self.traced, self.hook(), &self.topology)
    }

    /// The next connection, if there is one.
    pub fn connection(&mut self) -> Option<Connection> {
        loop {
            let event = self.observe.take()?;
            // The programs tell of no others.
            let Some(&place) = self.places.get(&event.listener) else { continue };
            let listener = &self.traced[place];
            return Some(Connection::of(&event, listener, &self.topology, clock_offset()));
        }
    }

    /// Traces nothing more; what happened can still be read.
    pub fn stop(&mut self) {
        self.observe.stop();
        self.lasted = Some(self.started.elapsed());
    }

    /// Begins to trace those of the listeners `there` that are not.
    fn welcome(&mut self, there: &BTreeSet<u64>, seated: &BTreeSet<u64>) -> Result<(), TraceError> {
        let groups = discover(&self.target)?;
        let queues = queues(&mut self.look, groups.iter().map(|it| it.key))?;
        let new = listeners(&groups, &queues, seated);
        if new.len() > self.free.len() {
            self.make_room(there)?;
        }
        for listener in new {
            let Some(&index) = self.free.last() else { break };
            self.observe.add(listener.cookie, index)?;
            self.free.pop();
            self.places.insert(listener.cookie, self.traced.len());
            self.traced.push(listener);
            self.seats.push(Seat::At(index));
        }
        Ok(())
    }

    /// Takes the indices of those that are not `there`. What they counted is kept here.
    fn make_room(&mut self, there: &BTreeSet<u64>) -> Result<(), TraceError> {
        let gone = |(place, seat): (usize, &Seat)| match seat {
            Seat::At(index) if !there.contains(&self.traced[place].cookie) => Some((place, *index)),
            _ => None,
        };
        let gone: Vec<_> = self.seats.iter().enumerate().filter_map(gone).collect();
        for &(place, _) in &gone {
            self.observe.remove(self.traced[place].cookie)?;
        }
        // Nobody finds the indices any more; who had found one is done with it after this.
        membarrier::wait_for_packets();
        let pairs = self.observe.pairs()?;
        for (place, index) in gone {
            let counts = self.counts(place, &pairs, &BTreeMap::new())?;
            self.observe.clear(index, counts.0.keys().copied())?;
            self.seats[place] = Seat::Left(counts);
            self.free.push(index);
        }
        Ok(())
    }
}

/// The groups' listeners, but for those that are `seated`.
fn listeners(
    groups: &[Group],
    queues: &BTreeMap<u64, Queue>,
    seated: &BTreeSet<u64>,
) -> Vec<Traced> {
    let of = |group: &Group| {
        let key = group.key;
        let traced = |it: &Listener| Traced {
            group: key,
            cookie: it.cookie,
            served: it.served.clone(),
            defers: defers(it, &key),
            dropped: queues.get(&it.cookie).map_or(0, |queue| queue.dropped),
        };
        let new = group.listeners.iter().filter(|it| !seated.contains(&it.cookie));
        new.map(traced).collect::<Vec<_>>()
    };
    groups.iter().flat_map(of).collect()
}

/// Asks the listener itself: nothing else tells.
fn defers(listener: &Listener, key: &GroupKey) -> Option<bool> {
    with_any_listener(listener, key, sockopt::defers_accept).ok()?.ok()
}

/// Accept queues of the groups' listeners, in a dump for each family.
fn queues(
    look: &mut Look,
    groups: impl IntoIterator<Item = GroupKey>,
) -> Result<BTreeMap<u64, Queue>, DiscoverError> {
    let mut families = BTreeMap::new();
    for group in groups {
        families.entry(group.address.is_ipv4()).or_insert(group.address);
    }
    let mut queues = BTreeMap::new();
    for address in families.values() {
        queues.extend(look.queues(address)?.into_iter().map(|queue| (queue.cookie, queue)));
    }
    Ok(queues)
}

/// Seconds since 1970 when `CLOCK_MONOTONIC` was zero.
fn clock_offset() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs_f64() - clock::kernel().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener with this cookie, of a group of its own for each hundred.
    pub(super) fn traced(cookie: u64) -> Traced {
        let group = GroupKey {
            netns: 1,
            protocol: Protocol::Tcp,
            address: ([127, 0, 0, 1], 8000 + (cookie / 100) as u16).into(),
            v6only: false,
            device: 0,
            uid: 0,
        };
        let served = Served::Unknown("a test".to_owned());
        Traced { group, cookie, served, defers: Some(false), dropped: 0 }
    }
}
