//! The accept loop of a core.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_local};

use super::stop::{Phase, Stop};
use super::{Failure, Served, TakeError, Worker};
use crate::group::{InService, LoadGuard};
use crate::model::{Cpu, Protocol};

/// How long a worker rests that has no descriptor or memory for another connection. Arbitrary: long
/// enough for some to end.
const REST: Duration = Duration::from_millis(20);

/// What a service may know of where it runs.
#[derive(Clone, Debug)]
pub struct Core {
    index: usize,
    cpu: Cpu,
    slot: Option<u32>,
    load: LoadGuard,
    stop: Stop,
}

impl Core {
    /// Its place among the group's workers, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The CPU that this thread is pinned to.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The worker's slot; see [`Worker::slot`].
    pub fn slot(&self) -> Option<u32> {
        self.slot
    }

    /// The worker's publisher, which counts connections in service already: for limits, and to say
    /// that it is busy.
    pub fn load(&self) -> &LoadGuard {
        &self.load
    }

    /// Tells when the server ends.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }
}

/// Serves all listeners of a worker until it is told to end, and its connections to theirs.
pub(super) async fn serve<M, S, F>(
    mut worker: Worker,
    stop: Stop,
    make: &M,
) -> Result<Served, Failure>
where
    M: Fn(Core) -> S,
    S: Fn(TcpStream, SocketAddr) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let mut listeners = Vec::new();
    loop {
        match worker.tokio_listener_and_last() {
            Ok(listener) => listeners.push(listener),
            Err(TakeError::NoneLeft(_)) if !listeners.is_empty() => break,
            Err(error) => return Err(Failure::Take(error)),
        }
    }
    if worker.sockets().next().is_some() {
        // It would fill up with datagrams that nobody reads.
        return Err(Failure::Take(TakeError::NotServed(Protocol::Udp)));
    }
    let core = Core {
        index: worker.index(),
        cpu: worker.cpu(),
        slot: worker.slot(),
        load: worker.load_guard(),
        stop: stop.clone(),
    };
    let load = core.load.clone();
    let service = Rc::new(make(core));
    let flights = Rc::new(Flights::default());
    let mut loops = JoinSet::new();
    for (listener, last) in listeners {
        let (service, flights) = (Rc::clone(&service), Rc::clone(&flights));
        let (stop, load) = (stop.clone(), load.clone());
        let work = async move { accept(listener, last, &stop, &load, &service, &flights).await };
        loops.spawn_local(work);
    }
    let work = async {
        while let Some(ended) = loops.join_next().await {
            match ended {
                Ok(outcome) => outcome.map_err(Failure::Accept)?,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => return Err(Failure::Accept(error.into())),
                },
            }
        }
        flights.landed().await;
        Ok(())
    };
    tokio::select! {
        ended = work => ended?,
        () = stop.reached(Phase::Abort) => {}
    }
    Ok(Served { served: flights.served.get(), cut_off: flights.up.get() })
}

/// One listener's loop; on the way out it takes what is queued already, which its clients believe to
/// be accepted, and not more than `last`: where nobody else serves, there is no end to newcomers.
async fn accept<S, F>(
    listener: TcpListener,
    last: u32,
    stop: &Stop,
    load: &LoadGuard,
    service: &Rc<S>,
    flights: &Rc<Flights>,
) -> io::Result<()>
where
    S: Fn(TcpStream, SocketAddr) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let board = |stream, peer| {
        let flight = Flight { _load: load.enter(), flights: flights.board() };
        let service = Rc::clone(service);
        // Nobody waits for it by its handle: a flight that ends, ends for all who count them.
        drop(spawn_local(async move {
            service(stream, peer).await;
            flight.flights.served.set(flight.flights.served.get() + 1);
        }));
    };
    let mut stopping = pin!(stop.requested());
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopping => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => board(stream, peer),
            Err(error) => match Trouble::of(&error) {
                Trouble::Theirs => {}
                Trouble::Exhausted => {
                    let _others_take_over = load.busy();
                    tokio::time::sleep(REST).await;
                }
                Trouble::Ours => return Err(error),
            },
        }
    }
    // Asked of the kernel: what the runtime knows of readiness may be older.
    let listener = listener.into_std()?;
    for _ in 0..last {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(true)?;
                board(TcpStream::from_std(stream)?, peer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => match Trouble::of(&error) {
                Trouble::Theirs => {}
                Trouble::Exhausted => tokio::time::sleep(REST).await,
                Trouble::Ours => return Err(error),
            },
        }
    }
    // The slot is the next one's as soon as the listener is closed; connections may last.
    load.end();
    drop(listener);
    Ok(())
}

/// Why there was no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// With this connection or the network: the next one may do (see accept(2)).
    Theirs,
    /// No descriptors or memory for it now.
    Exhausted,
    /// With the listener itself.
    Ours,
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Exhausted,
            Some(libc::EBADF | libc::EFAULT | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP)
            | None => Self::Ours,
            Some(_) => Self::Theirs,
        }
    }
}

/// Connections in service on this core.
#[derive(Debug, Default)]
struct Flights {
    up: Cell<u64>,
    served: Cell<u64>,
    last_landed: Notify,
}

impl Flights {
    fn board(self: &Rc<Self>) -> Rc<Self> {
        self.up.set(self.up.get() + 1);
        Rc::clone(self)
    }

    /// Waits until there is none.
    async fn landed(&self) {
        while self.up.get() > 0 {
            self.last_landed.notified().await;
        }
    }
}

/// One connection in service; it ends with its task, however that ends.
struct Flight {
    _load: InService,
    flights: Rc<Flights>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let up = &self.flights.up;
        up.set(up.get() - 1);
        if up.get() == 0 {
            self.flights.last_landed.notify_one();
        }
    }
}
