//! What the threads of the agent's process share: what it keeps, and what it knows and did.
//!
//! The tick writes it, others read it; what they want of the tick they leave there too
//! ([`Shared::advise`]) and wake it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::state::{GroupState, State, Watching};
use super::wakes::Waker;
use crate::model::{CpuSet, GroupKey};
use crate::steer::attach::AttachOptions;

/// What somebody who watches the workers wants the next plan to heed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// Slots that shall get nothing, and stand in for nobody.
    pub out: Vec<u32>,
    /// Rows that all workers shall share.
    pub hot: CpuSet,
}

/// What the threads of the agent's process share.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    advice: Mutex<HashMap<GroupKey, Advice>>,
    targets: Mutex<Vec<AttachOptions>>,
    /// Ends the tick's sleep.
    pub waker: Waker,
}

impl Shared {
    pub(super) fn new(waker: Waker, watching: Watching) -> Self {
        let state = State::new(watching);
        let (advice, targets) = (Mutex::default(), Mutex::default());
        Self { state: Mutex::new(state), advice, targets, waker }
    }

    /// The state, for a moment: the tick waits meanwhile.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves advice for the next plan of a group and has one made where it is new.
    pub fn advise(&self, group: GroupKey, advice: Advice) {
        let mut all = self.advice.lock().unwrap_or_else(PoisonError::into_inner);
        let place = all.entry(group).or_default();
        if *place != advice {
            *place = advice;
            drop(all);
            self.waker.wake();
        }
    }

    /// Forgets what was advised for a group; says whether that was anything.
    pub(super) fn forget(&self, group: &GroupKey) -> bool {
        let before = self.advice.lock().unwrap_or_else(PoisonError::into_inner).remove(group);
        before.is_some_and(|advice| advice != Advice::default())
    }

    /// What is kept, and how.
    pub fn targets(&self) -> Vec<AttachOptions> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on these targets are kept. Forgets the groups that none of them means, and says which.
    pub(super) fn keep(&self, targets: Vec<AttachOptions>) -> Vec<GroupKey> {
        let meant = |group: &GroupState| {
            targets.iter().any(|options| options.target.means(&group.key, &group.netns))
        };
        let mut state = self.state();
        let dropped = state.groups.extract_if(.., |group| !meant(group));
        let dropped = dropped.map(|group| group.key).collect();
        drop(state);
        *self.targets.lock().unwrap_or_else(PoisonError::into_inner) = targets;
        dropped
    }

    /// What was last advised for a group.
    pub(super) fn advice(&self, group: &GroupKey) -> Advice {
        let all = self.advice.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(group).cloned().unwrap_or_default()
    }
}
