//! What is in force for a group on loan.

use std::collections::BTreeSet;

use reuseport_common::abi::Role;

use super::Mode;
use crate::bpf::owner::Attached;
use crate::rungs::Rung;
use crate::steer::status::{Counters, GroupStatus, ListenerStatus};

/// What is in force, at one moment.
#[derive(Clone, Debug)]
pub struct Look {
    rung: Option<Rung>,
    ours: bool,
    policy: Option<&'static str>,
    attached: Attached,
    /// Slots and the cookies of the listeners in them.
    seated: BTreeSet<(u32, u64)>,
    leaves_out: bool,
    /// What our program counted since it was attached; `None` where none of ours is in force.
    pub counters: Option<Counters>,
}

impl Look {
    pub(super) fn of(status: GroupStatus) -> Self {
        let seat = |it: &ListenerStatus| Some((it.slot?, it.listener.cookie));
        let steering = status.steering.filter(|it| it.in_force);
        Self {
            rung: status.rung.rung,
            ours: status.rung.ours,
            policy: steering.as_ref().and_then(|it| it.policy),
            attached: status.attached,
            seated: status.listeners.iter().filter_map(seat).collect(),
            leaves_out: steering.is_some()
                && status.listeners.iter().any(|it| it.role != Role::Active),
            counters: steering.map(|it| it.counters),
        }
    }

    /// Whether a worker is drained or stands by.
    pub(super) fn leaves_out(&self) -> bool {
        self.leaves_out
    }

    /// Whether it is still what it was in `before`, and that is `mode`.
    pub fn is_still(&self, before: &Self, mode: Mode) -> bool {
        let is_mode = match mode {
            Mode::Hash => self.rung == Some(Rung::Hash),
            Mode::IncomingCpu => self.rung == Some(Rung::IncomingCpu),
            Mode::Ebpf(policy) => {
                self.rung == Some(Rung::Ebpf) && self.ours && self.policy == Some(policy.name())
            }
        };
        is_mode && self.attached == before.attached
    }

    /// By how much selections, and those of them that were local, grew since `before`. Counts begin
    /// again when another listener takes a slot: then neither is known.
    pub fn grown(&self, before: &Self) -> (Option<u64>, Option<u64>) {
        if self.seated != before.seated {
            return (None, None);
        }
        let of = |figure: fn(&Counters) -> Option<u64>| -> Option<u64> {
            figure(self.counters.as_ref()?)?.checked_sub(figure(before.counters.as_ref()?)?)
        };
        (of(|it| Some(it.selections())), of(|it| it.local))
    }
}
