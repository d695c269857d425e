//! Who serves each listener, with what was seen before.

use std::collections::{BTreeMap, BTreeSet};

use reuseport_common::abi::Policy;

use super::generations::{Class, Member, Part};
use crate::discover;
use crate::model::{Group, Listener, Pid, Served, Worker};

/// Who was last seen serving each listener of a group.
#[derive(Clone, Debug, Default)]
pub(super) struct Recall(BTreeMap<u64, Vec<Worker>>);

impl Recall {
    /// Fills in who serves the listeners at which nobody was seen, and says which of them nobody serves.
    ///
    /// Who was seen at one before, and still has it open, is busy and serves it still. Where they all
    /// are gone, nobody does: the listener lives on in somebody else's hands. Where nobody ever was seen,
    /// nobody knows, which matters to a policy that goes by CPU.
    pub(super) fn fill_in(&mut self, group: &mut Group, policy: Policy) -> BTreeSet<u64> {
        let mut unserved = BTreeSet::new();
        let mut last = std::mem::take(&mut self.0);
        for listener in &mut group.listeners {
            let before = last.remove(&listener.cookie);
            let seen_once = before.is_some();
            if let Served::Unknown(_) = listener.served {
                let holds =
                    |it: &Worker| listener.holders.iter().any(|holder| holder.pid == it.pid);
                let busy: Vec<Worker> = before.into_iter().flatten().filter(holds).collect();
                if busy.is_empty() {
                    if seen_once || policy == Policy::Cpu {
                        unserved.insert(listener.cookie);
                    }
                    if seen_once {
                        // Remembered as one that was served once.
                        self.0.insert(listener.cookie, busy);
                    }
                    continue;
                }
                listener.served = Served::By(busy);
            }
            if let Served::By(workers) = &listener.served {
                self.0.insert(listener.cookie, workers.clone());
            }
        }
        unserved
    }

    /// Processes whose end matters.
    pub(super) fn workers(&self) -> impl Iterator<Item = Pid> {
        self.0.values().flatten().map(|worker| worker.pid)
    }
}

/// The group as its generations see it, with the part that each listener has now.
pub(super) fn members(group: &Group, part: impl Fn(u64) -> Part) -> Vec<Member> {
    let member = |listener: &Listener| {
        let Served::By(workers) = &listener.served else { return None };
        let name = workers.first().map(|worker| worker.name.clone()).unwrap_or_default();
        Some(Member {
            cookie: listener.cookie,
            class: Class { cpus: listener.cpus(), name },
            started: pids(listener).map(discover::started).max().unwrap_or(0),
            part: part(listener.cookie),
        })
    };
    group.listeners.iter().filter_map(member).collect()
}

/// Processes that serve a listener.
pub(super) fn pids(listener: &Listener) -> impl Iterator<Item = Pid> {
    let workers = match &listener.served {
        Served::By(workers) => workers.as_slice(),
        Served::Unknown(_) => &[],
    };
    workers.iter().map(|worker| worker.pid)
}
