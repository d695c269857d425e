//! One worker: a thread, an epoll, and the same loop whatever it accepts from.

use std::collections::BTreeMap;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::{ServeError, during};
use crate::bench::generate::latency::new_histogram;
use crate::bench::mechanism::Signal;
use crate::bench::protocol::{REPLY, REQUEST, Request, Tally};
use crate::group::{self, LoadGuard};
use crate::model::{Cpu, CpuSet, Pid};
use crate::sys::epoll::Epoll;
use crate::sys::{accept, clock, sched, sockopt};

/// Where a worker's connections come from.
#[derive(Debug)]
pub(super) enum Source {
    Listener(TcpListener),
    Udp(UdpSocket),
    /// A byte for each connection in the queue.
    Handed(PipeReader, Receiver<TcpStream>),
}

impl Source {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(listener) => listener.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
            Self::Handed(bell, _) => bell.as_fd(),
        }
    }
}

/// A worker to start.
#[derive(Debug)]
pub(super) struct Spec {
    /// In the control another CPU than its connections arrive on.
    pub(super) runs_on: Cpu,
    pub(super) source: Source,
    /// Whether others wait for the same source.
    pub(super) exclusive: bool,
    /// What it says of itself, and as whom.
    pub(super) publishes: Option<(group::Worker, Signal)>,
}

impl Spec {
    pub(super) fn new(runs_on: Cpu, source: Source) -> Self {
        Self { runs_on, source, exclusive: false, publishes: None }
    }
}

/// What a worker shares with the rest of the process.
#[derive(Debug)]
struct Shared {
    /// Never contended but for the moment in which it is taken.
    seen: Mutex<Seen>,
    /// Nanoseconds; taken by the worker.
    stall: AtomicU64,
    stop: AtomicBool,
}

#[derive(Debug)]
struct Seen {
    received: BTreeMap<Cpu, u64>,
    accept: Histogram<u64>,
}

impl Seen {
    fn new() -> Self {
        Self { received: BTreeMap::new(), accept: new_histogram() }
    }
}

/// A running worker.
pub(super) struct Handle {
    runs_on: Cpu,
    tid: Pid,
    shared: Arc<Shared>,
    wake: PipeWriter,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Handle {
    pub(super) fn start(spec: Spec) -> Result<Self, ServeError> {
        let (bell, wake) = io::pipe().map_err(during("make a pipe"))?;
        let seen = Mutex::new(Seen::new());
        let shared = Arc::new(Shared { seen, stall: 0.into(), stop: false.into() });
        let (told, tid) = channel();
        let (runs_on, worker_shared) = (spec.runs_on, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name(format!("worker/{runs_on}"));
        let thread = thread.spawn(move || {
            sched::set_affinity(0, &CpuSet::from([runs_on]))?;
            sched::sleep_exactly()?;
            let mut worker = Worker::new(spec, worker_shared, bell)?;
            // Only now: whoever waits for it finds a worker that serves.
            let _waited_for = told.send(sched::thread_id());
            worker.run()
        });
        let thread = thread.map_err(during("start a worker"))?;
        match tid.recv() {
            Ok(tid) => Ok(Self { runs_on, tid, shared, wake, thread: Some(thread) }),
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(ServeError::Panicked),
            },
        }
    }

    pub(super) fn tid(&self) -> Pid {
        self.tid
    }

    pub(super) fn take_tally(&self) -> Tally {
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = std::mem::replace(&mut *seen, Seen::new());
        let accept = seen.accept.iter_recorded();
        let accept = accept.map(|it| (it.value_iterated_to(), it.count_at_value())).collect();
        Tally { cpu: self.runs_on, received: seen.received, accept, ..Tally::default() }
    }

    pub(super) fn stall(&self, lasts: Duration) {
        self.shared.stall.store(lasts.as_nanos() as u64, Ordering::Relaxed);
        self.ring();
    }

    fn ring(&self) {
        // A full pipe wakes as well.
        drop((&mut &self.wake).write(b"!"));
    }

    pub(super) fn check(&mut self) -> Result<(), ServeError> {
        match self.thread.take_if(|it| it.is_finished()) {
            Some(thread) => thread.join().or(Err(ServeError::Panicked)).flatten(),
            None => Ok(()),
        }
    }

    pub(super) fn stop(mut self) -> Result<(), ServeError> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.ring();
        match self.thread.take() {
            Some(thread) => thread.join().or(Err(ServeError::Panicked)).flatten(),
            None => Ok(()),
        }
    }
}

const SOURCE: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

/// One connection.
struct Connection {
    stream: TcpStream,
    /// When it was accepted, until its first request says when it was due.
    accepted: Option<Duration>,
    request: [u8; REQUEST],
    filled: usize,
}

struct Worker {
    epoll: Epoll,
    source: Source,
    bell: PipeReader,
    shared: Arc<Shared>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    load: Option<(LoadGuard, Signal)>,
}

impl Worker {
    fn new(spec: Spec, shared: Arc<Shared>, bell: PipeReader) -> Result<Self, ServeError> {
        let Spec { source, exclusive, publishes, .. } = spec;
        let epoll = Epoll::new()?;
        match &source {
            Source::Listener(listener) => listener.set_nonblocking(true),
            Source::Udp(socket) => socket.set_nonblocking(true),
            Source::Handed(..) => Ok(()),
        }
        .map_err(during("set a listener not to block"))?;
        let flags = if exclusive { libc::EPOLLIN | libc::EPOLLEXCLUSIVE } else { libc::EPOLLIN };
        epoll.add(source.fd(), flags, SOURCE)?;
        epoll.add(bell.as_fd(), libc::EPOLLIN, WAKE)?;
        let (connections, free) = (Vec::new(), Vec::new());
        let load = publishes.map(|(worker, signal)| (worker.load_guard(), signal));
        Ok(Self { epoll, source, bell, shared, connections, free, load })
    }

