//! Which of a group's workers are the newer generation, and which stand by.
//!
//! Workers of one *class* (same CPUs, same name) do the same work. How many of a class there usually
//! are is learnt while nothing changes. One more than that is a newcomer who takes over: the newest
//! serve, as many as usual, and the oldest stand by until they go. It follows by itself that they
//! serve again when a newcomer dies young. One that still listens after the time a takeover may take
//! was not to be replaced at all: there are more workers from then on.
//!
//! Pure: fed with who is there and when, it says who stands by.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::CpuSet;

/// Where workers may run, and their name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    pub(super) cpus: CpuSet,
    pub(super) name: String,
}

/// A listener and its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) cookie: u64,
    pub(super) class: Class,
    /// When the worker began; only the order means anything.
    pub(super) started: u64,
    pub(super) part: Part,
}

/// What the pins say that a listener does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Serves,
    StandsBy,
    /// Taken out by hand: not ours to decide upon.
    Out,
}

/// Who stands by, and what became of others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Those that stand by now.
    pub(super) stand_by: BTreeSet<u64>,
    /// Those of them that served before.
    pub(super) superseded: Vec<u64>,
    /// Those that stood by and serve again.
    pub(super) restored: Vec<u64>,
}

/// The generations of one group.
#[derive(Debug)]
pub(super) struct Generations {
    /// How long a takeover may take.
    timeout: Duration,
    classes: BTreeMap<Class, Usual>,
    known: BTreeMap<u64, Known>,
    /// Whether nothing but a change of members could change who stands by.
    rests: bool,
}

/// What is known of a class.
#[derive(Debug, Default)]
struct Usual {
    /// How many usually serve; `None` until that is learnt.
    count: Option<usize>,
    /// Who there was when it last changed, and when that was.
    cookies: Vec<u64>,
    changed: Duration,
}

/// What is known of a listener.
#[derive(Debug)]
struct Known {
    class: Class,
    /// Whether it is one of those that usually serve.
    counted: bool,
    part: Part,
    /// Since when it stands by.
    waits: Option<Duration>,
}

impl Generations {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, classes: BTreeMap::new(), known: BTreeMap::new(), rests: false }
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Whether time alone changes nothing any more.
    pub(super) fn is_at_rest(&self) -> bool {
        self.rests
    }

    /// Without a change for as long as this, those that serve are the usual ones. Arbitrary: longer
    /// than a server takes from one worker to the next, shorter than the pause between two deploys.
    fn settles(&self) -> Duration {
        self.timeout / 6
    }

    /// Without a change for as long as this, fewer are the usual ones. Longer than a crashed worker
    /// waits to be started again: it should not take a healthy one's place then.
    fn forgets(&self) -> Duration {
        self.timeout * 10
    }

    /// Takes in who is there `now` (monotonic), and says who stands by.
    pub(super) fn observe(&mut self, now: Duration, members: &[Member]) -> Verdict {
        self.known.retain(|cookie, _| members.iter().any(|member| member.cookie == *cookie));
        for member in members {
            self.follow(member);
        }
        let mut by_class: BTreeMap<&Class, Vec<&Member>> = BTreeMap::new();
        for member in members.iter().filter(|member| member.part != Part::Out) {
            by_class.entry(&member.class).or_default().push(member);
        }
        self.classes.retain(|class, usual| by_class.contains_key(class) || usual.count.is_some());
        let mut verdict = Verdict::default();
        self.rests = true;
        for (class, mut members) in by_class {
            // The newest first.
            members.sort_by_key(|member| (Reverse(member.started), member.cookie));
            let count = self.usual(now, class, &members);
            self.rests &= count == Some(members.len());
            for member in members.iter().filter(|member| is_older(member, &members, count)) {
                verdict.stand_by.insert(member.cookie);
            }
        }
        for member in members {
            let waits = verdict.stand_by.contains(&member.cookie);
            match member.part {
                Part::Serves if waits => verdict.superseded.push(member.cookie),
                Part::StandsBy if !waits => verdict.restored.push(member.cookie),
                _ => {}
            }
            let usual = self.classes.get(&member.class).and_then(|usual| usual.count);
            if let Some(known) = self.known.get_mut(&member.cookie) {
                known.counted = usual.is_some() && !waits;
                known.waits = waits.then(|| known.waits.unwrap_or(now));
                known.part = member.part;
            }
        }
        verdict
    }

    /// Whom we know takes its place along to another class, and takes one when it was taken out and
    /// is back: neither is a newcomer.
    fn follow(&mut self, member: &Member) {
        let class = member.class.clone();
        let Some(known) = self.known.get_mut(&member.cookie) else {
            let known = Known { class, counted: false, part: member.part, waits: None };
            self.known.insert(member.cookie, known);
            return;
        };
        let moved = known.class != class;
        let back = known.part == Part::Out && member.part != Part::Out;
        let before = std::mem::replace(&mut known.class, class);
        if moved
            && known.counted
            && let Some(usual) = self.classes.get_mut(&before)
        {
            usual.count = usual.count.map(|count| count.saturating_sub(1));
        }
        if ((moved && known.counted) || back)
            && let Some(usual) = self.classes.get_mut(&member.class)
        {
            usual.count = usual.count.map(|count| count + 1);
        }
    }

    /// How many of a class serve, as far as is known. `members` come newest first.
    fn usual(&mut self, now: Duration, class: &Class, members: &[&Member]) -> Option<usize> {
        let (settles, forgets, timeout) = (self.settles(), self.forgets(), self.timeout);
        let usual = self.classes.entry(class.clone()).or_default();
        let cookies: Vec<u64> = members.iter().map(|member| member.cookie).collect();
        if usual.cookies != cookies {
            (usual.cookies, usual.changed) = (cookies, now);
        }
        let quiet = now.saturating_sub(usual.changed);
        let there = members.len();
        let serving = members.iter().filter(|member| member.part == Part::Serves).count();
        let overdue = members.iter().filter(|member| {
            let waits = self.known.get(&member.cookie).and_then(|known| known.waits);
            waits.is_some_and(|since| now.saturating_sub(since) >= timeout)
        });
        usual.count = match usual.count {
            // Another agent knew, and left word.
            None if serving < there && serving > 0 => Some(serving),
            None => (quiet >= settles).then_some(there),
            Some(count) if there < count && quiet >= forgets => Some(there),
            // Began at the same moment, so none is newer than the other.
            Some(count) if there > count && serving == there && quiet >= settles => Some(there),
            Some(count) => Some(count + overdue.count()),
        };
        usual.count
    }
}

/// Whether the member is older than those that usually serve. Who began at the same moment as one
/// of them is one of them.
fn is_older(member: &Member, newest_first: &[&Member], count: Option<usize>) -> bool {
    let last = count.and_then(|count| newest_first.get(count.max(1) - 1));
    last.is_some_and(|last| member.started < last.started)
}

#[cfg(test)]
mod tests;
