use super::super::test::{counted, group, listener, snapshot};
use super::*;
use crate::model::Served;

fn two() -> GroupStatus {
    group(vec![listener(10, Some(0), 0), listener(11, Some(1), 1)])
}

/// Two seconds apart.
fn rates(then: GroupStatus, now: GroupStatus) -> GroupRates {
    let rates = Rates::between(&snapshot(5, vec![then]), &snapshot(7, vec![now])).unwrap();
    assert_eq!(rates.elapsed, Duration::from_secs(2));
    rates.groups.into_iter().next().unwrap()
}

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-9
}

#[test]
fn what_grew_is_divided_by_the_time() {
    let then = counted(two(), &[(0, 0, 100), (1, 1, 50)]);
    let now = counted(two(), &[(0, 0, 300), (0, 1, 20), (1, 1, 50)]);
    let rates = rates(then, now);
    assert_eq!(rates.slots, BTreeMap::from([(0, 100.0), (1, 10.0)]));
    assert_eq!(rates.cpus, BTreeMap::from([(0, 110.0)]));
    assert!(close(rates.paths.first, 110.0) && close(rates.paths.runs(), 110.0), "{rates:?}");
    assert!(close(rates.local.unwrap(), 200.0 / 220.0), "{rates:?}");
}

#[test]
fn a_slot_that_another_listener_took_counts_from_zero() {
    // Fewer than before, and more than before: both began at 0.
    for counted_since in [30, 1000] {
        let then = counted(two(), &[(0, 0, 100), (1, 1, 50)]);
        let now = group(vec![listener(12, Some(0), 0), listener(11, Some(1), 1)]);
        let now = counted(now, &[(0, 0, counted_since), (1, 1, 60)]);
        let rates = rates(then, now);
        let first = counted_since as f64 / 2.0;
        assert_eq!(rates.slots, BTreeMap::from([(0, first), (1, 5.0)]));
        assert!(close(rates.paths.first, first + 5.0), "{rates:?}");
    }
}

#[test]
fn a_slot_that_fell_vacant_keeps_what_it_counted() {
    let then = counted(two(), &[(0, 0, 100), (1, 1, 50)]);
    let now = group(vec![listener(11, Some(1), 1)]);
    let now = counted(now, &[(0, 0, 104), (1, 1, 50)]);
    let rates = rates(then, now);
    assert_eq!(rates.slots, BTreeMap::from([(0, 2.0)]));
}

#[test]
fn a_renewal_begins_at_zero_everywhere() {
    let mut then = counted(two(), &[(0, 0, 10)]);
    then.steering.as_mut().unwrap().counters.no_row = 4;
    let mut now = counted(two(), &[(0, 0, 12)]);
    let steering = now.steering.as_mut().unwrap();
    (steering.program_id, steering.counters.no_row) = (8, 6);
    let rates = rates(then, now);
    assert_eq!(rates.slots, BTreeMap::from([(0, 6.0)]));
    assert!(close(rates.paths.missed, 3.0), "{rates:?}");
}

#[test]
fn counters_that_fell_unseen_count_from_zero() {
    // The slot was taken and given back to the same listener between the two looks.
    let then = counted(two(), &[(0, 0, 100), (1, 1, 50)]);
    let now = counted(two(), &[(0, 0, 8), (1, 1, 50)]);
    let rates = rates(then, now);
    assert_eq!(rates.slots, BTreeMap::from([(0, 4.0)]));
    assert!(close(rates.paths.first, 4.0), "{rates:?}");
}

#[test]
fn locality_is_known_only_where_workers_are_pinned_and_rows_are_cpus() {
    let then = counted(two(), &[]);
    let mut now = counted(two(), &[(0, 0, 10), (0, 1, 10)]);
    assert!(close(rates(then.clone(), now.clone()).local.unwrap(), 0.5));
    now.steering.as_mut().unwrap().policy = Some("hash");
    assert_eq!(rates(then.clone(), now.clone()).local, None);
    now.steering.as_mut().unwrap().policy = Some("cpu");
    let Served::By(workers) = &mut now.listeners[0].listener.served else { unreachable!() };
    workers[0].cpus.insert(1);
    assert_eq!(rates(then.clone(), now).local, None);
    assert_eq!(rates(then.clone(), then).local, None, "nothing happened");
}

#[test]
fn there_are_no_rates_without_two_moments() {
    let at = |seconds| snapshot(seconds, vec![two()]);
    assert!(Rates::between(&at(5), &at(5)).is_none());
    assert!(Rates::between(&at(6), &at(5)).is_none());
    // A group that was not there, or not steered, has none; the others have.
    let mut unsteered = two();
    unsteered.steering = None;
    let rates = Rates::between(&snapshot(1, vec![unsteered]), &at(2)).unwrap();
    assert_eq!(rates.groups, []);
    let rates = Rates::between(&snapshot(1, Vec::new()), &at(2)).unwrap();
    assert_eq!(rates.groups, []);
}
