//! Named machines with known plans; `properties` has the rules for all of them.

use super::*;
use crate::topology::synthetic::machine;

mod properties;
mod roles;

/// Seats 0.. that may run on these CPUs, of normal weight.
fn seats<const N: usize>(cpus: [&str; N]) -> Vec<Seat> {
    let parse = |list: &str| list.parse().expect("a CPU list");
    let seat =
        |(slot, list)| Seat { slot, cpus: parse(list), weight: NORMAL_WEIGHT, role: Role::Active };
    (0..).zip(cpus).map(seat).collect()
}

fn weighted<const N: usize>(cpus: [(&str, u32); N]) -> Vec<Seat> {
    let mut seats = seats(cpus.map(|(list, _)| list));
    for (seat, (_, weight)) in seats.iter_mut().zip(cpus) {
        seat.weight = weight;
    }
    seats
}

fn plan_cpus(topology: &Topology, seats: Vec<Seat>) -> Plan {
    plan_hot(topology, seats, &[])
}

fn plan_hot(topology: &Topology, seats: Vec<Seat>, hot: &[Cpu]) -> Plan {
    let hot = hot.iter().copied().collect();
    plan(topology, &Request { policy: Policy::Cpu, seats, hot }).expect("a plan")
}

fn with_roles<const N: usize>(cpus: [(&str, Role); N]) -> Vec<Seat> {
    let mut seats = seats(cpus.map(|(list, _)| list));
    for (seat, (_, role)) in seats.iter_mut().zip(cpus) {
        seat.role = role;
    }
    seats
}

fn request(policy: Policy, seats: Vec<Seat>) -> Request {
    Request { policy, seats, hot: CpuSet::default() }
}

fn plan_hash(seats: Vec<Seat>) -> Plan {
    let topology = machine(1, 1, 2, 1).build();
    plan(&topology, &request(Policy::Hash, seats)).expect("a plan")
}

fn explained(plan: &Plan) -> Vec<String> {
    plan.rows_explained.iter().map(ToString::to_string).collect()
}

fn pairs(rows: &[Row]) -> Vec<(u32, u32)> {
    rows.iter().map(|row| (row.first, row.second)).collect()
}

fn entries(plan: &Plan) -> Vec<u32> {
    plan.seats.iter().map(|seat| seat.entries).collect()
}

#[test]
fn two_cpus_two_pinned() {
    let plan = plan_cpus(&machine(1, 1, 2, 1).build(), seats(["1", "0"]));
    assert_eq!((plan.rows, plan.lanes), (2, 1));
    assert_eq!(pairs(&plan.table), [(1, 0), (0, 1)]);
    assert_eq!(explained(&plan), ["cpu 0: slot 1 (pinned here)", "cpu 1: slot 0 (pinned here)"]);
    assert_eq!(plan.warnings, []);
    assert!(plan.seats.iter().all(|seat| seat.pinned && !seat.floating));
}

#[test]
fn four_cpus_two_workers_with_smt() {
    // CPUs 0 and 2, 1 and 3 are siblings.
    let plan = plan_cpus(&machine(1, 1, 2, 2).build(), seats(["0", "1"]));
    assert_eq!(pairs(&plan.table), [(0, 1), (1, 0), (0, 1), (1, 0)]);
    assert_eq!(
        explained(&plan),
        [
            "cpu 0: slot 0 (pinned here)",
            "cpu 1: slot 1 (pinned here)",
            "cpu 2: slot 0 (SMT sibling of cpu 0)",
            "cpu 3: slot 1 (SMT sibling of cpu 1)",
        ]
    );
    assert_eq!(plan.seats[0].cpus, CpuSet::from([0, 2]));
}

#[test]
fn eight_cpus_three_workers_share_what_is_left() {
    let plan = plan_cpus(&machine(1, 1, 8, 1).build(), seats(["0", "3", "7"]));
    // Two others are equally near: two entries per row, so that both stand in.
    assert_eq!(plan.lanes, 2);
    assert_eq!(pairs(plan.row(0)), [(0, 1), (0, 2)]);
    let owners: Vec<u32> = (0..8).map(|cpu| plan.row(cpu)[0].first).collect();
    assert_eq!(owners, [0, 0, 1, 1, 2, 0, 1, 2]);
    assert_eq!(explained(&plan)[1], "cpu 1: slot 0 (same LLC as cpu 0, fewest entries)");
}

#[test]
fn one_worker_has_no_second() {
    let plan = plan_cpus(&machine(1, 1, 2, 1).build(), seats(["1"]));
    assert_eq!(pairs(&plan.table), [(0, NO_SLOT), (0, NO_SLOT)]);
}

