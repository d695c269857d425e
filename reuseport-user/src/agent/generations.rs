//! Which of a group's workers are the newer generation, and which stand by.
//!
//! Workers of one *class* (same CPUs, same name) do the same work. How many of a class there usually
//! are is learnt while nothing changes. One more than that is a newcomer who takes over: the newest
//! serve, as many as usual, and the oldest stand by until they go. It follows by itself that they
//! serve again when a newcomer dies young. One that still listens after the time a takeover may take
//! was not to be replaced at all: there are more workers from then on.
//!
//! A server may say itself who of it stands by: who is not ready yet, whom it took over from. That is
//! its to say, and left as it is while others serve ([`Generations::on_their_word`]).
//!
//! A deploy whose workers are of other classes, or more or fewer, is told by the group as a whole
//! ([`deploy`]).
//!
//! Pure: fed with who is there and when, it says who stands by.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::CpuSet;

mod deploy;

use self::deploy::superseded;

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
#[derive(Clone, Debug)]
pub(super) struct Generations {
    /// How long a takeover may take.
    timeout: Duration,
    classes: BTreeMap<Class, Usual>,
    known: BTreeMap<u64, Known>,
    /// Who there was when nobody stood by and nothing was to be learnt; `None` until then.
    usual: Option<BTreeSet<u64>>,
    /// Those of them that stand by because of a deploy.
    deployed: BTreeSet<u64>,
    /// Whether this is the first look, at what another agent may have left.
    first: bool,
    /// Whether nothing but a change of members could change who stands by.
    rests: bool,
}

/// What is known of a class.
#[derive(Clone, Debug, Default)]
struct Usual {
    /// How many usually serve; `None` until that is learnt.
    count: Option<usize>,
    /// Who there was when it last changed, and when that was.
    cookies: Vec<u64>,
    changed: Duration,
}

/// What is known of a listener.
#[derive(Clone, Debug)]
struct Known {
    class: Class,
    /// Whether it is one of those that usually serve.
    counted: bool,
    part: Part,
    /// Since when it stands by.
    waits: Option<Duration>,
    /// Since when it stands by because somebody else said so.
    told: Option<Duration>,
}

