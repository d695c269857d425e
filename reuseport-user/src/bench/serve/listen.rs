//! Where a mechanism's connections come from, and who serves them.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::worker::{Handle, Source, Spec};
use super::{ServeError, during};
use crate::bench::mechanism::Mechanism;
use crate::bench::protocol::Tally;
use crate::group::{Group, Workers};
use crate::model::{Cpu, Pid};
use crate::sys::{accept, sched};

/// Connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// Between two looks at whether anything is waiting.
const GLANCE: Duration = Duration::from_millis(2);
/// Longest that anything may wait still when the server is replaced.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to serve.
#[derive(Debug)]
pub(super) struct What {
    pub(super) mechanism: Mechanism,
    pub(super) address: SocketAddr,
    pub(super) udp: bool,
    pub(super) cpus: Vec<Cpu>,
    pub(super) bpffs: PathBuf,
}

/// Workers at work. Dropping it leaves them to the end of the process.
pub(super) struct Served {
    address: SocketAddr,
    workers: Vec<Handle>,
    acceptor: Option<(Pid, JoinHandle<io::Error>)>,
    group: Option<Group>,
    /// By worker and CPU, what our program had counted when tallies were taken last.
    chosen: Vec<Vec<u64>>,
}

impl Served {
    pub(super) fn start(what: &What) -> Result<Self, ServeError> {
        match what.mechanism {
            Mechanism::Single => Self::alone(what, &what.cpus[..1]),
            Mechanism::Shared => Self::alone(what, &what.cpus),
            Mechanism::HandOff => Self::handing_off(what),
            _ => Self::group(what),
        }
    }

    fn of(address: SocketAddr, workers: Vec<Handle>) -> Self {
        Self { address, workers, acceptor: None, group: None, chosen: Vec::new() }
    }

    /// One socket, for one or for all.
    fn alone(what: &What, cpus: &[Cpu]) -> Result<Self, ServeError> {
        let (socket, address) = open(what)?;
        let exclusive = cpus.len() > 1;
        let workers = cpus.iter().map(|&cpu| {
            let socket = socket.try_clone().map_err(during("duplicate the listener"))?;
            let source = Source::of(socket, what.udp);
            Handle::start(Spec { exclusive, ..Spec::new(cpu, source) })
        });
        Ok(Self::of(address, workers.collect::<Result<_, _>>()?))
    }

    /// One thread accepts, on whichever CPU it finds.
    fn handing_off(what: &What) -> Result<Self, ServeError> {
        let (socket, address) = open(what)?;
        socket.set_nonblocking(false).map_err(during("set the listener to block"))?;
        let mut queues = Vec::new();
        let mut workers = Vec::new();
        for &cpu in &what.cpus {
            let (queue, handed) = channel();
            let (bell, wake) = io::pipe().map_err(during("make a pipe"))?;
            let source = Source::Handed(bell, handed);
            workers.push(Handle::start(Spec::new(cpu, source))?);
            queues.push((queue, wake));
        }
        let (told, tid) = channel();
        let listener = TcpListener::from(socket);
        let accept = move || {
            let _waited_for = told.send(sched::thread_id());
            hand_off(&listener, &queues)
        };
        let thread = std::thread::Builder::new().name("acceptor".into()).spawn(accept);
        let thread = thread.map_err(during("start the acceptor"))?;
        let tid = tid.recv().or(Err(ServeError::Panicked))?;
        let acceptor = Some((tid, thread));
        Ok(Self { acceptor, ..Self::of(address, workers) })
    }

