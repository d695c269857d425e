//! Load: connections from every CPU, one after the other, until stopped.
#![expect(clippy::print_stderr, reason = "beside the failure that it explains")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::{Failure, Tally, Target, exchange};
use crate::eventually;
use crate::netns::Netns;
use crate::sys;

/// How often it is looked whether the machine stands still.
const PULSE: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Longest that the machine stood still, in milliseconds: a virtual one is paused now and then.
    pause: AtomicU64,
    answered: AtomicU64,
    tally: Mutex<Tally>,
}

/// A running load; stopped on drop.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `threads` clients on each of `cpus` in `netns`.
    pub fn start(netns: &Netns, target: &Target, cpus: &[u32], threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let spawn = |cpu: u32| {
            let (shared, target, inside) = (Arc::clone(&shared), target.clone(), netns.file());
            thread::spawn(move || {
                sys::enter_netns(&inside).expect("setns");
                sys::pin(0, &[cpu]).unwrap_or_else(|error| panic!("run on CPU {cpu}: {error}"));
                while !shared.stop.load(Relaxed) {
                    let result = exchange(&target);
                    if result.is_ok() {
                        shared.answered.fetch_add(1, Relaxed);
                    } else {
                        if target.told && result == Err(Failure::Timeout) {
                            let pause = shared.pause.load(Relaxed);
                            eprintln!("the machine stood still for at most {pause} ms so far");
                        }
                        // A dead port refuses fast: leave the CPU to whoever brings it back.
                        thread::sleep(Duration::from_millis(1));
                    }
                    let mut tally = shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
                    tally.add(cpu, result);
                }
            })
        };
        let pulse = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.stop.load(Relaxed) {
                    let start = Instant::now();
                    thread::sleep(PULSE);
                    let pause = start.elapsed().saturating_sub(PULSE);
                    shared.pause.fetch_max(pause.as_millis() as u64, Relaxed);
                }
            }
        });
        let places = cpus.iter().flat_map(|&cpu| std::iter::repeat_n(cpu, threads));
        let threads = places.map(spawn).chain([pulse]).collect();
        Self { shared, threads }
    }

    /// Connections answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }

    /// Waits until `more` further connections were answered.
    pub fn advance(&self, more: u64) {
        let goal = self.answered() + more;
        let done = eventually(Duration::from_mins(1), || self.answered() >= goal);
        assert!(done, "the load stands still: {}", self.so_far());
    }

    /// What became of the connections since the start or the last [`Load::take`].
    pub fn so_far(&self) -> Tally {
        self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// [`Load::so_far`], counting from zero again.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops it and says what became of the connections.
    pub fn stop(mut self) -> Tally {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client thread");
        }
        self.take()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}
