//! The server process, seen from the bench: started, asked and ended.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use super::BenchError;
use super::protocol::{Command, Reply, Tally};
use super::topology::Scene;
use crate::model::Pid;

/// Longest that it may take to answer: it shares its CPUs with a load at full speed.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest that it may take to end by itself before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);

/// How a server process is started: a program that calls [`super::serve::run`].
#[derive(Clone, Debug)]
pub struct ServerCommand {
    /// What to execute.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Default for ServerCommand {
    /// This program again, with the hidden subcommand.
    fn default() -> Self {
        Self { program: "/proc/self/exe".into(), arguments: vec!["bench-server".into()] }
    }
}

/// A server that listens. Dropping it ends and reaps it.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    /// Closed first: it ends the child.
    control: Option<BufReader<UnixStream>>,
    pub(super) address: SocketAddr,
    pub(super) threads: Vec<Pid>,
}

impl Server {
    /// Starts one in its place, with a [`Command::Listen`]; returns when it listens.
    pub(super) fn start(
        command: &ServerCommand,
        scene: &Scene,
        listen: &Command,
    ) -> Result<Self, BenchError> {
        let spawned = scene.inside(|| spawn(command))?;
        let (child, control) = spawned.map_err(BenchError::Spawn)?;
        let (address, threads) = (SocketAddr::from(([0; 4], 0)), Vec::new());
        let control = Some(BufReader::new(control));
        let mut server = Self { child, control, address, threads };
        match server.ask(listen)? {
            Reply::Ready { address, threads } => {
                (server.address, server.threads) = (address, threads);
                Ok(server)
            }
            other => Err(BenchError::ServerSpeech(format!("{other:?}"))),
        }
    }

    pub(super) fn tell(&mut self, command: &Command) -> Result<(), BenchError> {
        match self.ask(command)? {
            Reply::Done => Ok(()),
            other => Err(BenchError::ServerSpeech(format!("{other:?}"))),
        }
    }

    pub(super) fn tallies(&mut self) -> Result<Vec<Tally>, BenchError> {
        match self.ask(&Command::Stats)? {
            Reply::Stats(tallies) => Ok(tallies),
            other => Err(BenchError::ServerSpeech(format!("{other:?}"))),
        }
    }

    fn ask(&mut self, command: &Command) -> Result<Reply, BenchError> {
        let Some(control) = &mut self.control else {
            return Err(BenchError::ServerDied(None));
        };
        let mut request = serde_json::to_vec(command).map_err(io::Error::from).unwrap_or_default();
        request.push(b'\n');
        // What it said before it closed, if anything, is more telling than a broken pipe.
        drop(control.get_mut().write_all(&request));
        let mut line = String::new();
        match control.read_line(&mut line) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(BenchError::ServerSilent(ANSWER))
            }
            Err(_) | Ok(0) => Err(self.died()),
            Ok(_) => match serde_json::from_str(&line) {
                Ok(Reply::Failed { message, unavailable: true }) => {
                    Err(BenchError::Unavailable(message))
                }
                Ok(Reply::Failed { message, .. }) => Err(BenchError::ServerFailed(message)),
                Ok(reply) => Ok(reply),
                Err(_) => Err(BenchError::ServerSpeech(line)),
            },
        }
    }

    /// Its socket closed: how it ended, once that is known.
    fn died(&mut self) -> BenchError {
        let deadline = Instant::now() + FAREWELL;
        while !ended(&mut self.child) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        BenchError::ServerDied(self.child.try_wait().ok().flatten())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control = None;
        let deadline = Instant::now() + FAREWELL;
        while !ended(&mut self.child) {
            if Instant::now() >= deadline {
                // Fails only for a child that ended in between; the wait reaps it either way.
                drop(self.child.kill());
                drop(self.child.wait());
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn spawn(command: &ServerCommand) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(ANSWER))?;
    let child = Process::new(&command.program)
        .args(&command.arguments)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A terminal's Ctrl-C goes to us alone: the server ends when steering is off.
        .process_group(0)
        .spawn()?;
    Ok((child, ours))
}

/// Whether the child has ended (and is reaped). An error means that there is no such child.
fn ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}