impl Generations {
    pub(super) fn new(timeout: Duration) -> Self {
        let (classes, known) = (BTreeMap::new(), BTreeMap::new());
        let deployed = BTreeSet::new();
        Self { timeout, classes, known, usual: None, deployed, first: true, rests: false }
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Whether time alone changes nothing any more.
    pub(super) fn is_at_rest(&self) -> bool {
        self.rests
    }

    /// Those that stand by.
    pub(super) fn waiting(&self) -> impl Iterator<Item = u64> {
        self.known.iter().filter(|(_, known)| known.waits.is_some()).map(|(cookie, _)| *cookie)
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
        let told = self.on_their_word(now, members);
        let ours = members.iter().filter(|it| it.part != Part::Out && !told.contains(&it.cookie));
        let ours: Vec<&Member> = ours.collect();
        let mut by_class: BTreeMap<&Class, Vec<&Member>> = BTreeMap::new();
        for &member in &ours {
            by_class.entry(&member.class).or_default().push(member);
        }
        self.forget_classes(now, &by_class);
        self.end_deploy(now, &ours, &by_class);
        let mut verdict = Verdict::default();
        self.rests = told.is_empty();
        for (class, members) in &mut by_class {
            // The newest first.
            members.sort_by_key(|member| (Reverse(member.started), member.cookie));
            let count = self.usual(now, class, members);
            self.rests &= count == Some(members.len());
            let older = members.iter().filter(|member| is_older(member, members, count));
            verdict.stand_by.extend(older.map(|member| member.cookie));
        }
        self.learn_deploy(&ours, &by_class);
        self.deployed = match &self.usual {
            Some(usual) => superseded(usual, &verdict.stand_by, &ours),
            None => BTreeSet::new(),
        };
        if !self.deployed.is_empty() {
            // All who take over serve, as many as they are.
            verdict.stand_by.clone_from(&self.deployed);
            self.rests = false;
        }
        if self.rests {
            self.usual = Some(ours.iter().map(|member| member.cookie).collect());
        }
        for member in members {
            let waits = verdict.stand_by.contains(&member.cookie);
            match member.part {
                Part::Serves if waits => verdict.superseded.push(member.cookie),
                Part::StandsBy if !waits && !told.contains(&member.cookie) => {
                    verdict.restored.push(member.cookie);
                }
                _ => {}
            }
            let usual = self.classes.get(&member.class).and_then(|usual| usual.count);
            if let Some(known) = self.known.get_mut(&member.cookie) {
                known.counted = usual.is_some() && !waits;
                known.waits = waits.then(|| known.waits.unwrap_or(now));
                known.told = told.contains(&member.cookie).then(|| known.told.unwrap_or(now));
                known.part = member.part;
            }
        }
        verdict
    }

    /// Who stands by because the server said so, not we: for as long as a takeover may take, while
    /// anybody serves. Its workers may not have got their CPUs yet, and be in no class of the others;
    /// where a newer one of the same class serves, it is as if we had said it. What the first look
    /// shows may be another agent's word, and is judged as our own.
    fn on_their_word(&self, now: Duration, members: &[Member]) -> BTreeSet<u64> {
        let serving = || members.iter().filter(|member| member.part == Part::Serves);
        if self.first || serving().next().is_none() {
            return BTreeSet::new();
        }
        let told = |member: &&Member| {
            let Some(known) = self.known.get(&member.cookie) else { return false };
            let overdue = known.told.is_some_and(|since| now.saturating_sub(since) >= self.timeout);
            let newer = |it: &Member| it.class == member.class && it.started > member.started;
            member.part == Part::StandsBy
                && known.waits.is_none()
                && !overdue
                && !serving().any(newer)
        };
        members.iter().filter(told).map(|member| member.cookie).collect()
    }

    /// A class that nobody is of is forgotten when it has been for long.
    fn forget_classes(&mut self, now: Duration, there: &BTreeMap<&Class, Vec<&Member>>) {
        let forgets = self.forgets();
        self.classes.retain(|class, usual| {
            let is_there = there.contains_key(class);
            if !is_there && !usual.cookies.is_empty() {
                (usual.cookies, usual.changed) = (Vec::new(), now);
            }
            is_there || (usual.count.is_some() && now.saturating_sub(usual.changed) < forgets)
        });
    }

    /// Learns what another agent left word of: a deploy, where no class tells why its members stand by.
    fn learn_deploy(&mut self, members: &[&Member], by_class: &BTreeMap<&Class, Vec<&Member>>) {
        if !std::mem::replace(&mut self.first, false) {
            return;
        }
        let left = |members: &&Vec<&Member>| members.iter().all(|it| it.part == Part::StandsBy);
        let left = by_class.values().filter(left).flatten().map(|member| member.cookie).collect();
        let told = superseded(&left, &BTreeSet::new(), members) == left && !left.is_empty();
        self.usual = told.then_some(left);
    }

    /// Ends a deploy when the usual members are gone, or have stayed for too long.
    fn end_deploy(
        &mut self,
        now: Duration,
        members: &[&Member],
        by_class: &BTreeMap<&Class, Vec<&Member>>,
    ) {
        let is_usual = |member: &&&Member| {
            self.usual.as_ref().is_some_and(|usual| usual.contains(&member.cookie))
        };
        let overdue = |cookie| {
            let waits = self.known.get(cookie).and_then(|known| known.waits);
            waits.is_some_and(|since| now.saturating_sub(since) >= self.timeout)
        };
        let replaced = !members.iter().any(|member| is_usual(&member));
        if self.deployed.is_empty() || !(replaced || self.deployed.iter().any(overdue)) {
            return;
        }
        self.usual = None;
        for (class, members) in by_class {
            if let Some(count) = self.classes.get_mut(class).and_then(|it| it.count.as_mut()) {
                *count = (*count).max(members.len());
            }
        }
        for known in self.known.values_mut() {
            known.waits = None;
        }
    }

    /// Whom we know takes its place along to another class, and takes one when it was taken out and
    /// is back: neither is a newcomer.
    fn follow(&mut self, member: &Member) {
        let class = member.class.clone();
        let Some(known) = self.known.get_mut(&member.cookie) else {
            let known = Known { class, counted: false, part: member.part, waits: None, told: None };
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

/// Who stood by in the eyes of whoever set these listeners, from which of them got a CPU: one that got
/// none while a newer one of its class did.
pub(super) fn stood_by(members: &[Member], has_cpu: &BTreeMap<u64, bool>) -> BTreeSet<u64> {
    let has = |member: &&Member, cpu| has_cpu.get(&member.cookie) == Some(&cpu);
    let newer_has = |old: &&Member| {
        let newer = |it: &&Member| it.class == old.class && it.started > old.started;
        members.iter().filter(newer).any(|it| has(&it, true))
    };
    let without = members.iter().filter(|it| has(it, false) && newer_has(it));
    without.map(|member| member.cookie).collect()
}

#[cfg(test)]
mod tests;
