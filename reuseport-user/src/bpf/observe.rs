//! The `observe` object in the kernel: who comes into a port's accept queues and who leaves them, for
//! as long as `Observe` lives.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use aya::maps::{HashMap, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use reuseport_common::observe::{
    self, Event, Filter, Offsets, PROGRAM_ACCEPTED, PROGRAM_QUEUED, PROGRAM_RETURNED, Syscall,
    Times, TimesWords, Total,
};
use serde::Serialize;

use super::btf::observe::Kernel;
use super::{BpfError, run_at, run_at_end, take};
use crate::model::Cpu;
use crate::sys::bpf;
use crate::sys::caps::Cap;

/// Room for some 80000 events.
const EVENT_BYTES: u32 = 1 << 23;
/// Most pairs of CPUs that are counted, over all listeners.
const MOST_PAIRS: u32 = 1 << 16;

/// Connections by listener, receiving and accepting CPU.
pub(crate) type Pairs = BTreeMap<(u32, Cpu, Cpu), u64>;

/// Where it is seen that a connection was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// At the end of the kernel's function for it: nothing runs but for connections.
    ///
    /// # Minimum kernel version
    ///
    /// 5.10 on x86, 6.4 on arm64, where nothing forbids to patch the kernel's text.
    Function,
    /// At the end of every system call on the host, each of which it makes some tens of nanoseconds
    /// longer. Connections that io_uring accepts are not seen.
    ///
    /// # Minimum kernel version
    ///
    /// 5.10.
    Syscalls,
}

/// What to observe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Inode of the network namespace.
    pub(crate) netns: u32,
    /// The listeners' port.
    pub(crate) port: u16,
    /// Most listeners.
    pub(crate) listeners: u32,
    /// Rows of a table with one for each possible CPU.
    pub(crate) cpus: u32,
    /// Whether to tell of each connection.
    pub(crate) events: bool,
}

/// The programs and their maps. Nothing is pinned: they go with the process.
pub(crate) struct Observe {
    pub(crate) hook: Hook,
    /// Why it is not the function.
    pub(crate) why: Option<String>,
    listeners: HashMap<MapData, u64, u32>,
    times: PerCpuArray<MapData, TimesWords>,
    pairs: HashMap<MapData, u64, u64>,
    totals: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
    /// Connections that came before accepts were seen.
    before: u64,
    /// As it was when the programs were taken away.
    missed: u64,
    attached: Option<Ebpf>,
}

/// aya's ring buffer has no `Debug`.
impl std::fmt::Debug for Observe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observe").field("hook", &self.hook).finish_non_exhaustive()
    }
}

impl Observe {
    /// Begins to observe the listeners with these cookies; their indices are their places.
    ///
    /// # Minimum kernel version
    ///
    /// 5.10 with BTF; `CAP_BPF` and `CAP_PERFMON`.
    pub(crate) fn start(options: &Options, cookies: &[u64]) -> Result<Self, BpfError> {
        BpfError::require(Cap::Perfmon, "see connections come and be accepted")?;
        let kernel = Kernel::look_up()?;
        let at = |hook| Self::start_at(hook, &kernel, options, cookies);
        at(Hook::Function).or_else(|why| {
            // What is wrong with both is told of the one that needs less.
            let observe = at(Hook::Syscalls)?;
            let why = match why {
                // It is permitted, as the other one shows.
                BpfError::NotPermitted { .. } => {
                    "the kernel takes no program at its functions, and does at tracepoints: built \
                     without function tracing, or made to refuse it"
                        .to_owned()
                }
                why => why.to_string().lines().take(1).collect(),
            };
            Ok(Self { why: Some(why), ..observe })
        })
    }

