//! What a listener remembers of us; the module's documentation says how.

use std::os::fd::BorrowedFd;

use serde::Serialize;

use crate::model::Cpu;
use crate::sys::{SyscallError, fcntl, sockopt};

/// No CPU, as the kernel sets it when a socket is made.
const UNSET: i32 = -1;
/// The largest number that holds a place.
const FIRST: i32 = -2;
/// The mark: what the kernel sends by default.
const OURS: i32 = libc::SIGIO;

/// A listener's place in the order that a classic program goes by, and how many there were when it
/// was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// From 0, in order of `listen()`.
    pub index: u16,
    /// Members of the group; a group has at most 32,768.
    pub of: u16,
}

/// What was done to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "trace", rename_all = "snake_case")]
pub enum Trace {
    /// Nothing.
    Nothing,
    /// It is preferred for connections that this CPU receives.
    IncomingCpu {
        /// The CPU.
        cpu: Cpu,
        /// Whether we set it; its server otherwise.
        ours: bool,
    },
    /// Its group runs our classic program, in which it has this place.
    Place(Place),
}

impl Place {
    /// The number that holds it: -2 or less, and above the smallest there is.
    fn encode(self) -> i32 {
        FIRST - (i32::from(self.of) << 15 | i32::from(self.index))
    }

    fn decode(value: i32) -> Option<Self> {
        let packed = FIRST.checked_sub(value).filter(|&packed| packed >= 0)?;
        let (of, index) = (packed >> 15, packed & 0x7fff);
        // What no group can have is somebody else's number.
        (index < of && of <= 1 << 15).then_some(Self { index: index as u16, of: of as u16 })
    }
}

/// Reads what was done to a listener.
///
/// # Minimum kernel version
///
/// 3.19.
pub fn inspect(listener: BorrowedFd<'_>) -> Result<Trace, SyscallError> {
    let value = sockopt::incoming_cpu_value(listener)?;
    Ok(match u32::try_from(value) {
        Ok(cpu) => Trace::IncomingCpu { cpu, ours: fcntl::signal(listener)? == OURS },
        Err(_) => Place::decode(value).map_or(Trace::Nothing, Trace::Place),
    })
}

/// Sets the CPU, and that it was us: first the mark, so that no moment leaves ours without it.
pub(super) fn set_cpu(listener: BorrowedFd<'_>, cpu: Cpu) -> Result<(), SyscallError> {
    // A signal that somebody chose stays: the listener is then left alone by `detach`.
    if fcntl::signal(listener)? == 0 {
        fcntl::set_signal(listener, OURS)?;
    }
    sockopt::set_incoming_cpu(listener, Some(cpu))
}

/// Sets the place.
pub(super) fn set_place(listener: BorrowedFd<'_>, place: Place) -> Result<(), SyscallError> {
    sockopt::set_incoming_cpu_value(listener, place.encode())?;
    forget(listener)
}

/// Forgets everything.
pub(super) fn clear(listener: BorrowedFd<'_>) -> Result<(), SyscallError> {
    if sockopt::incoming_cpu_value(listener)? != UNSET {
        sockopt::set_incoming_cpu_value(listener, UNSET)?;
    }
    forget(listener)
}

fn forget(listener: BorrowedFd<'_>) -> Result<(), SyscallError> {
    match fcntl::signal(listener)? {
        OURS => fcntl::set_signal(listener, 0),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_and_mean_no_cpu() {
        for (index, of) in [(0, 1), (0, 2), (1, 2), (127, 128), (0, 32768), (32767, 32768)] {
            let place = Place { index, of };
            let value = place.encode();
            assert!(value <= -2, "{place:?} is {value}");
            assert_eq!(Place::decode(value), Some(place));
        }
        for value in [UNSET, 0, 1, i32::MAX, -2, -3, i32::MIN, i32::MIN + 1] {
            assert_eq!(Place::decode(value), None, "{value}");
        }
    }
}
