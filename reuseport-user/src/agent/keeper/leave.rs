//! What a keeper lets go of: groups that are gone, and in the end all of them.

use super::{Journal, Keeper, Kept, Phase, Shared, Topic};
use crate::bpf::pins::Pins;
use crate::model::GroupKey;
use crate::steer::attach::AttachOptions;
use crate::steer::detach::Detached;
use crate::steer::{SteerError, detach};

impl Keeper {
    /// What is gone is not ours any more; its pins are cleared when it comes back, or by `detach`.
    pub(super) fn forget(&mut self, shared: &Shared, journal: &mut Journal) {
        let groups = &self.sight.groups;
        let gone = |key: &GroupKey| !groups.iter().any(|group| group.key == *key);
        let keys: Vec<GroupKey> = self.kept.keys().copied().filter(gone).collect();
        for key in keys {
            let Some((kept, netns)) = self.kept.remove(&key) else { continue };
            journal.say(Topic::Mapping, Some(key), "nobody listens any more".to_owned());
            journal.forget(&key);
            shared.forget(&key);
            shared.state().group(key, &netns).unsteered(Phase::Gone, None);
            self.release(kept);
        }
    }

    /// Takes back what whoever watched the workers did, where nobody does (any more): who is evicted
    /// would stay so for good, though it accepts again, and a row be shared though nothing comes.
    pub(in super::super) fn unwatch(&mut self, shared: &Shared, journal: &mut Journal) {
        let mut advised = false;
        for (key, (kept, _)) in &self.kept {
            advised |= shared.forget(key);
            for slot in kept.restore() {
                let what = format!("slot {slot} restored: nobody watches its worker any more");
                journal.say(Topic::Health, Some(*key), what);
            }
            let mut state = shared.state();
            let entry = state.groups.iter_mut().find(|group| group.key == *key);
            if let Some(entry) = entry {
                entry.health.unwatched();
            }
        }
        if advised {
            self.tick(shared, journal);
        }
    }

    /// Gives everything back: the groups to the kernel's hash if `all`, the locks in any case.
    pub(in super::super) fn stop(
        mut self,
        all: bool,
        journal: &mut Journal,
    ) -> Result<(), SteerError> {
        if let Some(below) = self.below {
            return below.stop(&self.goal.attach, all, journal);
        }
        let outcome = if all && !self.kept.is_empty() {
            if self.shared {
                let ours = self.kept.keys().map(|group| group.address.ip());
                self.goal.attach.target.addrs = ours.collect();
            }
            give_back(&self.goal.attach, journal)
        } else {
            Ok(())
        };
        for (kept, _) in std::mem::take(&mut self.kept).into_values() {
            self.release(kept);
        }
        outcome
    }

    pub(super) fn release(&self, kept: Kept) {
        // Best effort: the kernel drops the lock with the descriptor.
        if let Ok(pins) = self.pins().and_then(Pins::lock) {
            let _left_over = kept.release(&pins);
        }
    }
}

/// Gives a target's groups back to the kernel's hash.
pub(in super::super) fn give_back(
    options: &AttachOptions,
    journal: &mut Journal,
) -> Result<(), SteerError> {
    for report in detach(&options.target, &options.settings)? {
        if report.outcome == Detached::Detached {
            let what = "detached: the kernel's hash decides again".to_owned();
            journal.say(Topic::Mapping, report.group, what);
        }
    }
    Ok(())
}
