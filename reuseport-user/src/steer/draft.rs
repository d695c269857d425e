//! What plans of a group are made of: what the pins say each listener is to get, what is to change,
//! and where the workers are.

use std::collections::{HashMap, HashSet};

use reuseport_common::abi::{Policy, Role};

use crate::bpf::BpfError;
use crate::bpf::maps::Maps;
use crate::model::{CpuSet, Listener, Served};
use crate::plan::{Plan, PlanError, Request, Seat, plan};
use crate::topology::Topology;

use super::fill::Slots;
use super::intent::{Intent, Intents};

/// What is to change about a group; whatever is not named stays as the pins have it. Listeners are
/// named by their cookies.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// What a row means.
    pub policy: Option<Policy>,
    /// Percent of a normal share.
    pub weights: HashMap<u64, u32>,
    /// What part they take.
    pub roles: HashMap<u64, Role>,
    /// CPUs whose rows are widened. It is not kept: the next change that does not name them narrows
    /// them again.
    pub hot: CpuSet,
    /// Listeners that are in no entry for now, whatever their role; nor is that kept.
    pub leave_out: HashSet<u64>,
}

/// The facts behind the plans of one group.
#[derive(Clone, Debug)]
pub(super) struct Draft<'a> {
    topology: &'a Topology,
    policy: Policy,
    hot: CpuSet,
    leave_out: HashSet<u64>,
    intents: Intents,
}

impl<'a> Draft<'a> {
    /// For a group that has no pins.
    pub(super) fn new(topology: &'a Topology, change: &Change) -> Self {
        let mut intents = Intents::default();
        intents.change(change);
        Self {
            topology,
            policy: change.policy.unwrap_or(Policy::Cpu),
            hot: change.hot.clone(),
            leave_out: change.leave_out.clone(),
            intents,
        }
    }

    /// For what `maps` say, with `change` made.
    pub(super) fn of(
        topology: &'a Topology,
        change: &Change,
        maps: &Maps,
    ) -> Result<Self, BpfError> {
        let in_force = Policy::from_u32(maps.config()?.live().policy);
        let policy = change.policy.or(in_force);
        let mut intents = Intents::read(maps)?;
        intents.change(change);
        Ok(Self { intents, ..Self::new(topology, &Change { policy, ..change.clone() }) })
    }

    /// A plan for `listeners`, which all have slots.
    pub(super) fn plan(&self, listeners: &[Listener], slots: &Slots) -> Result<Plan, PlanError> {
        let seat = |listener: &Listener| {
            let Intent { weight, role, home } = self.intents.get(listener.cookie);
            // A busy thread cannot be seen, and some the user had to name to `attach`.
            let cpus = match listener.served {
                Served::By(_) => listener.cpus(),
                Served::Unknown(_) => home.into_iter().collect(),
            };
            // On whose word it stands by makes no difference to a plan.
            let role = if role == Role::Superseded { Role::Standby } else { role };
            Seat { slot: slots[&listener.cookie], cpus, weight, role }
        };
        let seats = listeners.iter().filter(|it| !self.leave_out.contains(&it.cookie)).map(seat);
        let seats = seats.collect();
        plan(self.topology, &Request { policy: self.policy, seats, hot: self.hot.clone() })
    }

    /// Whether the listener is to get anything.
    pub(super) fn takes_part(&self, listener: &Listener) -> bool {
        let intent = self.intents.get(listener.cookie);
        intent.weight > 0
            && intent.role == Role::Active
            && !self.leave_out.contains(&listener.cookie)
    }

    /// What each listener is to get.
    pub(super) fn intents(&self) -> &Intents {
        &self.intents
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Evidence, Worker};
    use crate::topology::synthetic::machine;

    fn listener(cookie: u64, served: Served) -> Listener {
        Listener { cookie, inode: cookie, queued: 0, backlog: 0, holders: Vec::new(), served }
    }

    /// Served by a process that is bound to `cpu`.
    fn bound(cookie: u64, cpu: u32) -> Listener {
        let (name, evidence) = (String::new(), Evidence::SoleHolder);
        let cpus = CpuSet::from([cpu]);
        listener(cookie, Served::By(vec![Worker { pid: 1, tid: None, name, cpus, evidence }]))
    }

    fn firsts(draft: &Draft<'_>, listeners: &[Listener]) -> Vec<Vec<u32>> {
        let slots = listeners.iter().map(|it| it.cookie).zip(0..).collect();
        let plan = draft.plan(listeners, &slots).expect("a plan");
        let row = |row: &crate::plan::RowPlan| row.shares.iter().map(|share| share.slot).collect();
        plan.rows_explained.iter().map(row).collect()
    }

    #[test]
    fn a_change_is_made_and_the_rest_stays() {
        let topology = machine(1, 1, 3, 1).build();
        let listeners = [bound(10, 0), bound(11, 1), bound(12, 2)];
        let as_it_is = Draft::new(&topology, &Change::default());
        assert_eq!(firsts(&as_it_is, &listeners), [[0], [1], [2]]);

        let hot = Change { hot: CpuSet::from([1]), ..Change::default() };
        let hot = Draft::new(&topology, &hot);
        assert_eq!(firsts(&hot, &listeners), [vec![0], vec![0, 1, 2], vec![2]]);

        let out = Change { leave_out: HashSet::from([10, 11]), ..Change::default() };
        let out = Draft::new(&topology, &out);
        assert_eq!(firsts(&out, &listeners), [[2], [2], [2]]);
        assert!(!out.takes_part(&listeners[0]) && out.takes_part(&listeners[2]));

        let weights = HashMap::from([(10, 0)]);
        let roles = HashMap::from([(11, Role::Drained), (12, Role::Standby)]);
        let all = Draft::new(&topology, &Change { weights, roles, ..Change::default() });
        assert!(!listeners.iter().any(|it| all.takes_part(it)));
        // Better those that stand by than nobody.
        assert_eq!(firsts(&all, &listeners), [[2], [2], [2]]);
    }

    #[test]
    fn who_cannot_be_seen_keeps_the_place_that_is_remembered() {
        let topology = machine(1, 1, 2, 1).build();
        let unseen = |cookie| listener(cookie, Served::Unknown(String::new()));
        let mut draft = Draft::new(&topology, &Change::default());
        assert_eq!(firsts(&draft, &[unseen(10), unseen(11)]), [[0], [1]]);
        draft.intents.remember(10, 1);
        assert_eq!(firsts(&draft, &[unseen(10), unseen(11)]), [[1], [0]]);
        assert_eq!(firsts(&draft, &[bound(10, 0), bound(11, 1)]), [[0], [1]]);
    }
}
