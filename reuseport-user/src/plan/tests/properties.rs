//! Rules that hold for every machine and all seats.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Up to 1024 CPUs, some offline (never all), ids with holes.
fn topologies() -> impl Strategy<Value = Topology> {
    let shape = (1u32..=4, 1u32..=4, 1u32..=16, 1u32..=4);
    (shape, 0u32..8, 1u32..=3).prop_map(|((nodes, llcs, cores, threads), dark, stride)| {
        let topology = machine(nodes, llcs, cores, threads).renumber(|id| id * stride);
        let offline = |id: &u32| dark > 0 && *id > 0 && (id * 7919 / stride) % 8 < dark;
        let ids = (0..nodes * llcs * cores * threads).map(|id| id * stride);
        topology.offline(&ids.filter(offline).collect()).build()
    })
}

/// Seats with sets of every kind: none, all, one CPU, a range, a few; some ids do not exist.
fn some_seats() -> impl Strategy<Value = Vec<Seat>> {
    let cpus = prop_oneof![
        Just(CpuSet::default()),
        Just((0..4096).collect()),
        (0u32..64).prop_map(|cpu| CpuSet::from([cpu])),
        (0u32..1024, 1u32..64).prop_map(|(from, len)| (from..from + len).collect()),
        prop::collection::vec(0u32..64, 1..6).prop_map(|cpus| cpus.into_iter().collect()),
    ];
    let weight = prop_oneof![6 => Just(100u32), 1 => Just(0), 2 => 1u32..400];
    let seat = (cpus, weight);
    prop::collection::vec(seat, 1..80).prop_map(|seats| {
        let seat = |(slot, (cpus, weight))| Seat { slot, cpus, weight };
        // Slots need neither be dense nor come in order.
        (0u32..).map(|n| 999 - n * 3).zip(seats).map(seat).collect()
    })
}

fn count(entries: &[Row], slot: u32) -> u32 {
    entries.iter().filter(|row| row.first == slot).count() as u32
}

/// What holds for every policy.
fn check_table(plan: &Plan, seats: &[Seat]) -> Result<(), TestCaseError> {
    let weights: BTreeMap<u32, u32> = seats.iter().map(|seat| (seat.slot, seat.weight)).collect();
    let live = seats.iter().filter(|seat| seat.weight > 0).count();
    prop_assert_eq!(plan.table.len() as u32, plan.rows * plan.lanes);
    prop_assert!(plan.table.len() as u32 <= MAX_ENTRIES);
    for row in &plan.table {
        prop_assert!(weights[&row.first] > 0, "first choices take part");
        prop_assert_ne!(row.first, row.second);
        prop_assert_eq!(row.second == NO_SLOT, seats.len() == 1);
        prop_assert!(live == 1 || weights[&row.second] > 0, "second choices take part");
    }
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for row in &plan.table {
        *counts.entry(row.first).or_default() += 1;
    }
    for seat in &plan.seats {
        prop_assert_eq!(seat.entries, counts.get(&seat.slot).copied().unwrap_or(0));
        prop_assert_eq!(seat.entries > 0, weights[&seat.slot] > 0, "slot {}", seat.slot);
    }
    Ok(())
}

/// Homes are where the workers may run, and their rows are divided by weight.
fn check_homes(plan: &Plan, topology: &Topology, seats: &[Seat]) -> Result<(), TestCaseError> {
    let online = topology.online();
    let by_slot: BTreeMap<u32, &Seat> = seats.iter().map(|seat| (seat.slot, seat)).collect();
    let homes: BTreeSet<u32> = plan.seats.iter().filter_map(|seat| seat.home).collect();
    for home in &homes {
        let tenants = || plan.seats.iter().filter(|seat| seat.home == Some(*home));
        let sum: u32 = tenants().map(|seat| seat.weight).sum();
        let whole = if homes.len() > 1 { sum.max(100) } else { sum };
        let row = plan.row(*home);
        for seat in tenants() {
            let cpus = by_slot[&seat.slot].cpus.intersection(&online);
            prop_assert!(online.contains(*home));
            prop_assert!(cpus.is_empty() || cpus.contains(*home));
            let due = f64::from(seat.weight) * f64::from(plan.lanes) / f64::from(whole);
            let got = f64::from(count(row, seat.slot));
            // Each that is raised to one entry costs another at most one.
            let raised = tenants().filter(|s| s.weight * plan.lanes < whole).count();
            prop_assert!((got - due).abs() < 1.0 + raised as f64 + 1e-9, "{got} for {due}");
        }
        if sum >= 100 {
            let foreign = row.iter().find(|row| tenants().all(|seat| seat.slot != row.first));
            prop_assert_eq!(foreign, None);
        }
    }
    Ok(())
}