#[test]
fn workers_share_a_cpu_by_lanes() {
    let plan = plan_cpus(&machine(1, 1, 2, 1).build(), seats(["0", "0", "0", "1"]));
    assert_eq!(plan.lanes % 3, 0);
    let share = |slot| plan.row(0).iter().filter(|row| row.first == slot).count() as u32;
    assert_eq!([0, 1, 2].map(share), [plan.lanes / 3; 3]);
    // Neighbours on the CPU stand in for each other; the lone one's stand-ins take turns.
    assert_eq!(plan.rows_explained[0].seconds, [0, 1, 2]);
    assert_eq!(plan.rows_explained[1].seconds, [0, 1, 2]);
    assert_eq!(explained(&plan)[0], "cpu 0: slots 0 33.3%, 1 33.3%, 2 33.3% (pinned here)");
    let shared = PlanWarning::Shared { cpus: CpuSet::from([0]), most: 3 };
    assert_eq!(plan.warnings, [shared]);
}

#[test]
fn unpinned_workers_are_given_cpus() {
    let topology = machine(1, 1, 2, 2).build();
    let plan = plan_cpus(&topology, seats(["0-3", "", "1"]));
    let homes: Vec<_> = plan.seats.iter().map(|seat| seat.home).collect();
    assert_eq!(homes, [Some(0), Some(2), Some(1)]);
    assert!(plan.seats[0].floating && plan.seats[1].floating && !plan.seats[2].floating);
    assert_eq!(
        explained(&plan),
        [
            "cpu 0: slot 0 (placed here, not pinned)",
            "cpu 1: slot 2 (pinned here)",
            "cpu 2: slot 1 (placed here, not pinned)",
            "cpu 3: slot 2 (SMT sibling of cpu 1)",
        ]
    );
    assert_eq!(plan.warnings, [PlanWarning::NotPinned { slots: vec![0, 1] }]);
    let text = plan.warnings[0].to_string();
    assert_eq!(text, "slots 0, 1 may run on several CPUs: locality is a matter of luck; use --pin");
}

#[test]
fn a_worker_that_may_run_there_comes_before_a_nearer_one() {
    // CPUs 0 and 4 are siblings, but only slot 1's worker may run on 4.
    let plan = plan_cpus(&machine(1, 1, 4, 2).build(), seats(["0", "1,4"]));
    assert_eq!(explained(&plan)[4], "cpu 4: slot 1 (may run here, placed on cpu 1)");
    assert_eq!(plan.warnings, [PlanWarning::NotPinned { slots: vec![1] }]);
}

#[test]
fn sparse_ids_and_offline_cpus() {
    // Possible 0, 2, 4, 6; 4 offline; the worker of slot 2 may run there only.
    let topology = machine(1, 1, 4, 1).renumber(|id| id * 2).offline(&CpuSet::from([4])).build();
    let plan = plan_cpus(&topology, seats(["0", "2", "4"]));
    assert_eq!(plan.rows, 7);
    assert!(plan.table.iter().all(|row| row.first != NO_SLOT && row.second != NO_SLOT));
    assert_eq!(
        explained(&plan),
        [
            "cpu 0: slot 0 (pinned here)",
            "cpu 2: slot 1 (pinned here)",
            "cpu 4 (offline): slot 2 (may run here, placed on cpu 6)",
            "cpu 6: slot 2 (placed here, not pinned)",
        ]
    );
    assert_eq!(plan.warnings, [PlanWarning::Offline { slots: vec![2] }]);
    assert!(!plan.seats[2].pinned && plan.seats[2].floating);
    assert_eq!(plan.seats[2].cpus, CpuSet::from([6]));
}

#[test]
fn a_vm_with_many_cpus_that_never_come() {
    let topology = machine(1, 1, 240, 1).offline(&(2..240).collect()).build();
    let plan = plan_cpus(&topology, seats(["0", "1"]));
    assert_eq!((plan.rows, plan.lanes), (240, 1));
    assert_eq!(entries(&plan), [120, 120]);
}

#[test]
fn what_a_light_worker_leaves_goes_to_the_others() {
    let topology = machine(1, 1, 4, 1).build();
    let plan = plan_cpus(&topology, weighted([("0", 50), ("1", 100), ("2", 100), ("3", 100)]));
    let row = &plan.rows_explained[0];
    assert_eq!(row.shares[0], Share { slot: 0, entries: plan.lanes / 2 });
    let rest: Vec<u32> = row.shares[1..].iter().map(|share| share.entries).collect();
    assert_eq!(rest.len(), 3);
    assert!(rest.iter().max() <= rest.iter().min().map(|least| least + 1).as_ref(), "{rest:?}");
    assert_eq!(plan.rows_explained[1].shares, [Share { slot: 1, entries: plan.lanes }]);
}

