//! Signals that end a bench: it then takes down what it has set up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::BenchError;
use crate::sys::clock;

/// Between two looks at whether one came.
const GLANCE: Duration = Duration::from_millis(20);

/// Which signal came, if one did.
#[derive(Debug)]
pub(super) struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// From now on they do not end this process by themselves.
    pub(super) fn catch() -> io::Result<Self> {
        let flag = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(signal, Arc::clone(&flag), signal as usize)?;
        }
        Ok(Self(flag))
    }

    pub(super) fn check(&self) -> Result<(), BenchError> {
        match self.0.load(Ordering::Relaxed) as i32 {
            0 => Ok(()),
            signal => Err(BenchError::Interrupted(crate::sys::spawn::signal_name(signal))),
        }
    }

    /// Sleeps until a time of the monotonic clock, or until a signal comes.
    pub(super) fn sleep_until(&self, time: Duration) -> Result<(), BenchError> {
        loop {
            self.check()?;
            let left = time.saturating_sub(clock::monotonic());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(GLANCE));
        }
    }
}
