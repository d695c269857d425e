//! What is to be seen at one moment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::agent;
use crate::discover::DiscoverError;
use crate::model::GroupKey;
use crate::steer::attach::AttachOptions;
use crate::steer::{GroupStatus, SteerError, status};
use crate::sys::clock;

/// The groups at one moment; serialised, it is what the agent serves as `/state`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Which program took it.
    pub version: String,
    /// Since the machine began, by a clock that nobody sets.
    pub clock: Duration,
    /// Seconds since the epoch.
    pub taken_at: u64,
    /// The groups.
    pub groups: Vec<GroupStatus>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
    /// What the agent knows and did, where one took it.
    pub agent: Option<agent::State>,
}

impl Snapshot {
    /// Dates what was seen just now.
    pub fn of(groups: Vec<GroupStatus>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clock: clock::monotonic(),
            taken_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            groups,
            unseen: Vec::new(),
            agent: None,
        }
    }

    /// What an agent sees and did.
    pub fn of_agent(targets: &[AttachOptions], state: agent::State) -> Self {
        let (mut groups, mut unseen) = (Vec::new(), Vec::new());
        for AttachOptions { target, settings, .. } in targets {
            match status(Some(target), settings) {
                Ok(found) => groups.extend(found),
                // The agent waits for it.
                Err(SteerError::Discover(DiscoverError::NobodyListens { .. })) => {}
                Err(error) => unseen.push(error.to_string()),
            }
        }
        Self { unseen, agent: Some(state), ..Self::of(groups) }
    }

    /// What it says of a group.
    pub fn group(&self, key: &GroupKey) -> Option<&GroupStatus> {
        self.groups.iter().find(|status| status.group == *key)
    }

    /// The time since an earlier snapshot; `None` where it is not earlier.
    pub fn since(&self, earlier: &Self) -> Option<Duration> {
        self.clock.checked_sub(earlier.clock).filter(|elapsed| !elapsed.is_zero())
    }
}
