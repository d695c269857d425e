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
    let role =
        prop_oneof![6 => Just(Role::Active), 1 => Just(Role::Standby), 1 => Just(Role::Drained)];
    let seat = (cpus, weight, role);
    prop::collection::vec(seat, 1..80).prop_map(|seats| {
        let seat = |(slot, (cpus, weight, role))| Seat { slot, cpus, weight, role };
        // Slots need neither be dense nor come in order.
        (0u32..).map(|n| 999 - n * 3).zip(seats).map(seat).collect()
    })
}

/// Pinned, of normal weight.
fn one(slot: u32, cpu: u32) -> Seat {
    Seat { slot, cpus: CpuSet::from([cpu]), weight: NORMAL_WEIGHT, role: Role::Active }
}

fn count(entries: &[Row], slot: u32) -> u32 {
    entries.iter().filter(|row| row.first == slot).count() as u32
}

/// Weights of the seats that take part, by slot: the active ones, or those that stand by where no
/// active one can.
fn live(seats: &[Seat]) -> BTreeMap<u32, u32> {
    let of = |role| -> BTreeMap<u32, u32> {
        let seats = seats.iter().filter(|seat| seat.role == role && seat.weight > 0);
        seats.map(|seat| (seat.slot, seat.weight)).collect()
    };
    let active = of(Role::Active);
    if active.is_empty() { of(Role::Standby) } else { active }
}

/// What holds for every policy.
fn check_table(plan: &Plan, seats: &[Seat]) -> Result<(), TestCaseError> {
    let live = live(seats);
    let role: BTreeMap<u32, Role> = seats.iter().map(|seat| (seat.slot, seat.role)).collect();
    let usable = seats.iter().filter(|seat| seat.role != Role::Drained).count();
    prop_assert_eq!(plan.table.len() as u32, plan.rows * plan.lanes);
    prop_assert!(plan.table.len() as u32 <= MAX_ENTRIES);
    for row in &plan.table {
        prop_assert!(live.contains_key(&row.first), "first choices take part");
        prop_assert_ne!(row.first, row.second);
        prop_assert_eq!(row.second == NO_SLOT, usable == 1);
        if row.second != NO_SLOT {
            prop_assert_ne!(role[&row.second], Role::Drained);
            let stands_by = role[&row.second] == Role::Standby;
            prop_assert!(live.len() == 1 || stands_by || live.contains_key(&row.second));
        }
    }
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for row in &plan.table {
        *counts.entry(row.first).or_default() += 1;
    }
    for seat in &plan.seats {
        prop_assert_eq!(seat.entries, counts.get(&seat.slot).copied().unwrap_or(0));
        prop_assert_eq!(seat.entries > 0, live.contains_key(&seat.slot), "slot {}", seat.slot);
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
            Why::Widened => prop_assert!(false, "nothing is hot"),
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
        prop_assume!(!live(&seats).is_empty());
        let request = request(Policy::Cpu, seats);
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
        prop_assume!(!live(&seats).is_empty());
        let topology = machine(1, 1, 4, 1).build();
        for policy in [Policy::Hash, Policy::Random, Policy::RoundRobin] {
            let made = plan(&topology, &request(policy, seats.clone())).expect("a plan");
            check_table(&made, &seats)?;
            let live = live(&seats);
            let sum: f64 = live.values().copied().map(f64::from).sum();
            for seat in &made.seats {
                let due = live.get(&seat.slot).map_or(0.0, |weight| f64::from(*weight)) / sum;
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
            (0..).zip(pinned).map(|(slot, cpu)| one(slot, cpu)).collect();
        prop_assume!(!seats.is_empty());
        let plan = plan_cpus(&topology, seats);
        let rows: Vec<u32> = entries(&plan).iter().map(|n| n / plan.lanes).collect();
        prop_assert_eq!(rows.iter().sum::<u32>(), cpus);
        prop_assert!(rows.iter().max() <= rows.iter().min().map(|least| least + 1).as_ref());
    }

    /// Widening evens out the hot rows, as finely as they can be divided, and leaves the others
    /// where they were.
    #[test]
    fn hot_rows_are_shared_and_the_others_stay(
        topology in topologies(),
        seats in some_seats(),
        hot in prop::collection::vec(0u32..1024, 1..8),
    ) {
        prop_assume!(!live(&seats).is_empty());
        let calm = plan_cpus(&topology, seats.clone());
        let made = plan_hot(&topology, seats.clone(), &hot);
        check_table(&made, &seats)?;
        let live = live(&seats);
        let mut hot_entries = Vec::new();
        for (row, before) in made.rows_explained.iter().zip(&calm.rows_explained) {
            if hot.contains(&row.cpu) {
                prop_assert_eq!(row.why, Why::Widened);
                hot_entries.extend(made.row(row.cpu));
                continue;
            }
            // Other lanes round otherwise, and whoever has fewest then may be another.
            match (row.why, before.why) {
                (Why::Nearest { distance, .. }, Why::Nearest { distance: was, .. }) => {
                    prop_assert_eq!(distance, was);
                }
                (why, was) if made.lanes == calm.lanes => prop_assert_eq!(why, was),
                _ => {}
            }
        }
        // For its weight nobody is ahead of anybody by more than one entry.
        let per_weight =
            |slot, weight, less| f64::from(count(&hot_entries, slot) - less) / f64::from(weight);
        let named = live.iter().filter(|(slot, _)| count(&hot_entries, **slot) > 0);
        let most = named.map(|(slot, weight)| per_weight(*slot, *weight, 1)).fold(0.0, f64::max);
        for (slot, weight) in &live {
            prop_assert!(per_weight(*slot, *weight, 0) >= most - 1e-6, "slot {}", slot);
        }
    }

    /// A dead worker's load falls on several, where several are equally near.
    #[test]
    fn a_dead_ones_load_is_spread(workers in 3u32..64) {
        let topology = machine(1, 1, workers, 1).build();
        let plan = plan_cpus(&topology, (0..workers).map(|slot| one(slot, slot)).collect());
        for row in &plan.rows_explained {
            prop_assert_eq!(row.seconds.len() as u32, SPREAD.min(workers - 1));
        }
        let mut stands_in = vec![0; workers as usize];
        plan.table.iter().for_each(|row| stands_in[row.second as usize] += 1);
        let (most, least) = (stands_in.iter().max(), stands_in.iter().min());
        prop_assert!(most <= least.map(|least| least + 2).as_ref(), "{stands_in:?}");
    }
}