    /// Publishes what it has, if that is what it publishes: one more, as the limit is one more.
    fn publish(
        &self,
        signal: Signal,
        load: impl FnOnce() -> Result<u32, ServeError>,
    ) -> Result<(), ServeError> {
        if let Some((guard, _)) = self.load.as_ref().filter(|it| it.1 == signal) {
            guard.set(load()? + 1);
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), ServeError> {
        let mut tokens = Vec::new();
        loop {
            self.publish(Signal::Busy, || Ok(0))?;
            self.publish(Signal::Ready, || Ok(0))?;
            self.epoll.wait_all(&mut tokens, None)?;
            self.publish(Signal::Busy, || Ok(1))?;
            self.publish(Signal::Ready, || Ok(tokens.len() as u32))?;
            for &token in &tokens {
                match token {
                    WAKE => {
                        let mut byte = [0];
                        drop((&mut &self.bell).read(&mut byte));
                        if self.shared.stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        let stall = self.shared.stall.swap(0, Ordering::Relaxed);
                        // As one that is stopped: what it has waits, and what comes to it.
                        std::thread::sleep(Duration::from_nanos(stall));
                    }
                    SOURCE => self.take_one()?,
                    token => self.serve(token as usize),
                }
            }
        }
    }

    /// One connection, or one datagram, each time: as servers do by default.
    fn take_one(&mut self) -> Result<(), ServeError> {
        let stream = match &self.source {
            Source::Listener(listener) => match accept::nonblocking(listener.as_fd()) {
                Ok(stream) => stream,
                Err(error) if is_over(&error) => return Ok(()),
                Err(error) => return Err(during("accept")(error)),
            },
            Source::Handed(bell, queue) => {
                let mut byte = [0];
                (&mut &*bell).read_exact(&mut byte).map_err(during("read a pipe"))?;
                match queue.try_recv() {
                    Ok(stream) => stream,
                    // The acceptor ended.
                    Err(_) => return Ok(()),
                }
            }
            Source::Udp(socket) => return self.echo(socket),
        };
        self.count(stream.as_fd())?;
        self.publish(Signal::Queue, || Ok(sockopt::waiting(self.source.fd())?))?;
        let accepted = Some(clock::monotonic());
        let connection = Connection { stream, accepted, request: [0; REQUEST], filled: 0 };
        let place = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.connections[place] = Some(connection);
        // The request is there already, more often than not.
        if self.proceed(place) {
            if let Some(connection) = &self.connections[place] {
                self.epoll.add(connection.stream.as_fd(), libc::EPOLLIN, place as u64)?;
            }
        } else {
            self.close(place);
        }
        Ok(())
    }

    fn count(&self, socket: BorrowedFd<'_>) -> Result<(), ServeError> {
        let cpu = sockopt::incoming_cpu(socket)?;
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen.received.entry(cpu).or_default() += 1;
        Ok(())
    }

    fn serve(&mut self, place: usize) {
        if !self.proceed(place) {
            self.close(place);
        }
    }

    fn close(&mut self, place: usize) {
        self.connections[place] = None;
        self.free.push(place);
    }

    /// Answers what has come; whether more is to come. What fails the client sees and counts.
    fn proceed(&mut self, place: usize) -> bool {
        let Some(connection) = &mut self.connections[place] else { return true };
        loop {
            match (&connection.stream).read(&mut connection.request[connection.filled..]) {
                Ok(0) => return false,
                Ok(read) => connection.filled += read,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
            if connection.filled < REQUEST {
                continue;
            }
            connection.filled = 0;
            let request = Request::decode(&connection.request);
            if let Some(accepted) = connection.accepted.take() {
                self.shared.note(accepted, request.due);
            }
            work(request.work);
            // A whole reply fits into any send buffer.
            let sent = (&connection.stream).write_all(&[b'.'; REPLY]);
            if sent.is_err() || request.last {
                return false;
            }
        }
    }

    fn echo(&self, socket: &UdpSocket) -> Result<(), ServeError> {
        let mut bytes = [0; REQUEST];
        let from = match socket.recv_from(&mut bytes) {
            Ok((REQUEST, from)) => from,
            Ok(_) => return Ok(()),
            Err(error) if is_over(&error) => return Ok(()),
            Err(error) => return Err(during("receive a datagram")(error)),
        };
        let request = Request::decode(&bytes);
        self.shared.note(clock::monotonic(), request.due);
        work(request.work);
        // Lost where the buffer is full, as datagrams may be: the client counts it.
        drop(socket.send_to(&[b'.'; REPLY], from));
        Ok(())
    }
}

impl Shared {
    fn note(&self, accepted: Duration, due: Duration) {
        let late = accepted.saturating_sub(due).as_nanos() as u64;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.accept.saturating_record(late);
    }
}

/// Whether there was nothing after all: another took it, or the client gave up.
fn is_over(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted)
        || error.kind() == io::ErrorKind::ConnectionRefused
}

/// Keeps the CPU busy for so many microseconds of the thread's own time: being preempted is none.
fn work(micros: u32) {
    if micros == 0 {
        return;
    }
    let until = clock::thread() + Duration::from_micros(micros.into());
    while clock::thread() < until {
        std::hint::spin_loop();
    }
}
