//! A worker of the demo: one process, one CPU, one `SO_REUSEPORT` listener.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use core_affinity::CoreId;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};

use super::protocol::{Command, REPLY, REQUEST, Reply};
use crate::model::Cpu;
use crate::sys::{SyscallError, sockopt};

/// Connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// Why a worker ended early.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Started by hand.
    #[error("demo-worker is started by `demo`, with a socket as its standard input: {0}")]
    NotAWorker(#[source] io::Error),
    /// The demo sent what is no command; two versions at once, perhaps.
    #[error("the demo sent `{0}`, which is not the command that was due")]
    Protocol(String),
    /// The worker's CPU went away or was never allowed.
    #[error("cannot run on CPU {0}: see `taskset -p` and the cpuset of this process")]
    Pin(Cpu),
    /// A call of the standard library or the runtime.
    #[error("{operation}: {source}{}", super::limit_hint(source))]
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
}

/// Names the operation that failed.
fn during(operation: &'static str) -> impl FnOnce(io::Error) -> WorkerError {
    move |source| WorkerError::Io { operation, source }
}

/// The hidden subcommand: serves until the demo closes the socket that is the standard input.
///
/// A failure goes to the demo over that socket and is returned too.
pub fn run() -> Result<(), WorkerError> {
    let control = io::stdin().as_fd().try_clone_to_owned().map_err(WorkerError::NotAWorker)?;
    let control = StdUnixStream::from(control);
    control.peer_addr().map_err(WorkerError::NotAWorker)?;
    control.set_nonblocking(true).map_err(WorkerError::NotAWorker)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(during("start the runtime"))?;
    runtime.block_on(async {
        let control = UnixStream::from_std(control).map_err(WorkerError::NotAWorker)?;
        let (reader, writer) = control.into_split();
        let mut control = Control { lines: BufReader::new(reader).lines(), writer };
        let outcome = serve(&mut control).await;
        if let Err(error) = &outcome {
            // The demo may be gone; the error is returned all the same.
            drop(control.reply(&Reply::Failed(error.to_string())).await);
        }
        outcome
    })
}

/// The worker's end of the socket to the demo.
struct Control {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Control {
    /// The next command; `None` when the demo is gone. May be dropped while it waits.
    async fn command(&mut self) -> Result<Option<Command>, WorkerError> {
        let line = self.lines.next_line().await.map_err(during("read from the demo"))?;
        line.map(|line| serde_json::from_str(&line).or(Err(WorkerError::Protocol(line))))
            .transpose()
    }

    async fn reply(&mut self, reply: &Reply) -> Result<(), WorkerError> {
        let mut line =
            serde_json::to_vec(reply).map_err(io::Error::from).map_err(during("encode a reply"))?;
        line.push(b'\n');
        self.writer.write_all(&line).await.map_err(during("answer the demo"))
    }
}

/// Connections by the CPU that received them. The lock is never contended: one thread.
type Counts = Arc<Mutex<BTreeMap<Cpu, u64>>>;

async fn serve(control: &mut Control) -> Result<(), WorkerError> {
    let (cpu, port) = match control.command().await? {
        None => return Ok(()),
        Some(Command::Listen { cpu, port }) => (cpu, port),
        Some(other) => return Err(WorkerError::Protocol(format!("{other:?}"))),
    };
    if !core_affinity::set_for_current(CoreId { id: cpu as usize }) {
        return Err(WorkerError::Pin(cpu));
    }
    // Executed as /proc/self/exe, it would be called `exe` in ps, status and top. It works all the
    // same where /proc does not let it change its name.
    drop(std::fs::write("/proc/self/comm", format!("demo-worker/{cpu}")));
    let listener = match listen(port) {
        Ok(listener) => Arc::new(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return control.reply(&Reply::PortTaken).await;
        }
        Err(error) => return Err(during("listen")(error)),
    };
    let counts = Counts::default();
    let mut accepting = tokio::spawn(accept(Arc::clone(&listener), Arc::clone(&counts)));
    control.reply(&Reply::Ready { pid: std::process::id() }).await?;
    loop {
        let command = tokio::select! {
            command = control.command() => command?,
            ended = &mut accepting => {
                return match ended {
                    Ok(error) => Err(error),
                    Err(panicked) => Err(during("accept")(panicked.into())),
                };
            }
        };
        let reply = match command {
            None => return Ok(()),
            Some(Command::Stats) => Reply::Stats(std::mem::take(
                &mut *counts.lock().unwrap_or_else(PoisonError::into_inner),
            )),
            Some(Command::PreferCpu(prefer)) => {
                sockopt::set_incoming_cpu(listener.as_fd(), prefer.then_some(cpu))?;
                Reply::Done
            }
            Some(other @ Command::Listen { .. }) => {
                return Err(WorkerError::Protocol(format!("{other:?}")));
            }
        };
        control.reply(&reply).await?;
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    socket.listen(BACKLOG)
}

/// Accepts until that fails for good, and says why.
async fn accept(listener: Arc<TcpListener>, counts: Counts) -> WorkerError {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The client gave up while it was queued.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return during("accept")(error),
        };
        match sockopt::incoming_cpu(stream.as_fd()) {
            Ok(cpu) => {
                *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(cpu).or_default() += 1;
            }
            Err(error) => return error.into(),
        }
        tokio::spawn(answer(stream));
    }
}

/// One connection. The worker closes first, and the client then resets: no `TIME_WAIT` on either
/// side, so that ports do not run out. What fails here the client sees and counts.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; REQUEST];
    stream.read_exact(&mut request).await?;
    stream.write_all(&[b'.'; REPLY]).await
}
