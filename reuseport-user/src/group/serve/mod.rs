//! A server with one thread per core: pinned, with a runtime of its own that shares nothing, and an
//! end that loses no connection.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Group, GroupError, PinError, TakeError, Worker};
use crate::model::Cpu;

mod accept;
mod stop;
mod supervise;
mod thread;

pub use accept::Core;
pub use stop::Stop;

/// Any failure of a service.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long connections in service may take to end, unless [`Server::drain_timeout`] says otherwise.
const DRAIN: Duration = Duration::from_secs(30);

/// Runs a [`Group`]: a thread per worker, pinned to its CPU, with a current-thread tokio runtime and a
/// `LocalSet`, so that services need not be `Send`.
///
/// It ends on SIGTERM or SIGINT (or [`Server::until`]; further ones change nothing, and
/// [`Server::drain_timeout`] is the longest it takes) in this order, so that no client is cut off:
/// connections are steered to whoever else serves the address; what is queued meanwhile is still
/// accepted; the listeners close; connections in service end, or time is up; the threads are joined.
///
/// ```
/// use reuseport_user::group::{Group, Server};
/// use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
/// let group = Group::builder().tcp(address).build()?;
/// # let until = std::future::ready(());
/// Server::new(group)
///     .until(until)
///     .serve(|_core| async |mut stream: tokio::net::TcpStream, _peer| {
///         let mut bytes = [0; 64];
///         while let Ok(count @ 1..) = stream.read(&mut bytes).await {
///             if stream.write_all(&bytes[..count]).await.is_err() {
///                 break;
///             }
///         }
///     })?;
/// # Ok(())
/// # }
/// ```
pub struct Server {
    group: Group,
    until: Option<Pin<Box<dyn Future<Output = ()>>>>,
    until_superseded: bool,
    drain: Duration,
    name: String,
}

impl Server {
    /// For the workers of `group` that were not taken from it.
    pub fn new(group: Group) -> Self {
        let name = "core".to_owned();
        Self { group, until: None, until_superseded: false, drain: DRAIN, name }
    }

    /// Ends when `stop` does, in place of SIGTERM and SIGINT. It is polled on the calling thread,
    /// within a runtime.
    #[must_use]
    pub fn until(self, stop: impl Future<Output = ()> + 'static) -> Self {
        Self { until: Some(Box::pin(stop)), ..self }
    }

    /// Ends, too, as soon as a newer process has taken over the address: a restart is then to start
    /// the new one. See [`GroupBuilder::standby`](super::GroupBuilder::standby).
    #[must_use]
    pub fn until_superseded(self) -> Self {
        Self { until_superseded: true, ..self }
    }

    /// How long the end may take before connections in service are cut off; 30 seconds unless told.
    /// Up to 3.5 of them go by before services hear of it, while what was queued or on its way here
    /// when connections were steered away is waited for. A service that blocks its thread is waited
    /// for in any case.
    #[must_use]
    pub fn drain_timeout(self, limit: Duration) -> Self {
        Self { drain: limit, ..self }
    }

    /// What the threads are called, with `/CPU` after it; `core` unless told. Linux keeps 15 bytes.
    #[must_use]
    pub fn thread_name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Serves every connection with what `make` returns: called once on each core's thread, it makes
    /// that core's service, which is called for each connection and need not be `Send`.
    ///
    /// The connections in service are published as the worker's load (see
    /// [`LoadGuard`](super::LoadGuard)). A service that keeps connections open should look at
    /// [`Core::stop`]. A panic of a service ends its connection alone.
    ///
    /// # Errors
    ///
    /// [`ServeError`]: called within a runtime, no worker left, or a thread that could not start. All
    /// threads have ended then.
    pub fn serve<M, S, F>(self, make: M) -> Result<Report, ServeError>
    where
        M: Fn(Core) -> S + Sync,
        S: Fn(TcpStream, SocketAddr) -> F + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.execute(&|worker, stop| accept::serve(worker, stop, &make))
    }

    /// Runs `main` for each worker, on its thread: for UDP, and for frameworks that accept by
    /// themselves. It should end soon after [`Stop::requested`]; ending before that is an error.
    ///
    /// ```
    /// # use reuseport_user::group::{Group, Server};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    /// let group = Group::builder().udp(address).build()?;
    /// # let until = std::future::ready(());
    /// Server::new(group).until(until).run(|mut worker, stop| async move {
    ///     let socket = worker.tokio_udp_socket()?;
    ///     let mut bytes = [0; 1500];
    ///     loop {
    ///         let (count, peer) = tokio::select! {
    ///             () = stop.requested() => return Ok(()),
    ///             received = socket.recv_from(&mut bytes) => received?,
    ///         };
    ///         socket.send_to(&bytes[..count], peer).await?;
    ///     }
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn run<M, F>(self, main: M) -> Result<Report, ServeError>
    where
        M: Fn(Worker, Stop) -> F + Sync,
        F: Future<Output = Result<(), BoxError>>,
    {
        self.execute(&|worker, stop| {
            let ended = main(worker, stop);
            async move { ended.await.map(|()| Served::default()).map_err(Failure::Service) }
        })
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("group", &self.group).finish_non_exhaustive()
    }
}

