//! The harness of the integration tests: everything a test needs to set a scene on a real kernel,
//! look at it from outside, and leave nothing behind.
//!
//! A test takes a [`netns::Netns`] of its own, starts [`worker::Worker`]s or [`servers`] in it,
//! runs the command with [`binary::Cli`], and connects with [`client`]. Everything is taken down on
//! drop, also when the test panics. Helpers panic rather than return errors: a test wants the stack
//! and the message, and [`leak::Baseline`] says what was left.

pub mod agent;
pub mod binary;
pub mod bpffs;
pub mod browser;
pub mod client;
pub mod container;
pub mod hostile;
pub mod launcher;
pub mod leak;
pub mod load;
pub mod measure;
pub mod metrics;
pub mod netns;
pub mod observe;
pub mod process;
pub mod require;
pub mod scene;
pub mod server;
pub mod servers;
pub mod steer;
pub mod stuck;
pub mod sys;
pub mod systemd;
pub mod terminal;
pub mod tracer;
pub mod traffic;
pub mod turn;
pub mod worker;

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Asks `ready` until it says so or `limit` has passed; returns its last answer.
///
/// A bounded wait, not an assertion on time: choose `limit` generously.
pub fn eventually(limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if ready() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(10));
    }
}

/// CPUs that this process may run on, ascending.
pub fn cpus() -> Vec<u32> {
    sys::affinity()
}