    fn start_at(
        hook: Hook,
        kernel: &Kernel,
        options: &Options,
        cookies: &[u64],
    ) -> Result<Self, BpfError> {
        let &Options { netns, port, listeners, cpus, events } = options;
        let filter = Filter { netns, port, events: u16::from(events) };
        let filter: [u8; size_of::<Filter>()] = bytemuck::cast(filter);
        let offsets: [u8; size_of::<Offsets>()] = bytemuck::cast(kernel.offsets);
        let syscall: [u8; size_of::<Syscall>()] = bytemuck::cast(kernel.syscall);
        let pairs = listeners.saturating_mul(cpus).saturating_mul(cpus).min(MOST_PAIRS);
        let mut ebpf = EbpfLoader::new()
            // For CO-RE relocations, which Rust programs do not have.
            .btf(None)
            .map_max_entries(observe::LISTENERS, listeners)
            .map_max_entries(observe::TIMES, listeners)
            .map_max_entries(observe::PAIRS, pairs)
            .map_max_entries(observe::EVENTS, if events { EVENT_BYTES } else { 1 << 12 })
            .override_global(observe::FILTER, &filter[..], true)
            .override_global(observe::OFFSETS, &offsets[..], true)
            .override_global(observe::SYSCALL, &syscall[..], true)
            .load(reuseport_ebpf::OBSERVE)
            .map_err(BpfError::sort("create the BPF maps", Cap::Bpf))?;
        let mut observe = Self {
            hook,
            why: None,
            listeners: take(&mut ebpf, observe::LISTENERS)?.try_into()?,
            times: take(&mut ebpf, observe::TIMES)?.try_into()?,
            pairs: take(&mut ebpf, observe::PAIRS)?.try_into()?,
            totals: take(&mut ebpf, observe::TOTALS)?.try_into()?,
            events: take(&mut ebpf, observe::EVENTS)?.try_into()?,
            before: 0,
            missed: 0,
            attached: None,
        };
        for (&cookie, index) in cookies.iter().zip(0..) {
            observe.add(cookie, index)?;
        }
        run_at(&mut ebpf, PROGRAM_QUEUED, &kernel.places)?;
        match hook {
            Hook::Function => run_at_end(&mut ebpf, PROGRAM_ACCEPTED, &kernel.places)?,
            Hook::Syscalls => run_at(&mut ebpf, PROGRAM_RETURNED, &kernel.places)?,
        }
        // Those may be accepted already.
        observe.before = observe.total(Total::Queued)?;
        observe.attached = Some(ebpf);
        Ok(observe)
    }

    /// Observes a listener from now on. Its index is below [`Options::listeners`] and nobody else's.
    pub(crate) fn add(&mut self, cookie: u64, index: u32) -> Result<(), BpfError> {
        Ok(self.listeners.insert(cookie, index, 0)?)
    }

    /// Observes a listener no more; what was counted of it stays under its index.
    pub(crate) fn remove(&mut self, cookie: u64) -> Result<(), BpfError> {
        absent_is_fine(self.listeners.remove(&cookie))
    }

    /// Makes an index one for [`Observe::add`] again, with the pairs of CPUs that there are of it. No
    /// program may be able to find it, nor be at work on it.
    pub(crate) fn clear(
        &mut self,
        index: u32,
        pairs: impl Iterator<Item = (Cpu, Cpu)>,
    ) -> Result<(), BpfError> {
        for (received, accepted) in pairs {
            absent_is_fine(self.pairs.remove(&observe::pair(index, received, accepted)))?;
        }
        let nothing = vec![[0; size_of::<Times>() / 4]; nr_cpus().map_err(|(_, error)| error)?];
        Ok(self.times.set(index, PerCpuValues::try_from(nothing)?, 0)?)
    }

    /// Takes the programs away; what they counted stays.
    pub(crate) fn stop(&mut self) {
        self.missed = self.missed();
        self.attached = None;
    }

    /// How often the kernel left a program out, because one was running on the CPU already. Zero on
    /// kernels that do not tell (before 5.12).
    pub(crate) fn missed(&self) -> u64 {
        let Some(attached) = &self.attached else { return self.missed };
        let loaded = attached.programs().filter_map(|(_, program)| program.fd().ok());
        loaded.filter_map(|fd| bpf::recursion_misses(fd.as_fd()).ok()).sum()
    }

    /// What was taken down of a listener's connections, by the CPU that accepted.
    pub(crate) fn times(&self, index: u32) -> Result<Vec<Times>, BpfError> {
        let by_cpu = self.times.get(&index, 0)?;
        Ok(by_cpu.iter().map(|words| bytemuck::cast(*words)).collect())
    }

    /// Connections by listener, receiving and accepting CPU.
    pub(crate) fn pairs(&self) -> Result<Pairs, BpfError> {
        let pairs =
            self.pairs.iter().map(|it| it.map(|(pair, count)| (observe::unpair(pair), count)));
        Ok(pairs.collect::<Result<_, _>>()?)
    }

    /// A total over all CPUs.
    pub(crate) fn total(&self, total: Total) -> Result<u64, BpfError> {
        let sum: u64 = self.totals.get(&(total as u32), 0)?.iter().sum();
        Ok(if total == Total::Queued { sum - self.before } else { sum })
    }

