//! Homes against a brute-force matching.

use proptest::prelude::*;

use super::*;
use crate::topology::synthetic::machine;

fn assign_on(topology: &Topology, sets: &[CpuSet]) -> Vec<Cpu> {
    assign(topology, &Near::new(topology), sets)
}

#[test]
fn spreads_over_nodes_then_llcs_then_cores_then_siblings() {
    // CPU n and n + 8 are siblings; 0-1, 2-3, 4-5, 6-7 share an LLC; 0-3, 4-7 a node.
    let topology = machine(2, 2, 2, 2).build();
    let all = topology.online();
    let homes = assign_on(&topology, &vec![all; 17]);
    assert_eq!(homes, [0, 4, 2, 6, 1, 5, 3, 7, 8, 12, 10, 14, 9, 13, 11, 15, 0]);
}

#[test]
fn moves_others_where_one_has_no_choice() {
    let topology = machine(1, 1, 4, 1).build();
    let sets = [[0, 1], [0, 2], [0, 3], [0, 1]].map(CpuSet::from);
    let mut homes = assign_on(&topology, &sets);
    assert!(sets.iter().zip(&homes).all(|(set, home)| set.contains(*home)), "{homes:?}");
    homes.sort_unstable();
    assert_eq!(homes, [0, 1, 2, 3]);
}

/// Whether a perfect matching exists, the textbook way.
fn can_all_have_their_own(sets: &[CpuSet]) -> bool {
    fn find(
        sets: &[CpuSet],
        seat: usize,
        seen: &mut CpuSet,
        of: &mut BTreeMap<Cpu, usize>,
    ) -> bool {
        for cpu in sets[seat].iter() {
            if seen.contains(cpu) {
                continue;
            }
            seen.insert(cpu);
            let tenant = of.get(&cpu).copied();
            if tenant.is_none_or(|tenant| find(sets, tenant, seen, of)) {
                of.insert(cpu, seat);
                return true;
            }
        }
        false
    }
    let mut of = BTreeMap::new();
    (0..sets.len()).all(|seat| find(sets, seat, &mut CpuSet::default(), &mut of))
}

proptest! {
    #[test]
    fn each_has_its_own_where_that_can_be(
        sets in prop::collection::vec(prop::collection::btree_set(0u32..12, 1..4), 1..14)
    ) {
        let topology = machine(1, 2, 3, 2).build();
        let sets: Vec<CpuSet> = sets.into_iter().map(|set| set.into_iter().collect()).collect();
        let homes = assign_on(&topology, &sets);
        for (set, home) in sets.iter().zip(&homes) {
            prop_assert!(set.contains(*home));
        }
        let distinct: CpuSet = homes.iter().copied().collect();
        prop_assert_eq!(distinct.len() == homes.len(), can_all_have_their_own(&sets));
    }

    /// No seat can move to a CPU with two seats less: then no chain of moves can help either.
    #[test]
    fn loads_are_even(
        sets in prop::collection::vec(prop::collection::btree_set(0u32..8, 1..6), 1..60)
    ) {
        let topology = machine(1, 1, 8, 1).build();
        let sets: Vec<CpuSet> = sets.into_iter().map(|set| set.into_iter().collect()).collect();
        let homes = assign_on(&topology, &sets);
        let at = |cpu| homes.iter().filter(|home| **home == cpu).count();
        for (set, home) in sets.iter().zip(&homes) {
            for other in set.iter() {
                prop_assert!(at(other) + 1 >= at(*home));
            }
        }
    }
}
