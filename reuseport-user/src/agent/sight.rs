//! What is seen of a target: its groups as they were last discovered, and whether they still are so.
//!
//! To discover takes a look at every descriptor on the host. It is done when something happened, when
//! a glance shows a difference, and now and then.

use std::collections::BTreeSet;

use reuseport_common::watch::Change;

use crate::discover::{DiscoverError, Look, Roster, Target, discover};
use crate::model::Group;

/// After so many glances that showed nothing new, it is discovered what they cannot show: a listener
/// that was handed to a process that had been there before.
const DEEP: u32 = 30;

/// The eyes on one target.
#[derive(Debug)]
pub(super) struct Sight {
    target: Target,
    /// The groups as they were last discovered.
    pub(super) groups: Vec<Group>,
    look: Option<Look>,
    roster: Roster,
    glances: u32,
    stale: bool,
}

impl Sight {
    pub(super) fn new(target: Target) -> Self {
        let (groups, roster) = (Vec::new(), Roster::default());
        Self { target, groups, look: None, roster, glances: 0, stale: true }
    }

    /// Looks again, as closely as is needed; says whether the groups were discovered anew. There are
    /// none where nobody listens.
    pub(super) fn refresh(&mut self) -> Result<bool, DiscoverError> {
        self.glances += 1;
        let known = !self.stale && !self.groups.is_empty() && self.glances < DEEP;
        if known && self.is_same() {
            return Ok(false);
        }
        // Should the rest fail, it is to be done again.
        self.stale = true;
        self.roster = Roster::take();
        self.groups = match discover(&self.target) {
            Err(DiscoverError::NobodyListens { .. }) => Vec::new(),
            found => found?,
        };
        self.look = match (self.groups.first(), self.look.take()) {
            (None, _) => None,
            (Some(_), Some(look)) => Some(look),
            (Some(first), None) => Some(Look::open(&self.target, &first.netns)?),
        };
        (self.glances, self.stale) = (0, false);
        Ok(true)
    }

    /// Whether nothing that can be seen at a glance is different.
    fn is_same(&mut self) -> bool {
        let Some(look) = &mut self.look else { return false };
        look.cookies().is_ok_and(|now| now == cookies(&self.groups))
            && self.roster.is_same(&self.groups)
    }

    /// Whether there are other sockets than were discovered. For those who are not told of changes.
    pub(super) fn glance(&mut self) -> bool {
        let Some(look) = &mut self.look else { return false };
        // What cannot be seen now is seen by the next tick.
        let differs = look.cookies().is_ok_and(|now| now != cookies(&self.groups));
        self.stale |= differs;
        differs
    }

    /// Takes in that a listener came or went; says whether it may be one of ours.
    pub(super) fn hear(&mut self, change: &Change) -> bool {
        let elsewhere = |group: &Group| change.netns != 0 && group.key.netns != change.netns;
        let ours = change.port == self.target.port
            && (self.groups.is_empty() || !self.groups.iter().all(elsewhere));
        self.stale |= ours;
        ours
    }

    /// What was discovered may not be so any more.
    pub(super) fn doubt(&mut self) {
        self.stale = true;
    }
}

fn cookies(groups: &[Group]) -> BTreeSet<u64> {
    groups.iter().flat_map(|group| &group.listeners).map(|listener| listener.cookie).collect()
}
