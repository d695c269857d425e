//! A copy as a process: its environment, its start.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::group::launched;
use crate::model::Pid;
use crate::sys::spawn::{self, Image};

use super::logs::{Logs, Stream};
use super::placement::Seat;
use super::template::Template;

/// Variables of our own that would mislead a copy: listeners and watchdogs that are not its.
const OURS: [&str; 7] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];
/// What the listener is called in `LISTEN_FDNAMES`.
const LISTENER_NAME: &str = "reuseport";

/// Starts a copy; what it writes goes to `logs`.
pub(super) fn start(
    command: &Template,
    seat: &Seat,
    listener: Option<&OwnedFd>,
    bpffs: &Path,
    logs: &Logs,
) -> io::Result<Pid> {
    let words = command.fill(seat);
    let environment = environment(seat, listener.is_some(), bpffs);
    let image = Image {
        words: &words,
        environment: &environment,
        cpu: seat.cpu,
        listener: listener.map(OwnedFd::as_fd),
    };
    // Only the output is taken from it.
    let mut process = Command::new(command.program());
    process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn::spawn(&mut process, &image)?;
    let pipes = [
        (child.stdout.take().map(OwnedFd::from), Stream::Out),
        (child.stderr.take().map(OwnedFd::from), Stream::Err),
    ];
    for (pipe, stream) in pipes {
        if let Some(pipe) = pipe {
            logs.follow(seat.worker, pipe, stream);
        }
    }
    Ok(child.id())
}

fn environment(seat: &Seat, listener: bool, bpffs: &Path) -> Vec<(OsString, OsString)> {
    let mut own: Vec<(&str, OsString)> = vec![
        ("WORKER_INDEX", seat.worker.to_string().into()),
        ("WORKER_CPU", seat.cpu.to_string().into()),
        // A server made with the library leaves it to us then whose turn it is.
        (launched::VARIABLE, bpffs.into()),
    ];
    if listener {
        own.push(("LISTEN_FDS", "1".into()));
        own.push(("LISTEN_FDNAMES", LISTENER_NAME.into()));
    }
    let replaced =
        |name: &OsString| OURS.iter().any(|it| name == it) || own.iter().any(|(it, _)| name == it);
    let inherited = env::vars_os().filter(|(name, _)| !replaced(name));
    let mut all: Vec<(OsString, OsString)> = inherited.collect();
    all.extend(own.into_iter().map(|(name, value)| (name.into(), value)));
    all
}
