//! The load: client threads, each pinned to a CPU, each with an epoll and many connections.
//!
//! In an **open** loop requests are due at the times of a Poisson process, and a latency counts from
//! when its request was *due*: what a stalled server delays is counted as it is, not as few slow
//! requests as there were clients (coordinated omission). In a **closed** loop so many are under way
//! at a time, which is for throughput.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::workload::{Pace, Work};
use crate::model::{Cpu, Pid};
use crate::sys::{SyscallError, clock};

mod client;
mod datagrams;
pub(crate) mod latency;
pub(super) mod schedule;
#[cfg(test)]
mod tests;

use latency::Seen;

/// Longest wait for replies that are missing when the window ends: beyond a SYN sent again (1 s) and
/// a worker that stood still for a second.
const GRACE: Duration = Duration::from_secs(3);

/// Between two looks whether a thread that is done may go.
const STAY: Duration = Duration::from_millis(5);

/// What to ask, of whom, from where, for how long.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) address: SocketAddr,
    pub(super) udp: bool,
    /// A client thread for each.
    pub(super) clients: Vec<Cpu>,
    pub(super) pace: Pace,
    pub(super) work: Work,
    /// Requests on each connection.
    pub(super) requests: u32,
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
    /// What the times and the work follow from.
    pub(super) seed: u64,
    /// All clients move to the first one's CPU in the middle of the window.
    pub(super) skew: bool,
}

/// When the window is, by the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) begin: Duration,
    pub(super) end: Duration,
}

impl Window {
    fn contains(self, time: Duration) -> bool {
        (self.begin..self.end).contains(&time)
    }

    pub(super) fn middle(self) -> Duration {
        self.begin + self.end.saturating_sub(self.begin) / 2
    }
}

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A client thread could not be started.
    #[error("cannot start a client thread for CPU {cpu}: {source}")]
    Spawn {
        /// Its CPU.
        cpu: Cpu,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A client thread cannot work.
    #[error("a client thread for CPU {cpu}: {source}")]
    Client {
        /// Its CPU.
        cpu: Cpu,
        /// What failed.
        #[source]
        source: SyscallError,
    },
    /// A client thread panicked: a bug.
    #[error("a client thread for CPU {0} panicked")]
    Panicked(Cpu),
}

/// What the clients share with whoever waits for them.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// They are to end at once.
    pub(super) stop: AtomicBool,
    /// They are to stay when they are done, until their time is counted: a thread that is gone has
    /// none any more.
    pub(super) stay: AtomicBool,
    /// Threads, so that their time can be counted.
    tids: Mutex<Vec<Pid>>,
}

/// Most client threads.
pub(super) const MOST: usize = 1024;

impl Shared {
    /// Of threads that stay when they are done.
    pub(super) fn staying() -> Self {
        Self { stay: true.into(), ..Self::default() }
    }

    pub(super) fn tids(&self) -> Vec<Pid> {
        self.tids.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Begins a load and waits for its end. To be called in the clients' network namespace, which the
/// threads inherit.
pub(super) fn run(plan: &Plan, window: Window, shared: &Arc<Shared>) -> Result<Seen, LoadError> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (place, &cpu) in plan.clients.iter().enumerate() {
            let job = Job { plan, window, shared, cpu, place };
            let thread = std::thread::Builder::new().name(format!("client/{cpu}"));
            match thread.spawn_scoped(scope, move || job.run()) {
                Ok(thread) => threads.push((cpu, thread)),
                Err(source) => {
                    shared.stop.store(true, Ordering::Relaxed);
                    return Err(LoadError::Spawn { cpu, source });
                }
            }
        }
        let mut total = Seen::new();
        for (cpu, thread) in threads {
            match thread.join().or(Err(LoadError::Panicked(cpu))).flatten() {
                Ok(seen) => total.add(&seen),
                Err(error) => {
                    shared.stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(total)
    })
}

/// One thread's part.
struct Job<'a> {
    plan: &'a Plan,
    window: Window,
    shared: &'a Shared,
    cpu: Cpu,
    /// Among the clients.
    place: usize,
}

impl Job<'_> {
    fn run(&self) -> Result<Seen, LoadError> {
        let work = || {
            pin(self.cpu)?;
            crate::sys::sched::sleep_exactly()?;
            let own = crate::sys::sched::thread_id();
            self.shared.tids.lock().unwrap_or_else(PoisonError::into_inner).push(own);
            let seen = if self.plan.udp { datagrams::run(self) } else { client::run(self) }?;
            while self.shared.stay.load(Ordering::Relaxed) && !self.stops() {
                std::thread::sleep(STAY);
            }
            Ok(seen)
        };
        work().map_err(|source| LoadError::Client { cpu: self.cpu, source })
    }

    fn stops(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// This client's part of all connections.
    fn connections(&self, all: usize) -> usize {
        let clients = self.plan.clients.len();
        all / clients + usize::from(self.place < all % clients)
    }
}

/// Keeps the calling thread on a CPU.
fn pin(cpu: Cpu) -> Result<(), SyscallError> {
    crate::sys::sched::set_affinity(0, &[cpu].into())
}

/// The window of a load that is started now.
pub(super) fn window(plan: &Plan) -> Window {
    let begin = clock::monotonic() + plan.warmup;
    Window { begin, end: begin + plan.duration }
}
