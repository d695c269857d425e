//! One worker: its CPU, its sockets, and what it publishes.

use std::cell::Cell;
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use core_affinity::CoreId;
use socket2::Socket;

use super::load::{LoadGuard, Slot};
use super::open::Endpoint;
use super::{PinError, TakeError};
use crate::model::{Cpu, Protocol};
use crate::sys::sched;

/// A worker's part of a [`Group`](super::Group): move it into the thread that serves.
///
/// It is `Send`, so that it can be moved there, and neither `Sync` nor `Clone`: a listener that two
/// threads accept from is no longer one CPU's.
///
/// ```compile_fail,E0277
/// fn share<T: Sync>() {}
/// share::<reuseport_user::group::Worker>();
/// ```
///
/// ```
/// fn send<T: Send>() {}
/// send::<reuseport_user::group::Worker>();
/// ```
///
/// The sockets are the worker's. They close with it, or with what [`Worker::listener`] and its like
/// made of them: keep no handle of a worker whose thread has ended, or clients will connect to it
/// and wait in vain.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    cpu: Cpu,
    seats: Vec<Seat>,
    /// Above how many connections in service new ones are to go elsewhere.
    limit: Option<u32>,
    /// What makes it `!Sync`.
    one_thread: PhantomData<Cell<()>>,
}

/// A worker's place on one address.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) endpoint: Endpoint,
    /// `None` once it was taken.
    pub(super) socket: Option<Socket>,
    /// Where its load is published.
    pub(super) load: Option<Slot>,
    /// How many connections that wait there are to be accepted before it is closed.
    pub(super) last: u32,
}

impl Worker {
    pub(super) fn new(index: usize, cpu: Cpu, limit: Option<u32>) -> Self {
        Self { index, cpu, seats: Vec::new(), limit, one_thread: PhantomData }
    }

    /// Gives it a place on one more address.
    pub(super) fn add(&mut self, seat: Seat) {
        self.seats.push(seat);
    }

    /// Its place among the group's workers, from 0, in order of their CPUs.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The CPU that it is for.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// Its slot in the steering map of the group's first address, as `reuseport-steer status` shows
    /// it; `None` where no eBPF program steers.
    pub fn slot(&self) -> Option<u32> {
        self.seats.first().and_then(|seat| Some(seat.load.as_ref()?.index))
    }

    /// Pins the calling thread to the worker's CPU.
    ///
    /// # Errors
    ///
    /// [`PinError`] where the thread may not run there (any more): its cpuset, or the CPU is offline.
    pub fn pin(&self) -> Result<(), PinError> {
        if core_affinity::set_for_current(CoreId { id: self.cpu as usize }) {
            return Ok(());
        }
        Err(PinError { cpu: self.cpu, allowed: sched::affinity(0).unwrap_or_default() })
    }

    /// Takes the next TCP listener: one per address, in the order in which the builder was told them.
    ///
    /// It blocks on `accept`, unless it was inherited and does not.
    ///
    /// # Errors
    ///
    /// [`TakeError::NoneLeft`] where each was taken, or there is none of that kind.
    pub fn listener(&mut self) -> Result<TcpListener, TakeError> {
        Ok(self.take(Protocol::Tcp)?.0.into())
    }

    /// As [`Worker::listener`], for UDP.
    ///
    /// # Errors
    ///
    /// [`TakeError::NoneLeft`] where each was taken, or there is none of that kind.
    pub fn udp_socket(&mut self) -> Result<UdpSocket, TakeError> {
        Ok(self.take(Protocol::Udp)?.0.into())
    }

    /// Takes the next socket of either kind as a bare descriptor, with the address that it is bound
    /// to.
    pub fn raw_socket(&mut self) -> Option<(OwnedFd, SocketAddr)> {
        let seat = self.seats.iter_mut().find(|seat| seat.socket.is_some())?;
        Some((seat.socket.take()?.into(), seat.endpoint.address))
    }

    /// The sockets that were not taken, without taking them: to set options, or to watch them.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.seats.iter().filter_map(|seat| seat.socket.as_ref()).map(Socket::as_fd)
    }

    /// As [`Worker::listener`], registered with the runtime of the calling thread, whose I/O must be
    /// enabled.
    ///
    /// # Errors
    ///
    /// [`TakeError::NoneLeft`]; [`TakeError::Register`] outside of a runtime, with nothing taken.
    #[cfg(feature = "tokio")]
    pub fn tokio_listener(&mut self) -> Result<tokio::net::TcpListener, TakeError> {
        Ok(self.tokio_listener_and_last()?.0)
    }

    /// As [`Worker::tokio_listener`], and [`Seat::last`].
    #[cfg(feature = "tokio")]
    pub(super) fn tokio_listener_and_last(
        &mut self,
    ) -> Result<(tokio::net::TcpListener, u32), TakeError> {
        in_runtime()?;
        let (socket, last) = self.take(Protocol::Tcp)?;
        socket.set_nonblocking(true)?;
        Ok((tokio::net::TcpListener::from_std(socket.into())?, last))
    }

    /// As [`Worker::udp_socket`], registered as by [`Worker::tokio_listener`].
    ///
    /// # Errors
    ///
    /// As [`Worker::tokio_listener`]'s.
    #[cfg(feature = "tokio")]
    pub fn tokio_udp_socket(&mut self) -> Result<tokio::net::UdpSocket, TakeError> {
        in_runtime()?;
        let socket = self.udp_socket()?;
        socket.set_nonblocking(true)?;
        Ok(tokio::net::UdpSocket::from_std(socket)?)
    }

    /// Begins to publish this worker's load: see [`LoadGuard`]. One per worker at a time: of two,
    /// the last one to write would be believed. Where nobody reads it, it publishes nowhere.
    pub fn load_guard(&self) -> LoadGuard {
        LoadGuard::new(self.seats.iter().filter_map(|seat| seat.load.clone()), self.limit)
    }

    fn take(&mut self, protocol: Protocol) -> Result<(Socket, u32), TakeError> {
        let mut seats = self.seats.iter_mut().filter(|seat| seat.endpoint.protocol == protocol);
        let taken = seats.find_map(|seat| Some((seat.socket.take()?, seat.last)));
        taken.ok_or(TakeError::NoneLeft(protocol))
    }
}

/// Refuses a thread without a runtime, where tokio would panic, before a socket is taken in vain.
#[cfg(feature = "tokio")]
fn in_runtime() -> Result<(), TakeError> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Ok(()),
        Err(error) => Err(TakeError::Register(std::io::Error::other(error))),
    }
}
