//! What the supervisor tells people.

use std::fmt;
use std::time::Duration;

use crate::sys::spawn;

use super::Instance;

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// It never was: the error number of its start.
    NotStarted(i32),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Signalled(signal) => write!(f, "was ended by {}", spawn::signal_name(signal)),
            Self::NotStarted(errno) => {
                write!(f, "could not be started: {}", std::io::Error::from_raw_os_error(errno))
            }
        }
    }
}

/// Why all had to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fatal {
    /// A copy ended before all were up.
    EndedAtOnce(Instance, End),
    /// A copy did not listen in time, before all were up.
    NeverListened(Instance),
    /// A copy ended more often than it may.
    CrashLoop(Instance, End),
    /// The program cannot be steered.
    Unfit,
    /// Steering failed before all were up.
    Steering,
}

/// What happened that people may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// All listen and are steered.
    Up,
    /// A copy ended by itself; the next one starts after this pause.
    Restarting(Instance, End, Duration),
    /// A copy did not listen in time.
    NeverListened(Instance),
    /// A copy was still alive long after it was told to end.
    Killed(Instance),
    /// A replaced copy has connections left, and its time is over.
    StillBusy(Instance),
    /// One of a worker's two copies ended by itself.
    EndedEarly(Instance, End),
    /// One copy after the other is replaced.
    Rolling,
    /// The copy that this one replaces is steered away from.
    Replacing(Instance),
    /// All were replaced.
    Rolled,
    /// This new copy failed; the others stay as they are.
    RollGivenUp(Instance),
    /// All were told to end.
    Stopping(i32),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("all workers listen"),
            Self::Restarting(it, end, pause) => {
                let pause = pause.as_millis();
                write!(f, "worker {} {end}; starting it again in {pause} ms", it.seat)
            }
            Self::NeverListened(it) => {
                write!(f, "worker {} does not listen in time; ending it", it.seat)
            }
            Self::Killed(it) => write!(f, "worker {} did not end in time; killed", it.seat),
            Self::StillBusy(it) => {
                write!(f, "worker {}: the old copy still has connections; ending it", it.seat)
            }
            Self::EndedEarly(it, end) => {
                write!(f, "worker {}: one of its two copies {end}", it.seat)
            }
            Self::Rolling => f.write_str("rolling restart: one worker after the other"),
            Self::Replacing(it) => {
                write!(f, "worker {}: the new copy listens; draining the old one", it.seat)
            }
            Self::Rolled => f.write_str("rolling restart: done"),
            Self::RollGivenUp(it) => {
                let seat = it.seat;
                write!(
                    f,
                    "rolling restart given up: worker {seat}'s new copy failed, the old one stays"
                )
            }
            Self::Stopping(signal) => {
                write!(f, "stopping: {} to all workers", spawn::signal_name(*signal))
            }
        }
    }
}