/// How a server ended that was asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What asked it.
    pub reason: Reason,
    /// Each core's part, in order of the workers.
    pub cores: Vec<CoreReport>,
}

/// What a server ended for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// What [`Server::until`] was given, or a signal.
    Asked,
    /// A newer process has taken over.
    Superseded,
}

/// What one core did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoreReport {
    /// Its CPU.
    pub cpu: Cpu,
    /// Connections that were served to their end; 0 for [`Server::run`], which does not see them.
    pub served: u64,
    /// Connections that were cut off when time was up.
    pub cut_off: u64,
}

/// What a worker's thread counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Served {
    served: u64,
    cut_off: u64,
}

/// Why a worker ended that was not asked to.
#[derive(Debug)]
enum Failure {
    Runtime(io::Error),
    Pin(PinError),
    Take(TakeError),
    Accept(io::Error),
    Service(BoxError),
    Panicked(String),
}

/// Why a server could not start, or ended unasked. All threads were joined and the group was given
/// up, as on a normal end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// It would block the caller's runtime.
    #[error(
        "a per-core server cannot be run from within a tokio runtime, which it would block: call it \
         from a thread outside (no #[tokio::main]; or std::thread::spawn, joined by spawn_blocking)"
    )]
    InsideRuntime,
    /// All workers were taken from the group.
    #[error("the group has no worker left to run: they were taken with Group::take_workers")]
    NoWorkers,
    /// The group could not be changed.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// A thread or its runtime could not be made, or the signals be waited for.
    #[error("start {what}: {source}")]
    Start {
        /// What.
        what: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A thread could not go where it belongs.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A worker has no socket of the kind that is served.
    #[error("the worker of CPU {cpu}: {source}")]
    Take {
        /// Its CPU.
        cpu: Cpu,
        /// Why not.
        #[source]
        source: TakeError,
    },
    /// A listener is broken.
    #[error("the worker of CPU {cpu}: accept: {source}")]
    Accept {
        /// Its CPU.
        cpu: Cpu,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A service failed.
    #[error("the worker of CPU {cpu}: {source}")]
    Service {
        /// Its CPU.
        cpu: Cpu,
        /// What it said.
        source: BoxError,
    },
    /// It returned before it was asked to end.
    #[error("the worker of CPU {cpu} ended before it was asked to")]
    EndedEarly {
        /// Its CPU.
        cpu: Cpu,
    },
    /// It panicked.
    #[error("the worker of CPU {cpu} panicked: {message}")]
    Panicked {
        /// Its CPU.
        cpu: Cpu,
        /// The panic's message.
        message: String,
    },
}

impl ServeError {
    fn of(cpu: Cpu, failure: Failure) -> Self {
        match failure {
            Failure::Runtime(source) => {
                Self::Start { what: format!("the runtime of CPU {cpu}"), source }
            }
            Failure::Pin(error) => Self::Pin(error),
            Failure::Take(source) => Self::Take { cpu, source },
            Failure::Accept(source) => Self::Accept { cpu, source },
            Failure::Service(source) => Self::Service { cpu, source },
            Failure::Panicked(message) => Self::Panicked { cpu, message },
        }
    }
}
