//! When a target that is on a rung below eBPF tries eBPF again: a bpffs that is mounted later, a limit
//! that is raised or a policy that is changed makes it possible, and nobody tells.

use std::time::{Duration, Instant};

use crate::bpf::object;
use crate::bpf::pins::Pins;
use crate::steer::Settings;

/// From one try to the next, in reconcile intervals: a minute unless told otherwise. A try that is let
/// through loads the program, which takes milliseconds.
const PAUSE: u32 = 60;

/// The clock of one target.
#[derive(Debug)]
pub(super) struct Climb {
    interval: Duration,
    due: Instant,
}

impl Climb {
    /// To be tried after a while.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, due: Instant::now() + interval * PAUSE }
    }

    /// To be tried now.
    pub(super) fn at_once(interval: Duration) -> Self {
        Self { interval, due: Instant::now() }
    }

    /// It was tried, and is not to be had.
    pub(super) fn fell(&mut self) {
        self.due = Instant::now() + self.interval * PAUSE;
    }

    /// Whether eBPF is to be had, as far as one can tell who changes no listener. False while it is
    /// too early to ask again.
    pub(super) fn is_to_be_had(&mut self, settings: &Settings) -> bool {
        if Instant::now() < self.due {
            return false;
        }
        self.fell();
        // Not `rungs::probe`, which remembers what it was told.
        let pins = Pins::at(&settings.bpffs);
        pins.is_ok_and(|pins| object::probe().is_ok() && pins.lock().is_ok())
    }
}
