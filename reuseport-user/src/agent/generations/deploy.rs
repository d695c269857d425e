//! A deploy, told by the group as a whole.

use std::collections::BTreeSet;

use super::Member;
use crate::model::CpuSet;

/// Who of the `usual` members stands by because a new instance of the server is there.
///
/// All who are not usual are the new instance, whatever their names and however many, if
/// - each of its workers began after each of the usual ones,
/// - they may run on every CPU that the usual ones may, and
/// - there are at least two of them, or there is only one usual one. One more worker that joins is no
///   deploy.
///
/// They first fill the places of usual ones that are gone. For each that is left over one usual one
/// stands by: first those who do for newer ones of their class, then the oldest, so that never fewer
/// serve than usual: should it be a scale-out after all, nothing is worse than before it until the
/// time for a takeover is over. Who began at the same moment (in the kernel's ticks) stands by or
/// serves together.
pub(super) fn superseded(
    usual: &BTreeSet<u64>,
    in_class: &BTreeSet<u64>,
    members: &[&Member],
) -> BTreeSet<u64> {
    let (old, new): (Vec<&Member>, Vec<&Member>) =
        members.iter().copied().partition(|member| usual.contains(&member.cookie));
    let newest_old = old.iter().map(|member| member.started).max();
    let oldest_new = new.iter().map(|member| member.started).min();
    let covers = !cpus(&old).is_empty() && cpus(&old).is_subset(&cpus(&new));
    // None is less than any.
    let newer = newest_old.is_some() && newest_old < oldest_new;
    if !newer || !covers || (new.len() < 2 && usual.len() > 1) {
        return BTreeSet::new();
    }
    let gone = usual.len() - old.len();
    let count = new.len().saturating_sub(gone).min(old.len());
    if count == 0 {
        return BTreeSet::new();
    }
    let (first, mut others): (Vec<&Member>, Vec<&Member>) =
        old.into_iter().partition(|member| in_class.contains(&member.cookie));
    let count = count.saturating_sub(first.len());
    others.sort_by_key(|member| (member.started, member.cookie));
    let serves = others.get(count).map(|member| member.started);
    let older = |member: &&Member| serves.is_none_or(|serves| member.started < serves);
    let others = others[..count].iter().copied().filter(older);
    first.into_iter().chain(others).map(|member| member.cookie).collect()
}

fn cpus(members: &[&Member]) -> CpuSet {
    members.iter().flat_map(|member| member.class.cpus.iter()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Class, Part};
    use super::*;

    fn member(cookie: u64, started: u64, cpus: CpuSet) -> Member {
        let class = Class { cpus, name: format!("server-{started}") };
        Member { cookie, class, started, part: Part::Serves }
    }

    /// Members by when they began and where they may run, with their places as cookies.
    fn members(all: &[(u64, &[u32])]) -> Vec<Member> {
        let one = |(cookie, (started, cpus)): (u64, &(u64, &[u32]))| {
            member(cookie, *started, cpus.iter().copied().collect())
        };
        (0..).zip(all).map(one).collect()
    }

    #[test]
    fn a_new_instance_takes_over_and_one_more_worker_does_not() {
        for (usual, all, expected) in [
            // As many as there were, and one for all CPUs of two.
            (2, &[(1, &[0][..]), (2, &[1]), (3, &[0]), (4, &[1])][..], &[0, 1][..]),
            (2, &[(1, &[0]), (2, &[1]), (3, &[0, 1])], &[]),
            // Two unpinned for four, in whichever order they came, and more.
            (4, &[(4, &[0, 1]), (1, &[0, 1]), (2, &[0]), (3, &[1]), (5, &[0]), (5, &[1])], &[1, 2]),
            (1, &[(1, &[0]), (2, &[0]), (3, &[0]), (4, &[0])], &[0]),
            (1, &[(1, &[0]), (2, &[0])], &[0]),
            // A scale-out to other CPUs, and a part of a deploy.
            (2, &[(1, &[0]), (2, &[1]), (3, &[2]), (4, &[3])], &[]),
            (3, &[(1, &[0]), (2, &[1]), (3, &[2]), (4, &[0]), (5, &[1])], &[]),
            // No newer than those that are there.
            (2, &[(1, &[0]), (3, &[1]), (3, &[0]), (3, &[1])], &[]),
            // Began at the same moment as one that is to serve.
            (3, &[(1, &[0]), (1, &[0]), (1, &[0]), (2, &[0]), (2, &[0])], &[]),
            (3, &[(1, &[0]), (2, &[0]), (2, &[0]), (3, &[0]), (3, &[0])], &[0]),
        ] {
            let all = members(all);
            let all: Vec<&Member> = all.iter().collect();
            let stand_by = superseded(&(0..usual).collect(), &[].into(), &all);
            assert_eq!(stand_by, expected.iter().copied().collect(), "{usual} of {all:?}");
        }
        // Of three one is gone, which one of the two newcomers replaces.
        let all = members(&[(1, &[0]), (2, &[0]), (3, &[0]), (4, &[0])]);
        let all: Vec<&Member> = all.iter().collect();
        assert_eq!(superseded(&[0, 1, 99].into(), &[].into(), &all), [0].into());
        // Who stands by for one of its class goes before who is older.
        assert_eq!(superseded(&[0, 1, 99].into(), &[1].into(), &all), [1].into());
    }

    fn any_member() -> impl Strategy<Value = (u64, Vec<u32>)> {
        (0u64..6, prop::collection::vec(0u32..3, 0..3))
    }

    proptest! {
        #[test]
        fn never_fewer_serve_than_usual(
            all in prop::collection::vec(any_member(), 0..9),
            there in 0usize..9,
            gone in 0u64..3,
        ) {
            let all: Vec<(u64, &[u32])> = all.iter().map(|(at, cpus)| (*at, &cpus[..])).collect();
            let all = members(&all);
            let all: Vec<&Member> = all.iter().collect();
            let there = there.min(all.len());
            let usual: BTreeSet<u64> = (0..there as u64).chain(100..100 + gone).collect();
            let stand_by = superseded(&usual, &[].into(), &all);
            prop_assert!(stand_by.is_subset(&usual), "a newcomer stands by");
            if !stand_by.is_empty() {
                prop_assert!(all.len() - stand_by.len() >= usual.len());
                let new = &all[there..];
                prop_assert!(new.len() >= 2 || usual.len() == 1);
                let old = all[..there].iter();
                prop_assert!(old.clone().all(|it| new.iter().all(|new| new.started > it.started)));
                prop_assert!(cpus(&all[..there]).is_subset(&cpus(new)));
                // Who serves on is no older than who stands by.
                let waits = |it: &&&Member| stand_by.contains(&it.cookie);
                let oldest = old.clone().filter(|it| !waits(it)).map(|it| it.started).min();
                let newest = old.filter(waits).map(|it| it.started).max();
                prop_assert!(oldest.is_none_or(|oldest| newest < Some(oldest)));
            }
        }
    }
}