    /// The next connection, if there is one.
    pub(crate) fn take(&mut self) -> Option<Event> {
        let item = self.events.next()?;
        // Of the size that the object says; anything else is nothing that it wrote.
        bytemuck::try_pod_read_unaligned(&item).ok()
    }
}

fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), BpfError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        removed => Ok(removed?),
    }
}

#[cfg(test)]
mod tests {
    use reuseport_common::observe::Waiting;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::sys::{netns, sockopt};

    fn sees_what_comes_and_goes(hook: Hook) -> Result<(), BpfError> {
        let [ours, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = ours.local_addr().unwrap();
        let options = Options {
            netns: netns::inode(netns::OWN.as_ref()).unwrap() as u32,
            port: address.port(),
            listeners: 2,
            cpus: 64,
            events: true,
        };
        // One that waits already.
        let _early = TcpStream::connect(address).unwrap();
        let cookie = sockopt::cookie(ours.as_fd()).unwrap();
        let kernel = Kernel::look_up()?;
        let mut observe = Observe::start_at(hook, &kernel, &options, &[1, cookie])?;
        let _ignored = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        drop(other.accept().unwrap());
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        for _ in 0..4 {
            drop(ours.accept().unwrap());
        }
        assert_eq!(observe.missed(), 0);
        observe.stop();
        // Of nobody's interest any more.
        let _late = TcpStream::connect(address).unwrap();
        drop(ours.accept().unwrap());

        let early = observe.take().unwrap();
        assert_eq!((early.waiting, early.depth, early.listener), (Waiting::default(), 4, cookie));
        for (client, depth) in clients.iter().zip([3, 2, 1]) {
            let event = observe.take().unwrap();
            let port = client.local_addr().unwrap().port();
            assert_eq!((event.port, event.depth), (port.to_be_bytes(), depth), "{event:?}");
            assert_eq!(event.client[..4], [127, 0, 0, 1]);
            assert!(event.waiting.since < event.at && event.waiting.handshake > 0, "{event:?}");
            assert_eq!(event.pid, std::process::id());
        }
        assert_eq!(observe.take(), None);
        let sum = |of: fn(&Times) -> u32| observe.times(1).unwrap().iter().map(of).sum::<u32>();
        assert_eq!((sum(|it| it.unseen), sum(|it| it.waits.iter().sum())), (1, 3));
        assert_eq!(sum(|it| it.handshakes.iter().sum()), 3);
        assert_eq!(observe.times(0).unwrap().iter().map(|it| it.deepest).max(), Some(0));
        assert_eq!(observe.times(1).unwrap().iter().map(|it| it.deepest).max(), Some(4));
        let pairs = observe.pairs().unwrap();
        assert!(pairs.keys().all(|(listener, ..)| *listener == 1), "{pairs:?}");
        assert_eq!(pairs.values().sum::<u64>(), 3);
        for (total, expected) in
            [(Total::Queued, 3), (Total::Unlisted, 0), (Total::Unpaired, 0), (Total::LostEvents, 0)]
        {
            assert_eq!(observe.total(total).unwrap(), expected, "{total:?}");
        }
        Ok(())
    }

    #[test]
    fn the_tracepoint_of_system_calls_sees() {
        sees_what_comes_and_goes(Hook::Syscalls).unwrap();
    }

    /// Nothing is guessed of privileges that the one that works needs, too.
    #[test]
    fn why_it_is_not_the_function_is_no_privilege() {
        let netns = netns::inode(netns::OWN.as_ref()).unwrap() as u32;
        let options = Options { netns, port: 1, listeners: 1, cpus: 1, events: false };
        let observe = Observe::start(&options, &[]).unwrap();
        assert_eq!(observe.why.is_some(), observe.hook == Hook::Syscalls);
        let why = observe.why.unwrap_or_default();
        assert!(!["security module", "CAP_"].iter().any(|it| why.contains(it)), "{why}");
    }

    /// Not every kernel lets its functions be hooked.
    #[test]
    fn the_function_sees_where_it_can_be_hooked() {
        if let Err(error) = sees_what_comes_and_goes(Hook::Function) {
            // No word of the verifier's: the kernel refuses such programs as such.
            assert!(matches!(error, BpfError::NotPermitted { .. }), "{error}");
        }
    }
}
