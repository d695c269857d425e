//! Windows of loads, made up.

use proptest::prelude::*;

use super::*;

fn seconds(windows: u64) -> Duration {
    WINDOW * windows as u32
}

/// One worker per CPU.
fn homes(cpus: u32) -> Homes {
    (0..cpus).map(|cpu| vec![(cpu, 1.0)]).collect()
}

/// A window with these arrivals, and CPUs that are as busy as they have arrivals: 1000 is all.
fn window(arrivals: &[u64]) -> Window {
    let seat = |(slot, count): (u32, &u64)| SeatWindow {
        slot,
        weight: 100,
        full: false,
        waiting: if *count > 900 { 1.0 } else { 0.0 },
        busy: Some((*count as f64 / 1000.0).min(1.0)),
    };
    Window {
        span: WINDOW,
        arrivals: arrivals.to_vec(),
        seats: (0..).zip(arrivals).map(seat).collect(),
    }
}

/// As [`window`], with the work spread over all: what it looks like once rows are widened.
fn spread(arrivals: &[u64]) -> Window {
    let mean = arrivals.iter().sum::<u64>() / arrivals.len() as u64;
    let busy = window(&vec![mean; arrivals.len()]).seats;
    Window { seats: busy, ..window(arrivals) }
}

fn hot(skew: &Skew) -> Vec<Cpu> {
    skew.hot().iter().collect()
}

#[test]
fn skew_widens_after_three_windows_and_balance_narrows_after_the_hold() {
    let (mut skew, homes) = (Skew::default(), homes(2));
    for at in 1..3 {
        assert_eq!(skew.observe(seconds(at), &window(&[1000, 0]), &homes), []);
    }
    let shifts = skew.observe(seconds(3), &window(&[1000, 0]), &homes);
    assert_eq!(shifts, [Shift::Widened { cpu: 0, share: 1.0, slot: 0 }]);
    // It stays while all arrives there, though nobody is in distress any more.
    for at in 4..200 {
        assert_eq!(skew.observe(seconds(at), &spread(&[1000, 0]), &homes), [], "{at}");
    }
    let balanced = |at| skew.observe(seconds(at), &window(&[520, 480]), &homes);
    let narrowed = (200..).map(balanced).take(30).collect::<Vec<_>>();
    let at = narrowed.iter().position(|shifts| !shifts.is_empty()).unwrap();
    assert_eq!(at, 20, "2 s");
    assert!(skew.hot().is_empty());
}

#[test]
fn a_relapse_is_held_for_twice_as_long() {
    let (mut skew, homes) = (Skew::default(), homes(2));
    let (mut at, mut held) = (0, Vec::new());
    for _ in 0..9 {
        while hot(&skew).is_empty() {
            at += 1;
            skew.observe(seconds(at), &window(&[1000, 0]), &homes);
        }
        let since = at;
        while !hot(&skew).is_empty() {
            at += 1;
            skew.observe(seconds(at), &window(&[500, 500]), &homes);
        }
        held.push((at - since - 1) / 10);
    }
    assert_eq!(held, [2, 4, 8, 16, 32, 64, 120, 120, 120]);
}

#[test]
fn skew_that_overloads_nobody_is_left_alone() {
    for arrivals in [[600, 0], [9, 0]] {
        let (mut skew, homes) = (Skew::default(), homes(2));
        for at in 1..50 {
            assert_eq!(skew.observe(seconds(at), &window(&arrivals), &homes), []);
        }
    }
}

#[test]
fn a_saturated_cpu_is_not_relieved_by_another_that_is() {
    let (mut skew, homes) = (Skew::default(), homes(2));
    for at in 1..50 {
        let mut window = window(&[1000, 0]);
        window.seats[0].waiting = 0.3;
        window.seats[1].busy = Some(0.9);
        assert_eq!(skew.observe(seconds(at), &window, &homes), []);
    }
}

#[test]
fn nobody_is_relieved_by_one_whose_connections_wait() {
    let (mut skew, homes) = (Skew::default(), homes(2));
    for at in 1..50 {
        let mut window = window(&[1000, 300]);
        window.seats[1].waiting = 0.3;
        assert_eq!(skew.observe(seconds(at), &window, &homes), []);
    }
}

#[test]
fn a_full_queue_widens_at_once() {
    // The other has all the work while its neighbour is evicted.
    let mut window = window(&[1000, 0]);
    window.seats[0].full = true;
    window.seats[1].busy = Some(1.0);
    let shifts = Skew::default().observe(seconds(1), &window, &homes(2));
    assert!(matches!(shifts[..], [Shift::Widened { cpu: 0, slot: 0, .. }]), "{shifts:?}");
}

