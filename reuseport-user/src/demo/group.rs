//! The embedded group, seen from the demo: worker processes, started, asked and ended.

use std::ffi::OsString;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command as Process, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufRead as _, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::DemoError;
use super::matrix::Matrix;
use super::protocol::{Command, Reply};
use crate::model::{Cpu, CpuSet, Pid};

/// Longest that a worker may take to answer: it shares its CPU with a load at full speed.
const ANSWER: Duration = Duration::from_secs(5);

/// Longest that a worker may take to end by itself before it is killed.
const FAREWELL: Duration = Duration::from_secs(1);

/// Ports tried before giving up; each was free a moment before.
const PORTS: usize = 8;

/// How a worker process is started: a program that calls [`super::worker::run`].
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// What to execute.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Environment variables to add.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for WorkerCommand {
    /// This program again, with the hidden subcommand.
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: vec!["demo-worker".into()],
            environment: Vec::new(),
        }
    }
}

/// Workers that listen on one port, one per CPU. Dropping it ends and reaps them.
#[derive(Debug)]
pub(super) struct Group {
    address: SocketAddr,
    workers: Vec<Worker>,
}

impl Group {
    /// Starts one worker per CPU on a free port of the loopback; returns when all listen.
    pub(super) async fn start(command: &WorkerCommand, cpus: &CpuSet) -> Result<Self, DemoError> {
        for _ in 0..PORTS {
            let address = free_port().map_err(DemoError::Port)?;
            if let Some(group) = Self::start_on(address, command, cpus).await? {
                return Ok(group);
            }
        }
        Err(DemoError::PortsTaken(PORTS))
    }

    /// `None` when another program took the port in between.
    pub(super) async fn start_on(
        address: SocketAddr,
        command: &WorkerCommand,
        cpus: &CpuSet,
    ) -> Result<Option<Self>, DemoError> {
        let mut group = Self { address, workers: Vec::new() };
        for cpu in cpus.iter() {
            let worker =
                Worker::spawn(command, cpu).map_err(|source| DemoError::Spawn { cpu, source })?;
            group.workers.push(worker);
        }
        for worker in &mut group.workers {
            let listen = Command::Listen { cpu: worker.cpu, port: address.port() };
            match worker.ask(listen).await? {
                Reply::Ready { pid } => worker.pid = pid,
                Reply::PortTaken => return Ok(None),
                other => return Err(worker.unexpected(&other)),
            }
        }
        Ok(Some(group))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The workers, by their CPU.
    pub(super) fn pids(&self) -> Vec<Pid> {
        self.workers.iter().map(|worker| worker.pid).collect()
    }

    /// Adds what was accepted since the last call to `matrix`.
    pub(super) async fn count_into(&mut self, matrix: &mut Matrix) -> Result<(), DemoError> {
        for worker in &mut self.workers {
            match worker.ask(Command::Stats).await? {
                Reply::Stats(counts) => {
                    for (received, count) in counts {
                        matrix.add(received, worker.cpu, count);
                    }
                }
                other => return Err(worker.unexpected(&other)),
            }
        }
        Ok(())
    }

    /// Sets or clears `SO_INCOMING_CPU` on every listener.
    pub(super) async fn prefer_cpu(&mut self, prefer: bool) -> Result<(), DemoError> {
        for worker in &mut self.workers {
            match worker.ask(Command::PreferCpu(prefer)).await? {
                Reply::Done => {}
                other => return Err(worker.unexpected(&other)),
            }
        }
        Ok(())
    }

    /// Waits until a worker ends or speaks unasked; both are errors.
    pub(super) async fn failure(&mut self) -> DemoError {
        let failed = poll_fn(|context| {
            for (index, worker) in self.workers.iter_mut().enumerate() {
                if Pin::new(&mut worker.control).poll_fill_buf(context).is_ready() {
                    return Poll::Ready(index);
                }
            }
            Poll::Pending
        })
        .await;
        let worker = &mut self.workers[failed];
        match worker.receive().await {
            Ok(reply) => worker.unexpected(&reply),
            Err(error) => error,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // All are told before the first is waited for.
        let mut children: Vec<Child> =
            self.workers.drain(..).map(|Worker { child, .. }| child).collect();
        let deadline = Instant::now() + FAREWELL;
        for child in &mut children {
            while !ended(child) {
                if Instant::now() >= deadline {
                    // Fails only for a child that ended in between; the wait reaps it either way.
                    drop(child.kill());
                    drop(child.wait());
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Whether the child has ended (and is reaped). An error means that there is no such child.
fn ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

/// A port of the loopback that was free when asked. Nothing keeps it: a bound socket that does not
/// listen would be a member of the group that nobody serves.
fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// One worker process and the socket to it.
#[derive(Debug)]
struct Worker {
    cpu: Cpu,
    pid: Pid,
    child: Child,
    control: BufReader<UnixStream>,
}

impl Worker {
    fn spawn(command: &WorkerCommand, cpu: Cpu) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let control = BufReader::new(UnixStream::from_std(ours)?);
        let child = Process::new(&command.program)
            .args(&command.arguments)
            .envs(command.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's Ctrl-C goes to us alone: the workers end after steering is off.
            .process_group(0)
            .spawn()?;
        Ok(Self { cpu, pid: child.id(), child, control })
    }

    async fn ask(&mut self, command: Command) -> Result<Reply, DemoError> {
        let sent = async {
            let mut line = serde_json::to_vec(&command)?;
            line.push(b'\n');
            self.control.get_mut().write_all(&line).await
        };
        match sent.await {
            // What it said before it closed, if anything, is more telling than a broken pipe.
            Ok(()) | Err(_) => self.receive().await,
        }
    }

    async fn receive(&mut self) -> Result<Reply, DemoError> {
        let mut line = String::new();
        let (cpu, pid) = (self.cpu, self.pid);
        match tokio::time::timeout(ANSWER, self.control.read_line(&mut line)).await {
            Err(_) => Err(DemoError::WorkerSilent { cpu, pid, limit: ANSWER }),
            Ok(Err(_) | Ok(0)) => Err(self.died().await),
            Ok(Ok(_)) => match serde_json::from_str(&line) {
                Ok(Reply::Failed(message)) => Err(DemoError::WorkerFailed { cpu, pid, message }),
                Ok(reply) => Ok(reply),
                Err(_) => Err(DemoError::WorkerSpeech { cpu, pid, line }),
            },
        }
    }

    /// Its socket closed: how it ended, once that is known.
    async fn died(&mut self) -> DemoError {
        let deadline = Instant::now() + FAREWELL;
        while !ended(&mut self.child) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let status = self.child.try_wait().ok().flatten();
        DemoError::WorkerDied { cpu: self.cpu, pid: self.pid, status }
    }

    fn unexpected(&self, reply: &Reply) -> DemoError {
        DemoError::WorkerSpeech { cpu: self.cpu, pid: self.pid, line: format!("{reply:?}") }
    }
}
