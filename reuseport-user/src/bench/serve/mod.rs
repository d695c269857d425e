//! The server process: one thread per CPU, the same for every mechanism but for where its
//! connections come from.
//!
//! It is a process of its own so that what it costs can be told from what the clients cost, and so
//! that a newer one can replace it. It ends when whoever started it closes the socket that is its
//! standard input.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use super::protocol::{Command, Reply};
use crate::group::GroupError;
use crate::rungs::Why;
use crate::steer::SteerError;
use crate::sys::SyscallError;

mod listen;
mod worker;

use listen::Served;

/// Why the server ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Started by hand.
    #[error("bench-server is started by `bench`, with a socket as its standard input: {0}")]
    NotAServer(#[source] io::Error),
    /// Two versions at once, perhaps.
    #[error("the bench sent `{0}`, which is not the command that was due")]
    Protocol(String),
    /// A call of the standard library.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A system call.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// The listeners could not be had, or not as the mechanism has them.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// A worker's CPU went away or was never allowed.
    #[error(transparent)]
    Pin(#[from] crate::group::PinError),
    /// A listener is missing: a bug.
    #[error(transparent)]
    Take(#[from] crate::group::TakeError),
    /// A thread panicked: a bug.
    #[error("a worker thread panicked")]
    Panicked,
}

/// Names the operation that failed.
fn during(operation: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { operation, source }
}

impl ServeError {
    /// Whether this machine, or this process on it, lacks what the mechanism takes.
    fn is_unavailable(&self) -> bool {
        let why = match self {
            Self::Group(GroupError::Rung { why, .. }) => why.clone(),
            Self::Group(GroupError::Steer(SteerError::Bpf { source, .. })) => Why::from(source),
            _ => return false,
        };
        matches!(why, Why::NotPermitted(_) | Why::Unsupported(_) | Why::Unfit(_))
    }
}

/// The hidden subcommand.
pub fn run() -> Result<(), ServeError> {
    let control = io::stdin().as_fd().try_clone_to_owned().map_err(ServeError::NotAServer)?;
    let control = UnixStream::from(control);
    control.peer_addr().map_err(ServeError::NotAServer)?;
    // Executed as /proc/self/exe, it would be called `exe`. It works all the same where it may not.
    drop(std::fs::write("/proc/self/comm", "bench-server"));
    let outcome = obey(&control);
    if let Err(error) = &outcome {
        let (message, unavailable) = (error.to_string(), error.is_unavailable());
        // The bench may be gone; the error is returned all the same.
        drop(reply(&control, &Reply::Failed { message, unavailable }));
    }
    outcome
}

fn reply(mut control: &UnixStream, reply: &Reply) -> Result<(), ServeError> {
    let mut line = serde_json::to_vec(reply).map_err(io::Error::from).map_err(during("encode"))?;
    line.push(b'\n');
    control.write_all(&line).map_err(during("answer the bench"))
}

fn obey(control: &UnixStream) -> Result<(), ServeError> {
    let mut served: Option<Served> = None;
    for line in BufReader::new(control).lines() {
        let line = line.map_err(during("read from the bench"))?;
        let command: Command = serde_json::from_str(&line).or(Err(ServeError::Protocol(line)))?;
        let answer = match (command, &mut served) {
            (Command::Listen { mechanism, address, udp, cpus, bpffs }, None) => {
                let what = listen::What { mechanism, address, udp, cpus, bpffs };
                let new = Served::start(&what)?;
                let ready = Reply::Ready { address: new.address(), threads: new.threads() };
                served = Some(new);
                ready
            }
            (Command::Reset, Some(served)) => {
                drop(served.take_tallies());
                Reply::Done
            }
            (Command::Stats, Some(served)) => {
                served.check()?;
                Reply::Stats(served.take_tallies())
            }
            (Command::Stall { worker, lasts }, Some(served)) => {
                served.stall(worker, lasts);
                Reply::Done
            }
            (Command::Drain, Some(served)) => {
                served.drain()?;
                Reply::Done
            }
            (other, _) => return Err(ServeError::Protocol(format!("{other:?}"))),
        };
        reply(control, &answer)?;
    }
    served.map_or(Ok(()), Served::stop)
}
