//! The decision on the host, with vectors for maps.

use core::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::*;
use crate::abi::EVICTED;

/// A kernel made of vectors. A slot that is not `alive` cannot be selected.
#[derive(Default)]
struct Fake {
    cpu: u32,
    hash: u32,
    random: u32,
    turn: Cell<u32>,
    table: Vec<Row>,
    loads: Vec<Load>,
    alive: Vec<bool>,
    tried: RefCell<Vec<u32>>,
}

impl Kernel for Fake {
    fn cpu(&self) -> u32 {
        self.cpu
    }
    fn hash(&self) -> u32 {
        self.hash
    }
    fn random(&self) -> u32 {
        self.random
    }
    fn turn(&self) -> u32 {
        self.turn.replace(self.turn.get().wrapping_add(1))
    }
    fn row(&self, index: u32) -> Option<Row> {
        self.table.get(index as usize).copied()
    }
    fn load(&self, slot: u32) -> Option<Load> {
        self.loads.get(slot as usize).copied()
    }
    fn select(&self, slot: u32) -> bool {
        self.tried.borrow_mut().push(slot);
        self.alive.get(slot as usize).copied().unwrap_or(false)
    }
}

fn row(first: u32, second: u32) -> Row {
    Row { first, second }
}

fn config(policy: Policy, rows: u32, lanes: u32) -> Config {
    let view = View { policy: policy as u32, base: 0, rows, lanes };
    Config { abi: ABI_VERSION, views: [view, View::default()], ..Config::default() }
}

fn two_workers() -> Fake {
    Fake { table: vec![row(0, 1), row(1, 0)], alive: vec![true, true], ..Fake::default() }
}

fn selected(slot: u32, hit: Hit) -> Outcome {
    Outcome::Selected { slot, hit }
}

#[test]
fn each_cpu_gets_its_own_worker_in_one_call() {
    for cpu in 0..2 {
        let kernel = Fake { cpu, ..two_workers() };
        let outcome = decide(&kernel, &config(Policy::Cpu, 2, 1), Run::Packet);
        assert_eq!(outcome, selected(cpu, Hit::First));
        assert_eq!(*kernel.tried.borrow(), [cpu], "one helper call on the hot path");
    }
}

#[test]
fn a_zeroed_config_misses_and_calls_nothing() {
    let kernel = two_workers();
    assert_eq!(decide(&kernel, &Config::default(), Run::Packet), Outcome::Missed(Miss::NoConfig));
    assert!(kernel.tried.borrow().is_empty());
}

#[test]
fn a_view_without_rows_misses_under_every_policy() {
    for policy in [Policy::Cpu, Policy::Hash, Policy::Random, Policy::RoundRobin] {
        let outcome = decide(&two_workers(), &config(policy, 0, 0), Run::Packet);
        assert_eq!(outcome, Outcome::Missed(Miss::NoRow), "{policy:?}");
    }
}

#[test]
fn a_cpu_beyond_the_table_misses() {
    let kernel = Fake { cpu: 2, ..two_workers() };
    let outcome = decide(&kernel, &config(Policy::Cpu, 2, 1), Run::Packet);
    assert_eq!(outcome, Outcome::Missed(Miss::NoRow));
}

#[test]
fn an_empty_row_misses() {
    let kernel = Fake { table: vec![Row::EMPTY], ..two_workers() };
    let outcome = decide(&kernel, &config(Policy::Cpu, 1, 1), Run::Packet);
    assert_eq!(outcome, Outcome::Missed(Miss::EmptyRow));
}

#[test]
fn a_dead_first_choice_falls_to_the_second() {
    let kernel = Fake { alive: vec![false, true], ..two_workers() };
    let outcome = decide(&kernel, &config(Policy::Cpu, 2, 1), Run::Packet);
    assert_eq!(outcome, selected(1, Hit::Second));
}

#[test]
fn two_dead_choices_leave_it_to_the_kernel() {
    let kernel = Fake { alive: vec![false, false], ..two_workers() };
    let outcome = decide(&kernel, &config(Policy::Cpu, 2, 1), Run::Packet);
    assert_eq!(outcome, Outcome::Missed(Miss::NoSocket));
    assert_eq!(*kernel.tried.borrow(), [0, 1]);
}

#[test]
fn a_lone_dead_choice_is_not_followed_by_a_call_with_no_slot() {
    let kernel = Fake { table: vec![row(0, NO_SLOT)], alive: vec![false], ..Fake::default() };
    let outcome = decide(&kernel, &config(Policy::Cpu, 1, 1), Run::Packet);
    assert_eq!(outcome, Outcome::Missed(Miss::NoSocket));
    assert_eq!(*kernel.tried.borrow(), [0]);
}

