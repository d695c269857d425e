//! Nothing is left running, also where the launcher is killed (`SIGKILL`, out of memory).
//!
//! The kernel then kills the copies (`PR_SET_PDEATHSIG`), but not what they started themselves. So a
//! small process of ours, the guard, is told of each copy's process group through a pipe, and kills
//! those that are left when the pipe's other end closes, for whatever reason.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::model::Pid;
use crate::sys::spawn;

/// The hidden verb that is the guard.
pub const VERB: &str = "run-guard";

/// The guard process, from the launcher's side.
#[derive(Debug)]
pub(crate) struct Guard {
    process: Child,
    pipe: ChildStdin,
}

impl Guard {
    /// Starts it.
    pub(crate) fn start() -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Not in reach of a terminal's Ctrl-C.
        let mut process = command.process_group(0).spawn()?;
        let pipe = process.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { process, pipe })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.process.id()
    }

    /// A copy runs.
    pub(crate) fn add(&mut self, group: Pid) {
        self.tell(group as i32);
    }

    /// A copy and all of its process group are gone.
    pub(crate) fn remove(&mut self, group: Pid) {
        self.tell(-(group as i32));
    }

    /// Ends it; it has nobody left to kill.
    pub(crate) fn end(mut self) {
        drop(self.pipe);
        // It may be gone already.
        drop(self.process.wait());
    }

    fn tell(&mut self, message: i32) {
        // It fails when the guard was killed: then it is started anew, and told all.
        drop(self.pipe.write_all(&message.to_ne_bytes()));
    }
}

/// The guard itself: reads until the launcher is gone, then kills.
pub fn run() -> io::Result<()> {
    // Whoever stops the launcher may signal its whole family; we have work to do after its end.
    spawn::block_signals();
    for group in left(io::stdin().lock())? {
        spawn::kill_group(group);
    }
    Ok(())
}

/// Groups that were added and not removed, once the pipe ends.
fn left(mut pipe: impl io::Read) -> io::Result<BTreeSet<Pid>> {
    let mut groups = BTreeSet::new();
    loop {
        let mut message = [0; 4];
        match pipe.by_ref().read_exact(&mut message) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(groups),
            Err(error) => return Err(error),
        }
        let message = i32::from_ne_bytes(message);
        let group = message.unsigned_abs();
        // Groups 0 and 1 would mean our own and everybody's.
        match message {
            2.. => _ = groups.insert(group),
            _ => _ = groups.remove(&group),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_who_is_left() {
        let messages: Vec<u8> =
            [7, 9, -7, 11, 1, 0, -4].into_iter().flat_map(i32::to_ne_bytes).collect();
        assert_eq!(left(messages.as_slice()).unwrap(), BTreeSet::from([9, 11]));
        // Cut off in the middle of one.
        assert_eq!(left(&messages[..6]).unwrap(), BTreeSet::from([7]));
    }
}
