//! Waiting until a drained worker accepted what it had got.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::discover::{DiscoverError, Look, Target};
use crate::model::{Group, Served, Worker};
use crate::sys::membarrier;

use super::super::SteerError;
use super::SeatReport;

/// Between two looks at the queues, at first and at last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// Between two looks at the handshakes, for which the kernel walks through all connections.
const HANDSHAKES_PAUSE: Duration = Duration::from_millis(250);

/// What became of what a worker had got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Drained {
    /// It accepted all of it.
    Empty,
    /// It exited, or listens no more.
    Gone,
}

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The slot.
    pub slot: u32,
    /// Connections in its accept queue (bytes in the receive queue of a UDP socket).
    pub queued: u32,
    /// Handshakes on the port that were under way when it was drained, its own among them: the kernel
    /// does not tell which those are.
    pub handshakes: usize,
}

/// For the drained seats of one group.
pub(super) struct Wait<'a> {
    pub(super) target: &'a Target,
    pub(super) group: &'a Group,
    pub(super) patience: Duration,
    pub(super) deadline: Instant,
}

impl Wait<'_> {
    /// Waits for all `seats`, tells `progress` of each change, and notes down what became of them.
    /// Packets that were on their way when the table was changed must have been handled by now.
    pub(super) fn run(
        &self,
        seats: &mut [SeatReport],
        progress: &mut dyn FnMut(&Waiting),
    ) -> Result<(), SteerError> {
        let mut look = Look::open(self.target, &self.group.netns)?;
        let mut handshakes = Handshakes::find(&mut look)?;
        let mut told: HashMap<u32, Waiting> = HashMap::new();
        let mut pause = PAUSE.0;
        loop {
            // Before the queues, for that is where they end up.
            handshakes.update(&mut look)?;
            let queues = look.queues(&self.group.key.address)?;
            let mut busy = None;
            for seat in seats.iter_mut().filter(|seat| seat.drained.is_none()) {
                let queue = queues.iter().find(|queue| queue.cookie == seat.cookie);
                let Some(queue) = queue.filter(|_| lives(&seat.served)) else {
                    seat.drained = Some(Drained::Gone);
                    continue;
                };
                let handshakes = handshakes.left();
                let waiting = Waiting { slot: seat.slot, queued: queue.queued, handshakes };
                if queue.queued == 0 && handshakes == 0 {
                    seat.drained = Some(Drained::Empty);
                    continue;
                }
                if told.insert(seat.slot, waiting) != Some(waiting) {
                    progress(&waiting);
                }
                busy = Some(waiting);
            }
            let Some(Waiting { slot, queued, handshakes }) = busy else { return Ok(()) };
            if Instant::now() >= self.deadline {
                let (group, seconds) = (self.group.key, self.patience.as_secs());
                return Err(SteerError::NotEmpty { group, slot, queued, handshakes, seconds });
            }
            sleep(pause);
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

/// The handshakes that were under way at the change. Later ones are for others.
#[derive(Debug)]
pub struct Handshakes {
    open: BTreeSet<u64>,
    looked: Instant,
}

impl Handshakes {
    /// When this returns, those that are done are in a queue.
    pub fn find(look: &mut Look) -> Result<Self, DiscoverError> {
        let open = look.handshakes()?;
        membarrier::wait_for_packets();
        Ok(Self { open, looked: Instant::now() })
    }

    /// Forgets those that are done; when this returns, they are in a queue.
    pub fn update(&mut self, look: &mut Look) -> Result<(), DiscoverError> {
        if self.open.is_empty() || self.looked.elapsed() < HANDSHAKES_PAUSE {
            return Ok(());
        }
        let now = look.handshakes()?;
        let before = self.open.len();
        self.open.retain(|cookie| now.contains(cookie));
        if self.open.len() < before {
            // Out of the one table, and not in the queue yet.
            membarrier::wait_for_packets();
        }
        self.looked = Instant::now();
        Ok(())
    }

    /// How many there still are.
    pub fn left(&self) -> usize {
        self.open.len()
    }
}

/// Whether any of those that serve a listener is still there; true where they are not known.
fn lives(served: &Served) -> bool {
    let lives = |worker: &Worker| {
        let tid = worker.tid.unwrap_or(worker.pid);
        PathBuf::from(format!("/proc/{}/task/{tid}", worker.pid)).exists()
    };
    match served {
        Served::By(workers) => workers.iter().any(lives),
        Served::Unknown(_) => true,
    }
}
