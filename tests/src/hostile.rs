//! Other people's BPF, and places where the kernel says no. The work is done by `hostile.py`.

use std::io::{BufRead as _, BufReader};
use std::process::{ChildStdin, Command, Stdio};

use crate::netns::Netns;
use crate::process::{Reaped, must};
use crate::worker::Worker;

const SCRIPT: &str = include_str!("hostile.py");
const PYTHON: &str = "/usr/bin/python3";

/// For [`crate::binary::Cli::through`]: a seccomp filter that answers these system calls with `errno`.
pub fn seccomp(errno: i32, calls: &[libc::c_long]) -> Vec<String> {
    let calls: Vec<String> = calls.iter().map(libc::c_long::to_string).collect();
    let words = [PYTHON, "-c", SCRIPT, "confine"].map(str::to_owned);
    words.into_iter().chain([errno.to_string(), calls.join(",")]).collect()
}

/// What somebody else does with a listener.
#[derive(Clone, Copy, Debug)]
pub enum Deed {
    /// Attaches an eBPF program.
    Program,
    /// Attaches one that refers to a map with the listener in it.
    ProgramWithMap,
    /// Puts the listener into a map and attaches nothing.
    Map,
}

/// Somebody else, alive.
#[derive(Debug)]
pub struct Stranger {
    _child: Reaped,
    _stdin: ChildStdin,
}

impl Stranger {
    /// Does it to the first listener of `worker`; what was attached outlives it.
    pub fn start(netns: &Netns, worker: &Worker, deed: Deed) -> Self {
        let (verb, map) = match deed {
            Deed::Program => ("attach", Some("none")),
            Deed::ProgramWithMap => ("attach", Some("array")),
            Deed::Map => ("hold", None),
        };
        let mut command = script(netns, verb, worker);
        command.args(map);
        let (child, stdin) = ready(&mut command);
        Self { _child: child, _stdin: stdin }
    }

    /// Puts the first listeners of both workers into one map with values of `size` bytes, and
    /// attaches a program that refers to it to the group of `worker`'s.
    pub fn share(netns: &Netns, worker: &Worker, other: &Worker, size: u32) -> Self {
        let mut command = script(netns, "share", worker);
        command.args([other.pid().to_string(), other.fds()[0].to_string(), size.to_string()]);
        let (child, stdin) = ready(&mut command);
        Self { _child: child, _stdin: stdin }
    }
}

/// Attaches a classic BPF program to the group of `worker`'s first listener.
pub fn attach_classic(netns: &Netns, worker: &Worker) {
    must(&mut script(netns, "classic", worker));
}

/// Detaches whatever is attached to the group of `worker`'s first listener.
pub fn detach(netns: &Netns, worker: &Worker) {
    must(&mut script(netns, "detach", worker));
}

/// A process that closes and reopens, on one descriptor number: listeners of the group on
/// 0.0.0.0:`port`, listeners on the next port, a file.
pub fn reuse_descriptor(netns: &Netns, port: u16) -> Reaped {
    let mut command = netns.command(PYTHON);
    command.args(["-c", SCRIPT, "reuse", &port.to_string()]);
    ready(&mut command).0
}

/// A process that looks like a trace of `worker`'s first listener to all but a close look.
pub fn forge_trace(netns: &Netns, worker: &Worker) -> Stranger {
    let mut command = netns.command(PYTHON);
    command.args(["-c", SCRIPT, "forge", &libc::SYS_bpf.to_string()]);
    let (child, stdin) = ready(command.arg(worker.cookies()[0].to_string()));
    Stranger { _child: child, _stdin: stdin }
}

/// A process that shuts the first listener of `worker` down and listens again, over and over.
pub fn flap(netns: &Netns, worker: &Worker) -> Reaped {
    ready(&mut script(netns, "flap", worker)).0
}

fn script(netns: &Netns, verb: &str, worker: &Worker) -> Command {
    let mut command = netns.command(PYTHON);
    command.args(["-c", SCRIPT, verb, &libc::SYS_bpf.to_string()]);
    command.args([worker.pid().to_string(), worker.fds()[0].to_string()]);
    command.env("SYS_PIDFD_GETFD", libc::SYS_pidfd_getfd.to_string());
    command
}

/// Starts it and waits for its word.
fn ready(command: &mut Command) -> (Reaped, ChildStdin) {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = Reaped(child.expect("start python3"));
    let stdin = child.0.stdin.take().expect("stdin is piped");
    let mut line = String::new();
    let stdout = child.0.stdout.take().expect("stdout is piped");
    BufReader::new(stdout).read_line(&mut line).expect("read from python3");
    assert_eq!(line, "ready\n", "{command:?} failed (its stderr is above)");
    (child, stdin)
}
