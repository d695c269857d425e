//! Publishing a worker's load, where the steering program reads it.

use std::cell::Cell;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use reuseport_common::abi::EVICTED;

use crate::sys::bpf;
use crate::sys::mapped::SharedLoads;

/// The largest limit; only [`BUSY`] is above it.
pub(super) const NO_LIMIT: u32 = EVICTED - 1;
/// More than any limit.
const BUSY: u32 = u32::MAX;

/// One slot of a mapped `LOAD`, for as long as its listener sits there. The bit of its limit that is
/// not the worker's stays as it is.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) loads: Arc<SharedLoads>,
    /// The map that says who sits where.
    pub(super) sockets: Arc<OwnedFd>,
    pub(super) index: u32,
    /// The listener's.
    pub(super) cookie: u64,
}

impl Slot {
    /// Whether the listener still sits there: when it was closed, the next one to join gets the slot.
    fn is_ours(&self) -> bool {
        let now = bpf::lookup_u64(self.sockets.as_fd(), self.index);
        // What cannot be seen has not changed, as far as we know.
        now.map_or(true, |cookie| cookie == Some(self.cookie))
    }

    // In any order with other memory: the program wants to know how much, not exactly when.
    fn set_pending(&self, pending: u32) {
        if let Some(word) = self.loads.pending(self.index) {
            word.store(pending, Relaxed);
        }
    }

    fn set_limit(&self, limit: u32) {
        if let Some(word) = self.loads.limit(self.index) {
            let with = |now: u32| Some((now & EVICTED) | limit);
            // It always sets: there is no condition to fail.
            let _before = word.fetch_update(Relaxed, Relaxed, with);
        }
    }
}

/// Publishes one worker's load: the connections it has in service, or that it is busy. While that is
/// above the worker's limit, new connections of its CPU go to the second choice, if that has room.
///
/// A change is one store to memory that the kernel shares: no system call, some nanoseconds. Only its
/// beginning, its end and a new limit ask the kernel whose the slot is. It is
/// neither `Send` nor `Sync`: one thread writes a slot. Clones are the same publisher; when the last
/// of them and of its guards is dropped, the slot has no load and no limit again.
///
/// A listener's slot is given to somebody else once it is closed. Who closes it before the last
/// connection ends says so first ([`LoadGuard::end`]); [`Server`](super::Server) does.
///
/// Where no eBPF program steers, it counts and publishes nowhere ([`LoadGuard::is_published`]). The
/// same goes for a group that is taken off and attached again by somebody else, or outgrows its maps:
/// it gets new ones, which this guard does not know of.
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<reuseport_user::group::LoadGuard>();
/// ```
///
/// ```
/// fn exists<T>() {}
/// exists::<reuseport_user::group::LoadGuard>();
/// ```
///
/// # Minimum kernel version
///
/// 5.5, for maps in shared memory; that of the eBPF rung is later.
#[derive(Clone, Debug)]
pub struct LoadGuard(Rc<Publisher>);

#[derive(Debug)]
struct Publisher {
    slots: Vec<Slot>,
    pending: Cell<u32>,
    busy: Cell<u32>,
    ended: Cell<bool>,
}

impl LoadGuard {
    pub(super) fn new(slots: impl Iterator<Item = Slot>, limit: Option<u32>) -> Self {
        let (pending, busy, ended) = (Cell::new(0), Cell::new(0), Cell::new(false));
        let guard = Self(Rc::new(Publisher { slots: slots.collect(), pending, busy, ended }));
        guard.0.publish();
        guard.set_limit(limit);
        guard
    }

    /// Whether anybody reads it.
    pub fn is_published(&self) -> bool {
        !self.0.slots.is_empty() && !self.0.ended.get()
    }

    /// Ends publishing, for good: the slot has no load and no limit again, and what is in service still
    /// counts for nobody but [`LoadGuard::pending`]. To be called before the listener is closed, where
    /// connections outlive it.
    pub fn end(&self) {
        self.0.end();
    }

    /// Counts one more connection in service until the returned guard is dropped.
    #[must_use = "it counts until it is dropped"]
    pub fn enter(&self) -> InService {
        self.0.add(&self.0.pending, 1);
        InService(Rc::clone(&self.0))
    }

    /// Says that the worker is busy (a long computation, out of descriptors) until the returned
    /// guard is dropped: new connections go to the second choice, whatever the limit.
    #[must_use = "it is busy until this is dropped"]
    pub fn busy(&self) -> Busy {
        self.0.add(&self.0.busy, 1);
        Busy(Rc::clone(&self.0))
    }

    /// Sets the load to any number, for workers that count in units of their own.
    pub fn set(&self, pending: u32) {
        self.0.pending.set(pending);
        self.0.publish();
    }

    /// Sets the load above which new connections go elsewhere, in place of the group's; `None` for
    /// never. It is at least 1.
    pub fn set_limit(&self, limit: Option<u32>) {
        let limit = limit.map_or(NO_LIMIT, |limit| limit.clamp(1, NO_LIMIT));
        if !self.0.ended.get() {
            self.0
                .slots
                .iter()
                .filter(|slot| slot.is_ours())
                .for_each(|slot| slot.set_limit(limit));
        }
    }

    /// What is published as the load: connections in service, or what [`LoadGuard::set`] said.
    pub fn pending(&self) -> u32 {
        self.0.pending.get()
    }
}

impl Publisher {
    fn add(&self, counter: &Cell<u32>, difference: i32) {
        counter.set(counter.get().saturating_add_signed(difference));
        self.publish();
    }

    fn publish(&self) {
        if self.ended.get() {
            return;
        }
        let pending = if self.busy.get() > 0 { BUSY } else { self.pending.get() };
        self.slots.iter().for_each(|slot| slot.set_pending(pending));
    }

    fn end(&self) {
        if self.ended.replace(true) {
            return;
        }
        for slot in self.slots.iter().filter(|slot| slot.is_ours()) {
            // Without a limit, what is pending means nothing.
            slot.set_limit(0);
            slot.set_pending(0);
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.end();
    }
}

/// A connection in service.
#[derive(Debug)]
pub struct InService(Rc<Publisher>);

impl Drop for InService {
    fn drop(&mut self) {
        self.0.add(&self.0.pending, -1);
    }
}

/// A time in which the worker takes nothing new.
#[derive(Debug)]
pub struct Busy(Rc<Publisher>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.add(&self.0.busy, -1);
    }
}