#[test]
fn spills_only_over_the_limit_and_only_to_one_with_room() {
    let free = Load::default();
    let at = Load { pending: 4, limit: 4 };
    let over = Load { pending: 5, limit: 4 };
    let evicted = Load { pending: 0, limit: EVICTED };
    let evicted_beside_a_limit = Load { pending: 3, limit: EVICTED | 4 };
    for (loads, expected) in [
        ([at, free], selected(0, Hit::First)),
        ([over, free], selected(1, Hit::Spilled)),
        ([over, over], selected(0, Hit::First)),
        ([evicted, free], selected(1, Hit::Spilled)),
        ([evicted_beside_a_limit, at], selected(1, Hit::Spilled)),
        ([free, evicted], selected(0, Hit::First)),
        ([over, evicted], selected(0, Hit::First)),
        ([evicted, over], selected(1, Hit::Spilled)),
        ([evicted, evicted], selected(0, Hit::First)),
    ] {
        let kernel = Fake { loads: loads.to_vec(), ..two_workers() };
        assert_eq!(decide(&kernel, &config(Policy::Cpu, 2, 1), Run::Packet), expected);
    }
}

#[test]
fn a_spill_to_a_dead_second_comes_back_to_the_first() {
    let kernel = Fake {
        loads: vec![Load { pending: 5, limit: 4 }, Load::default()],
        alive: vec![true, false],
        ..two_workers()
    };
    let outcome = decide(&kernel, &config(Policy::Cpu, 2, 1), Run::Packet);
    assert_eq!(outcome, selected(0, Hit::First));
}

#[test]
fn a_migration_ignores_the_closing_processs_cpu() {
    let slots: Vec<_> = [0, u32::MAX]
        .into_iter()
        .map(|hash| {
            let kernel = Fake { cpu: 1, hash, ..two_workers() };
            decide(&kernel, &config(Policy::Cpu, 2, 1), Run::Migration)
        })
        .collect();
    assert_eq!(slots, [selected(0, Hit::Migrated), selected(1, Hit::Migrated)]);
}

#[test]
fn round_robin_visits_every_row_once_per_turn() {
    let kernel = two_workers();
    let config = config(Policy::RoundRobin, 2, 1);
    let slots: Vec<_> = (0..4).map(|_| decide(&kernel, &config, Run::Packet)).collect();
    assert_eq!(slots, [0, 1, 0, 1].map(|slot| selected(slot, Hit::First)));
}

#[test]
fn the_active_view_is_the_one_that_counts() {
    let mut config = config(Policy::Cpu, 2, 1);
    config.views[1] = View { policy: Policy::Cpu as u32, base: 2, rows: 2, lanes: 1 };
    config.active = 1;
    let kernel = Fake { table: vec![row(0, 1), row(0, 1), row(1, 0), row(1, 0)], ..two_workers() };
    assert_eq!(decide(&kernel, &config, Run::Packet), selected(1, Hit::First));
}

proptest! {
    /// Whatever the maps hold, a decision ends, tries two slots at most, and only slots of its row.
    #[test]
    fn never_leaves_its_row(
        words in any::<[u32; 8]>(),
        policy in 0u32..6,
        rows in 0u32..2000,
        lanes in 0u32..70,
        migrating in any::<bool>(),
        entries in prop::collection::vec((0u32..8, 0u32..8), 0..64),
        alive in prop::collection::vec(any::<bool>(), 0..8),
        loads in prop::collection::vec((0u32..4, 0u32..4), 0..8),
    ) {
        let kernel = Fake {
            cpu: words[0] % 2048,
            hash: words[1],
            random: words[2],
            turn: Cell::new(words[3]),
            table: entries.iter().map(|&(first, second)| row(first, second)).collect(),
            loads: loads.iter().map(|&(pending, limit)| Load { pending, limit }).collect(),
            alive,
            tried: RefCell::default(),
        };
        let view = View { policy, base: words[4] % 64, rows, lanes };
        let config = Config {
            abi: ABI_VERSION, active: words[5], views: [view; 2], ..Config::default()
        };
        let run = if migrating { Run::Migration } else { Run::Packet };
        let outcome = decide(&kernel, &config, run);
        let tried = kernel.tried.borrow();
        prop_assert!(tried.len() <= 2);
        if let Outcome::Selected { slot, .. } = outcome {
            prop_assert_eq!(tried.last(), Some(&slot));
            prop_assert!(kernel.alive[slot as usize]);
        } else {
            prop_assert!(tried.iter().all(|&slot| !kernel.alive.get(slot as usize).is_some_and(|&a| a)));
        }
    }

    /// 1 to 1024 CPUs, one worker each: every CPU reaches its own worker.
    #[test]
    fn one_worker_per_cpu_is_exact(cpus in 1u32..=1024) {
        let table: Vec<_> = (0..cpus).map(|cpu| row(cpu, (cpu + 1) % cpus)).collect();
        let alive = vec![true; cpus as usize];
        let config = config(Policy::Cpu, cpus, 1);
        for cpu in 0..cpus {
            let kernel = Fake { cpu, table: table.clone(), alive: alive.clone(), ..Fake::default() };
            prop_assert_eq!(decide(&kernel, &config, Run::Packet), selected(cpu, Hit::First));
        }
    }

    /// `scale` stays in range and is monotonic: equal shares of the hash space.
    #[test]
    fn scale_is_in_range_and_monotonic(a in any::<u32>(), b in any::<u32>(), n in 1u32..5000) {
        prop_assert!(scale(a, n) < n);
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(scale(low, n) <= scale(high, n));
    }
}
