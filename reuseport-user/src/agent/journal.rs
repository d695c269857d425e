//! One line per decision, for people: in the log and among the state's events. A storm of decisions
//! does not become a storm of lines.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::model::GroupKey;

/// Lines on one topic of one group that are written at once, and how long it takes until as many are
/// written again.
const BURST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    /// Who gets what.
    Mapping,
    /// Who stands by.
    Generation,
    /// Who does not accept, and which rows are shared.
    Health,
    /// What is in the way.
    Problem,
    /// The agent itself.
    Agent,
}

impl Topic {
    const fn name(self) -> &'static str {
        match self {
            Self::Mapping => "mapping",
            Self::Generation => "generation",
            Self::Health => "health",
            Self::Problem => "problem",
            Self::Agent => "agent",
        }
    }
}

/// Where lines go.
#[derive(Debug)]
pub(super) struct Journal {
    shared: Arc<Shared>,
    limits: HashMap<(Option<GroupKey>, Topic), Limit>,
}

impl Journal {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, limits: HashMap::new() }
    }

    /// A group that is gone says nothing any more.
    pub(super) fn forget(&mut self, group: &GroupKey) {
        self.limits.retain(|(key, _), _| key.as_ref() != Some(group));
    }

    /// Writes a line.
    pub(super) fn say(&mut self, topic: Topic, group: Option<GroupKey>, what: String) {
        let limit = self.limits.entry((group, topic)).or_default();
        let Some(left_out) = limit.admit(Instant::now()) else { return };
        let name = topic.name();
        let key = group.map(tracing::field::display);
        if left_out > 0 {
            tracing::warn!(topic = name, group = key.clone(), left_out, "lines were left out");
        }
        if topic == Topic::Problem {
            tracing::warn!(topic = name, group = key, "{what}");
        } else {
            tracing::info!(topic = name, group = key, "{what}");
        }
        self.shared.state().note(group, what);
    }
}

/// How many lines may still be written.
#[derive(Debug, Default)]
struct Limit {
    begun: Option<Instant>,
    said: u32,
    left_out: u32,
}

impl Limit {
    /// Whether one more may be written now, and how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u32> {
        if self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= WINDOW) {
            (self.begun, self.said) = (Some(now), 0);
        }
        if self.said == BURST {
            self.left_out += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_cut_short_and_what_was_left_out_is_counted() {
        let start = Instant::now();
        let mut limit = Limit::default();
        let admitted = (0..1000).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(admitted, BURST as usize);
        assert_eq!(limit.admit(start + WINDOW), Some(1000 - BURST));
        assert_eq!(limit.admit(start + WINDOW), Some(0));
        // One now and then is never left out.
        let mut limit = Limit::default();
        for round in 0..1000 {
            assert_eq!(limit.admit(start + Duration::from_secs(round)), Some(0));
        }
    }
}
