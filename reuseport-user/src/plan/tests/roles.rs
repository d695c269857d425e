//! Who stands by, who was drained, and whose row is hot.

use super::*;
use Role::{Active, Drained, Standby};

#[test]
fn the_superseded_are_second_where_they_were_first() {
    let topology = machine(1, 1, 4, 1).build();
    let old_and_new = [
        ("0", Standby),
        ("1", Standby),
        ("0", Active),
        ("1", Active),
        ("2", Active),
        ("3", Active),
    ];
    let plan = plan_cpus(&topology, with_roles(old_and_new));
    for (row, old) in [(0, 0), (1, 1)] {
        let entries = plan.row(row);
        assert!(entries.iter().all(|it| (it.first, it.second) == (old + 2, old)), "{entries:?}");
    }
    // Nobody stood there before: the others take turns, and who stands by is not among them.
    assert_eq!(plan.rows_explained[2].seconds, [2, 3, 5]);
    assert_eq!(entries(&plan)[..2], [0, 0]);
    assert_eq!(
        (plan.seats[0].role, plan.seats[0].weight, plan.seats[0].home),
        (Standby, 100, None)
    );
}

#[test]
fn the_superseded_serve_where_nobody_else_can() {
    let topology = machine(1, 1, 2, 1).build();
    let plan = plan_cpus(&topology, with_roles([("0", Standby), ("1", Standby), ("1", Drained)]));
    assert_eq!(pairs(&plan.table), [(0, 1), (1, 0)]);
    // Nor can one without weight.
    let mut seats = with_roles([("0", Standby), ("1", Active)]);
    seats[1].weight = 0;
    assert_eq!(pairs(&plan_cpus(&topology, seats.clone()).table), [(0, 1), (0, 1)]);
    assert_eq!(pairs(&plan_hash(seats).table), [(0, 1)]);
}

#[test]
fn the_drained_are_in_no_entry() {
    let topology = machine(1, 1, 2, 1).build();
    let seats = with_roles([("0", Drained), ("1", Active)]);
    assert_eq!(pairs(&plan_cpus(&topology, seats.clone()).table), [(1, NO_SLOT), (1, NO_SLOT)]);
    assert_eq!(pairs(&plan_hash(seats).table), [(1, NO_SLOT)]);
    let seats = with_roles([("0", Drained), ("1", Active), ("0", Active), ("1", Standby)]);
    assert_eq!(pairs(&plan_cpus(&topology, seats.clone()).table), [(2, 1), (1, 3)]);
    let slots: Vec<_> = plan_hash(seats).table.iter().map(|row| row.first).collect();
    assert_eq!(slots, [1, 2]);
    for policy in [Policy::Cpu, Policy::Hash] {
        let all = request(policy, with_roles([("0", Drained), ("1", Drained)]));
        assert_eq!(plan(&topology, &all), Err(PlanError::NoWeight));
    }
}

#[test]
fn a_second_that_stands_by_comes_before_one_without_weight() {
    let topology = machine(1, 1, 2, 1).build();
    let mut seats = with_roles([("0", Active), ("1", Active), ("1", Standby), ("0", Standby)]);
    seats[0].weight = 0;
    seats[3].weight = 0;
    assert_eq!(pairs(&plan_cpus(&topology, seats.clone()).table), [(1, 2), (1, 2)]);
    assert_eq!(pairs(&plan_hash(seats).table), [(1, 2)]);
}

#[test]
fn a_hot_row_is_everybodys() {
    let topology = machine(1, 1, 4, 1).build();
    let plan = plan_hot(&topology, seats(["0", "1", "2", "3"]), &[1, 77]);
    assert_eq!(
        explained(&plan),
        [
            "cpu 0: slot 0 (pinned here)",
            "cpu 1: slots 0 25%, 1 25%, 2 25%, 3 25% (hot, shared by all)",
            "cpu 2: slot 2 (pinned here)",
            "cpu 3: slot 3 (pinned here)",
        ]
    );
    assert_eq!(plan.seats[0].cpus, CpuSet::from([0, 1]));
    // Each has another for its second choice.
    assert!(plan.row(1).iter().all(|row| row.second != NO_SLOT && row.second != row.first));
    assert_eq!(plan_hot(&topology, seats(["0", "1", "2", "3"]), &[77]).lanes, 3, "no such row");
    let json = serde_json::to_value(&plan).expect("JSON");
    assert_eq!(json["rows_explained"][1]["why"], "widened");
    assert_eq!(json["seats"][1]["role"], "active");
}

/// More workers than a row has entries: the hot rows take turns.
#[test]
fn hot_rows_of_more_workers_than_entries() {
    let topology = machine(1, 1, 512, 1).build();
    let all: Vec<Seat> = (0..512)
        .map(|slot| Seat { slot, cpus: CpuSet::from([slot]), ..seats([""]).remove(0) })
        .collect();
    let plan = plan_hot(&topology, all, &[0, 1, 2, 3]);
    let hot = (0..4).flat_map(|cpu| plan.row(cpu));
    let mut firsts: Vec<u32> = hot.map(|row| row.first).collect();
    firsts.sort_unstable();
    assert_eq!(plan.lanes, USUAL_LANES);
    assert_eq!(firsts, (0..512).collect::<Vec<_>>());
}