#[test]
fn what_waits_decides_whatever_else_the_cpus_do() {
    for busy in [None, Some(1.0)] {
        let (mut skew, homes) = (Skew::default(), homes(2));
        for at in 1..5 {
            let mut window = window(&[1000, 0]);
            window.seats.iter_mut().for_each(|seat| seat.busy = busy);
            skew.observe(seconds(at), &window, &homes);
        }
        assert_eq!(hot(&skew), [0]);
    }
}

#[test]
fn a_row_whose_traffic_fades_is_narrowed() {
    let (mut skew, homes) = (Skew::default(), homes(2));
    (1..4).for_each(|at| drop(skew.observe(seconds(at), &window(&[1000, 0]), &homes)));
    assert_eq!(hot(&skew), [0]);
    (4..40).for_each(|at| drop(skew.observe(seconds(at), &spread(&[400, 0]), &homes)));
    assert!(skew.hot().is_empty());
}

#[test]
fn a_row_is_not_given_back_to_a_worker_that_is_full_now_and_then() {
    let (mut skew, homes) = (Skew::default(), homes(2));
    (1..4).for_each(|at| drop(skew.observe(seconds(at), &window(&[1000, 0]), &homes)));
    for at in 4..100 {
        let mut window = window(&[300, 300]);
        window.seats[0].full = at % 10 == 0;
        assert_eq!(skew.observe(seconds(at), &window, &homes), []);
    }
}

#[test]
fn only_as_many_rows_are_widened_as_it_takes() {
    // Eight CPUs feed slot 0, eight feed slot 1; the first eight get nearly all.
    let homes: Homes = (0..16).map(|cpu| vec![(u32::from(cpu >= 8), 1.0)]).collect();
    let arrivals: Vec<u64> = (0..16).map(|cpu| if cpu < 8 { 200 } else { 10 }).collect();
    let (mut skew, seat) = (Skew::default(), |slot, busy| SeatWindow {
        slot,
        weight: 100,
        full: false,
        waiting: 0.0,
        busy: Some(busy),
    });
    let window = Window { span: WINDOW, arrivals, seats: vec![seat(0, 1.0), seat(1, 0.1)] };
    (1..4).for_each(|at| drop(skew.observe(seconds(at), &window, &homes)));
    // 1600 of 1680, fair are 840: four rows of 200 leave 800.
    assert_eq!(hot(&skew), [0, 1, 2, 3]);
    // And they stay while things are as they are: each of them alone would be one too many.
    (4..100).for_each(|at| drop(skew.observe(seconds(at), &window, &homes)));
    assert_eq!(hot(&skew), [0, 1, 2, 3]);
}

#[test]
fn few_receive_queues_and_many_workers_share_the_work() {
    let arrivals: Vec<u64> = (0..64).map(|cpu| if cpu % 16 == 0 { 1000 } else { 0 }).collect();
    let (mut skew, homes) = (Skew::default(), homes(64));
    (1..4).for_each(|at| drop(skew.observe(seconds(at), &window(&arrivals), &homes)));
    assert_eq!(hot(&skew), [0, 16, 32, 48]);
}

#[test]
fn a_smaller_weight_is_no_idleness() {
    // Three quarters and one quarter, as asked.
    let (mut skew, homes) = (Skew::default(), homes(2));
    for at in 1..50 {
        let mut window = window(&[960, 320]);
        window.seats[1].weight = 33;
        assert_eq!(skew.observe(seconds(at), &window, &homes), []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever arrives where, no row turns more often than its hold times promise.
    #[test]
    fn never_flaps(windows in prop::collection::vec(prop::collection::vec(0u64..1500, 4), 300..1500)) {
        let (mut skew, homes) = (Skew::default(), homes(4));
        let mut turns = [0u64; 4];
        for (at, arrivals) in (1..).zip(&windows) {
            for shift in skew.observe(seconds(at), &window(arrivals), &homes) {
                let (Shift::Widened { cpu, .. } | Shift::Narrowed { cpu, .. }) = shift;
                turns[cpu as usize] += 1;
            }
        }
        // Six relapses make two minutes of two seconds.
        let most = 2 * (7 + windows.len() as u64 / 1200 + 1);
        prop_assert!(turns.iter().all(|turns| *turns <= most), "{turns:?}");
    }

    /// Traffic that is about even is never widened, however busy the CPUs are.
    #[test]
    fn even_traffic_is_left_alone(
        windows in prop::collection::vec(prop::collection::vec(800u64..1200, 4), 50..300),
    ) {
        let (mut skew, homes) = (Skew::default(), homes(4));
        for (at, arrivals) in (1..).zip(&windows) {
            prop_assert_eq!(skew.observe(seconds(at), &window(arrivals), &homes), []);
        }
    }
}