#[test]
fn weights_on_one_cpu_and_between_cpus() {
    let one = machine(1, 1, 1, 1).build();
    let plan = plan_cpus(&one, weighted([("", 200), ("", 100), ("", 50), ("", 0)]));
    assert_eq!(entries(&plan).iter().map(|n| n * 7 / plan.lanes).collect::<Vec<_>>(), [4, 2, 1, 0]);
    assert_eq!(plan.seats[3].home, None);
    assert!(plan.warnings.iter().all(|w| matches!(w, PlanWarning::Shared { .. })));

    // Twice the weight, twice the CPUs that are nobody's: 1 + 10 and 1 + 5 of 17 rows.
    let machine = machine(1, 1, 17, 1).build();
    let plan = plan_cpus(&machine, weighted([("0", 200), ("1", 100)]));
    assert_eq!(entries(&plan).iter().map(|n| n / plan.lanes).collect::<Vec<_>>(), [11, 6]);
}

#[test]
fn no_weight_is_second_only_where_nobody_else_is() {
    let topology = machine(1, 1, 2, 1).build();
    let plan = plan_cpus(&topology, weighted([("0", 100), ("1", 0)]));
    assert_eq!(pairs(&plan.table), [(0, 1), (0, 1)]);
    let plan = plan_cpus(&topology, weighted([("0", 100), ("1", 0), ("1", 100)]));
    assert_eq!(pairs(&plan.table), [(0, 2), (2, 0)]);
    let plan = plan_hash(weighted([("0", 100), ("1", 0)]));
    assert_eq!(pairs(&plan.table), [(0, 1)]);
}

#[test]
fn hash_cycles_through_all() {
    let plan = plan_hash(seats(["", "", ""]));
    assert_eq!(plan.lanes, 1);
    assert_eq!(pairs(&plan.table), [(0, 1), (1, 2), (2, 0), (0, 2), (1, 0), (2, 1)]);
    assert_eq!(plan.rows_explained, []);

    let plan = plan_hash(weighted([("", 200), ("", 100), ("", 100)]));
    let firsts: Vec<u32> = plan.table.iter().map(|row| row.first).collect();
    assert_eq!(firsts[..4], [0, 1, 2, 0]);
    assert_eq!(firsts.len() % 4, 0);
    assert_eq!(pairs(&plan_hash(seats([""])).table), [(0, NO_SLOT)]);
}

#[test]
fn hash_bounds_its_table() {
    let plan = plan_hash(weighted([("", 1), ("", u32::MAX), ("", 4_000_000_007)]));
    assert!(plan.rows <= 1 << 16);
    assert!(plan.seats.iter().all(|seat| seat.entries > 0));
}

#[test]
fn thousands_of_workers_on_two_cpus() {
    let topology = machine(1, 1, 2, 1).build();
    for workers in [300, 5000] {
        let seats: Vec<Seat> = (0..workers)
            .map(|slot| Seat { slot, cpus: CpuSet::default(), ..seats([""]).remove(0) })
            .collect();
        let plan = plan_cpus(&topology, seats);
        let all = entries(&plan);
        assert!(all.iter().all(|n| *n == all[0] && *n > 0), "equal shares");
        assert!(plan.rows * plan.lanes <= MAX_ENTRIES);
    }
}

#[test]
fn refuses_what_has_no_plan() {
    let topology = machine(1, 1, 2, 1).build();
    let error = |topology: &Topology, policy, seats| {
        plan(topology, &request(policy, seats)).expect_err("no plan")
    };
    for policy in [Policy::Cpu, Policy::Hash, Policy::Random, Policy::RoundRobin] {
        assert_eq!(error(&topology, policy, vec![]), PlanError::NoSeats);
        assert_eq!(error(&topology, policy, weighted([("0", 0)])), PlanError::NoWeight);
        let twins = [seats(["0"]), seats(["1"])].concat();
        assert_eq!(error(&topology, policy, twins), PlanError::DuplicateSlot(0));
        let mut reserved = seats(["0"]);
        reserved[0].slot = NO_SLOT;
        assert_eq!(error(&topology, policy, reserved), PlanError::ReservedSlot);
    }
    let dark = machine(1, 1, 2, 1).offline(&CpuSet::from([0, 1])).build();
    assert_eq!(error(&dark, Policy::Cpu, seats(["0"])), PlanError::NoCpu);

    let large = machine(1, 1, 1024, 1).build();
    let crowd = (0..1025).map(|slot| Seat { slot, ..seats(["7"]).remove(0) }).collect();
    let refused = error(&large, Policy::Cpu, crowd);
    let expected = PlanError::TooCrowded { cpu: 7, workers: 1025, most: 1024, rows: 1024 };
    assert_eq!(refused, expected);
}

#[test]
fn json_says_what_people_need() {
    let plan = plan_cpus(&machine(1, 1, 2, 1).build(), seats(["0", "0-1"]));
    let json = serde_json::to_value(&plan).expect("JSON");
    assert_eq!(json["policy"], "cpu");
    assert_eq!(json["seats"][1]["home"], 1);
    assert_eq!(json["rows_explained"][0]["why"], "pinned");
    assert_eq!(json["warnings"][0]["not_pinned"]["slots"][0], 1);
    assert!(json.get("table").is_none());
}