    /// A listener for each worker.
    fn group(what: &What) -> Result<Self, ServeError> {
        let builder = Group::builder()
            .workers(Workers::On(what.cpus.clone()))
            .backlog(BACKLOG)
            .bpffs(&what.bpffs);
        let builder = match what.mechanism.rung() {
            Some(rung) => builder.rung(rung),
            None => builder,
        };
        let builder = match what.mechanism.publishes() {
            // A limit is at least 1, and none is one of what is published.
            Some((_, limit)) => builder.spill_above(limit + 1),
            None => builder,
        };
        let builder = if what.udp { builder.udp(what.address) } else { builder.tcp(what.address) };
        let mut group = builder.build()?;
        let address = group.addresses()[0];
        let mut workers = Vec::new();
        for mut worker in group.take_workers() {
            let cpu = worker.cpu();
            let place = what.cpus.iter().position(|&it| it == cpu).unwrap_or(0);
            let runs_on = match what.mechanism {
                Mechanism::EbpfWrongCpu => what.cpus[(place + 1) % what.cpus.len()],
                _ => cpu,
            };
            let source = if what.udp {
                Source::Udp(worker.udp_socket()?)
            } else {
                Source::Listener(worker.listener()?)
            };
            let publishes = what.mechanism.publishes().map(|(signal, _)| (worker, signal));
            workers.push(Handle::start(Spec { publishes, ..Spec::new(runs_on, source) })?);
        }
        Ok(Self { group: Some(group), ..Self::of(address, workers) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Threads that serve, so that their time can be counted.
    pub(super) fn threads(&self) -> Vec<Pid> {
        let workers = self.workers.iter().map(Handle::tid);
        workers.chain(self.acceptor.as_ref().map(|it| it.0)).collect()
    }

    /// What was seen since the last time.
    pub(super) fn take_tallies(&mut self) -> Vec<Tally> {
        let mut tallies: Vec<Tally> = self.workers.iter().map(Handle::take_tally).collect();
        let chosen = self.group.as_ref().and_then(Group::selections).unwrap_or_default();
        for (place, (tally, by_cpu)) in tallies.iter_mut().zip(&chosen).enumerate() {
            let before =
                |cpu: usize| *self.chosen.get(place).and_then(|it| it.get(cpu)).unwrap_or(&0);
            let since =
                by_cpu.iter().enumerate().map(|(cpu, &now)| (cpu as Cpu, now - before(cpu)));
            tally.chosen = since.filter(|&(_, count)| count > 0).collect();
        }
        self.chosen = chosen;
        tallies
    }

    pub(super) fn stall(&self, worker: usize, lasts: Duration) {
        self.workers[worker % self.workers.len()].stall(lasts);
    }

    /// What ended that should not have.
    pub(super) fn check(&mut self) -> Result<(), ServeError> {
        for worker in &mut self.workers {
            worker.check()?;
        }
        if let Some((_, thread)) = self.acceptor.take_if(|it| it.1.is_finished()) {
            return Err(thread.join().map_or(ServeError::Panicked, during("accept")));
        }
        Ok(())
    }

    /// Sends new connections elsewhere, where the mechanism can, and waits for those that are here
    /// to be accepted; closes the listeners.
    pub(super) fn drain(&mut self) -> Result<(), ServeError> {
        if let Some(group) = &mut self.group {
            // Another process has taken over already, or the mechanism knows no better.
            let _elsewhere = group.steer_away()?;
            let deadline = std::time::Instant::now() + PATIENCE;
            while !group.is_drained()? && std::time::Instant::now() < deadline {
                std::thread::sleep(GLANCE);
            }
        }
        for worker in self.workers.drain(..) {
            worker.stop()?;
        }
        Ok(())
    }

    pub(super) fn stop(self) -> Result<(), ServeError> {
        let Self { workers, group, .. } = self;
        // While its sockets are open.
        drop(group);
        for worker in workers {
            worker.stop()?;
        }
        Ok(())
    }
}

fn open(what: &What) -> Result<(Socket, SocketAddr), ServeError> {
    let kind = if what.udp { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(what.address), kind, None);
    let socket = socket.map_err(during("open a socket"))?;
    socket.bind(&what.address.into()).map_err(during("bind"))?;
    if !what.udp {
        socket.listen(BACKLOG as i32).map_err(during("listen"))?;
    }
    let address = crate::sys::sockopt::local_address(socket.as_fd())?;
    Ok((socket, address.unwrap_or(what.address)))
}

impl Source {
    fn of(socket: Socket, udp: bool) -> Self {
        if udp {
            Self::Udp(UdpSocket::from(socket))
        } else {
            Self::Listener(TcpListener::from(socket))
        }
    }
}

/// Accepts for all in turn, until that fails for good.
fn hand_off(listener: &TcpListener, queues: &[(Sender<TcpStream>, io::PipeWriter)]) -> io::Error {
    use std::io::Write as _;
    for (queue, bell) in queues.iter().cycle() {
        let stream = loop {
            match accept::nonblocking(listener.as_fd()) {
                Ok(stream) => break stream,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return error,
            }
        };
        // A worker that has ended is told of by `check`.
        if queue.send(stream).is_err() || (&mut &*bell).write_all(b"!").is_err() {
            break;
        }
    }
    io::ErrorKind::BrokenPipe.into()
}