/// A row without owners goes to the nearest, or to one that may run there.
fn check_borrowers(plan: &Plan, topology: &Topology) -> Result<(), TestCaseError> {
    let homes: CpuSet = plan.seats.iter().filter_map(|seat| seat.home).collect();
    for row in &plan.rows_explained {
        let near = |home| topology.distance(row.cpu, home);
        let nearest = homes.iter().map(near).min();
        match row.why {
            Why::Pinned | Why::Placed => prop_assert!(homes.contains(row.cpu)),
            Why::MayRun { home } => prop_assert!(homes.contains(home)),
            Why::Nearest { distance, home, fewest } => {
                prop_assert_eq!(Some(distance), nearest);
                prop_assert_eq!(near(home), distance);
                prop_assert_eq!(fewest, homes.iter().filter(|h| near(*h) == distance).count() > 1);
            }
        }
        let owner = plan.seats.iter().find(|seat| seat.slot == row.shares[0].slot);
        prop_assert!(owner.is_some_and(|seat| seat.home.is_some()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cpu_plans_keep_the_rules(topology in topologies(), seats in some_seats()) {
        prop_assume!(seats.iter().any(|seat| seat.weight > 0));
        let request = Request { policy: Policy::Cpu, seats };
        let made = plan(&topology, &request).expect("a plan");
        prop_assert_eq!(made.rows, topology.rows());
        prop_assert_eq!(made.rows_explained.len(), topology.cpus().len());
        check_table(&made, &request.seats)?;
        check_homes(&made, &topology, &request.seats)?;
        check_borrowers(&made, &topology)?;

        let mut shuffled = request.clone();
        shuffled.seats.reverse();
        prop_assert_eq!(plan(&topology, &shuffled), Ok(made), "the order of seats does not matter");
    }

    #[test]
    fn other_plans_keep_the_rules(seats in some_seats()) {
        prop_assume!(seats.iter().any(|seat| seat.weight > 0));
        let topology = machine(1, 1, 4, 1).build();
        for policy in [Policy::Hash, Policy::Random, Policy::RoundRobin] {
            let made = plan(&topology, &Request { policy, seats: seats.clone() }).expect("a plan");
            check_table(&made, &seats)?;
            let sum: f64 = seats.iter().map(|seat| f64::from(seat.weight)).sum();
            for seat in &made.seats {
                let due = f64::from(seat.weight) / sum;
                let got = f64::from(seat.entries) / f64::from(made.rows);
                prop_assert!((due - got).abs() < 1e-3, "{got} for {due}");
            }
        }
    }

    /// One LLC, pinned workers of normal weight: nobody gets more than one row above another.
    #[test]
    fn equals_get_equally_many(cpus in 1u32..=1024, workers in prop::collection::btree_set(0u32..1024, 1..64)) {
        let topology = machine(1, 1, cpus, 1).build();
        let pinned = workers.into_iter().filter(|cpu| *cpu < cpus);
        let seats: Vec<Seat> =
            (0..).zip(pinned).map(|(slot, cpu)| Seat { slot, cpus: CpuSet::from([cpu]), weight: 100 }).collect();
        prop_assume!(!seats.is_empty());
        let plan = plan_cpus(&topology, seats);
        let rows: Vec<u32> = entries(&plan).iter().map(|n| n / plan.lanes).collect();
        prop_assert_eq!(rows.iter().sum::<u32>(), cpus);
        prop_assert!(rows.iter().max() <= rows.iter().min().map(|least| least + 1).as_ref());
    }

    /// A dead worker's load falls on several, where several are equally near.
    #[test]
    fn a_dead_ones_load_is_spread(workers in 3u32..64) {
        let topology = machine(1, 1, workers, 1).build();
        let seats = (0..workers).map(|slot| Seat { slot, cpus: CpuSet::from([slot]), weight: 100 });
        let plan = plan_cpus(&topology, seats.collect());
        for row in &plan.rows_explained {
            prop_assert_eq!(row.seconds.len() as u32, SPREAD.min(workers - 1));
        }
        let mut stands_in = vec![0; workers as usize];
        plan.table.iter().for_each(|row| stands_in[row.second as usize] += 1);
        let (most, least) = (stands_in.iter().max(), stands_in.iter().min());
        prop_assert!(most <= least.map(|least| least + 2).as_ref(), "{stands_in:?}");
    }
}
