//! The whole of it against a simulated machine.

use proptest::prelude::*;

use super::*;

mod sim;

use sim::{MS, SECOND, Sim};

/// Evictions: when, and of whom.
fn evictions(sim: &Sim) -> Vec<(u64, u32)> {
    let evicted = sim.turns.iter().filter(|(_, _, turn)| matches!(turn, Turn::Evicted { .. }));
    evicted.map(|(at, slot, _)| (*at, *slot)).collect()
}

/// Four CPUs at a rate for each.
fn four(rate: u64, seed: u64) -> Sim {
    let mut sim = Sim::new(4, seed);
    for cpu in 0..4 {
        sim.open_loop(cpu, rate);
    }
    sim
}

#[test]
fn a_stopped_worker_is_evicted_serves_again_and_nobody_else_suffers() {
    let mut sim = four(2000, 1);
    sim.run(SECOND);
    assert_eq!(sim.turns, []);
    sim.stop(2);
    sim.run(SECOND);
    let [(at, 2)] = evictions(&sim)[..] else { panic!("{:?}", sim.turns) };
    assert!(at - SECOND <= 60 * MS, "{at}");
    let hash = 2000.0;
    assert!(sim.stuck as f64 <= 0.05 * hash, "{} stuck", sim.stuck);
    sim.resume(2);
    sim.run(5 * SECOND);
    assert_eq!(sim.turns.len(), 2, "evicted, restored: {:?}", sim.turns);
    assert_eq!(sim.health.evicted().count(), 0);
    let before = sim.selected(2);
    sim.run(SECOND);
    assert!(sim.selected(2) - before > 1800, "its row is its own again");
    assert_eq!(sim.shifts, []);
}

#[test]
fn one_long_request_sends_its_clients_elsewhere_until_it_is_done() {
    let mut sim = four(500, 2);
    sim.run(SECOND);
    sim.long_request(1, 500 * MS);
    sim.run(SECOND);
    let turns: Vec<u32> = sim.turns.iter().map(|(_, slot, _)| *slot).collect();
    assert_eq!(turns, [1, 1], "evicted and restored: {:?}", sim.turns);
    let (from, to) = (sim.turns[0].0, sim.turns[1].0);
    assert!((SECOND..SECOND + 100 * MS).contains(&from), "{from}");
    assert!((SECOND + 500 * MS..SECOND + 700 * MS).contains(&to), "{to}");
}

#[test]
fn two_hang_at_once_and_the_others_take_all() {
    let mut sim = four(1000, 3);
    sim.run(SECOND);
    sim.stop(0);
    sim.stop(1);
    sim.run(200 * MS);
    assert_eq!(sim.health.evicted().count(), 2);
    assert_eq!(sim.health.advice(Duration::from_micros(sim.now)).out, [0, 1]);
    let stuck = sim.stuck;
    sim.run(5 * SECOND);
    assert_eq!(sim.stuck, stuck, "nobody waits for them any more");
    sim.resume(0);
    sim.resume(1);
    sim.run(SECOND);
    assert_eq!(sim.health.evicted().count(), 0);
    assert_eq!(sim.turns.len(), 4);
}

#[test]
fn when_all_hang_nobody_is_evicted_for_ever() {
    let mut sim = four(1000, 4);
    (0..4).for_each(|worker| sim.stop(worker));
    sim.run(2 * SECOND);
    assert!(sim.health.evicted().count() < 4, "somebody is left to take the connections");
    (0..4).for_each(|worker| sim.resume(worker));
    sim.run(5 * SECOND);
    assert_eq!(sim.health.evicted().count(), 0);
}

#[test]
fn a_worker_that_hangs_again_and_again_is_left_out_for_longer_and_longer() {
    let mut sim = four(1000, 5);
    for _ in 0..100 {
        sim.stop(3);
        sim.run(150 * MS);
        sim.resume(3);
        sim.run(350 * MS);
    }
    // 50 s, 100 times: without memory it would be 100 evictions.
    let count = evictions(&sim).len();
    assert!((5..15).contains(&count), "{count} evictions");
}

#[test]
fn what_arrives_on_one_cpu_is_shared_until_it_spreads_again() {
    let mut sim = Sim::new(2, 6);
    sim.service = 500;
    // More than one worker can do.
    sim.open_loop(0, 1400);
    let second = sim.open_loop(0, 1400);
    sim.run(SECOND);
    let [(at, Shift::Widened { cpu: 0, slot: 0, .. })] = sim.shifts[..] else {
        panic!("{:?}", sim.shifts)
    };
    assert!(at <= 600 * MS, "{at}");
    sim.run(20 * SECOND);
    assert_eq!(sim.shifts.len(), 1, "{:?}", sim.shifts);
    sim.move_to(second, 1);
    sim.run(5 * SECOND);
    assert!(matches!(sim.shifts[1..], [(_, Shift::Narrowed { cpu: 0, .. })]), "{:?}", sim.shifts);
    let own = |sim: &Sim| (sim.selected(0), sim.selected(1));
    let before = own(&sim);
    sim.run(SECOND);
    let after = own(&sim);
    assert!(after.0 - before.0 > 1300 && after.1 - before.1 > 1300);
}

#[test]
fn where_all_have_too_much_nobody_is_evicted_in_turn() {
    let mut sim = Sim::new(2, 10);
    (sim.service, sim.backlog) = (1000, 64);
    // Half as much again as both can do, on both CPUs, and on one.
    sim.open_loop(0, 1500);
    let second = sim.open_loop(1, 1500);
    sim.run(10 * SECOND);
    assert_eq!(sim.turns, [], "balanced");
    sim.move_to(second, 0);
    sim.run(20 * SECOND);
    assert!(evictions(&sim).len() <= 2, "{:?}", sim.turns);
    assert!(sim.shifts.len() <= 1, "{:?}", sim.shifts);
}

#[test]
fn an_idle_group_is_looked_at_less_often() {
    let mut sim = Sim::new(2, 7);
    sim.run(2 * SECOND);
    assert_eq!(sim.health.pause(Duration::from_micros(sim.now)), IDLE_POLL);
    sim.open_loop(0, 100);
    sim.run(500 * MS);
    assert_eq!(sim.health.pause(Duration::from_micros(sim.now)), BUSY_POLL);
}

#[test]
fn one_that_hangs_while_nothing_comes_is_noticed_when_something_does() {
    let mut sim = Sim::new(2, 8);
    sim.stop(0);
    sim.run(5 * SECOND);
    sim.open_loop(0, 500);
    sim.run(100 * MS);
    let [(at, 0)] = evictions(&sim)[..] else { panic!("{:?}", sim.turns) };
    assert!(at - 5 * SECOND <= 100 * MS);
}

#[test]
fn another_socket_in_a_slot_begins_anew() {
    let mut sim = four(1000, 9);
    sim.stop(0);
    sim.run(SECOND);
    assert_eq!(sim.health.evicted().count(), 1);
    let seat = |slot, cookie| Seat { slot, cookie, weight: 100, cpus: CpuSet::from([slot]) };
    sim.health.follow(vec![seat(0, 99), seat(1, 2), seat(2, 3), seat(3, 4)], Vec::new());
    assert_eq!(sim.health.evicted().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Clients that all begin at once and wait for their answers, as evenly as they come: nobody is
    /// evicted, nothing is widened, however many there are and whatever a request takes.
    #[test]
    fn balanced_bursts_change_nothing(
        cpus in 2u32..9,
        clients in 1usize..300,
        service in 20u64..2000,
        jitter in 0u64..5000,
        seed in any::<u64>(),
    ) {
        let mut sim = Sim::new(cpus, seed);
        (sim.service, sim.jitter) = (service, jitter);
        (0..cpus).for_each(|cpu| sim.closed_loop(cpu, clients));
        sim.run(2 * SECOND);
        prop_assert!(sim.served > 0);
        prop_assert_eq!(&sim.turns, &[]);
        prop_assert_eq!(&sim.shifts, &[]);
    }

    /// As long as each can do its part, random arrivals change nothing either.
    #[test]
    fn balanced_arrivals_change_nothing(
        cpus in 2u32..9,
        load in 1u64..90,
        service in 20u64..2000,
        seed in any::<u64>(),
    ) {
        let mut sim = Sim::new(cpus, seed);
        sim.service = service;
        let rate = SECOND * load / 100 / service;
        for cpu in 0..cpus {
            sim.open_loop(cpu, rate.max(1));
        }
        sim.run(2 * SECOND);
        prop_assert_eq!(&sim.turns, &[]);
        prop_assert_eq!(&sim.shifts, &[]);
    }

    /// A stopped worker is out within 100 ms of its first stuck connection, and back after it is
    /// resumed, whatever the load and however late the polls.
    #[test]
    fn a_stall_is_answered_in_time(
        cpus in 2u32..9,
        rate in 200u64..10_000,
        jitter in 0u64..8000,
        victim in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let mut sim = Sim::new(cpus, seed);
        sim.jitter = jitter;
        for cpu in 0..cpus {
            sim.open_loop(cpu, rate);
        }
        sim.run(SECOND);
        let victim = victim.index(cpus as usize);
        sim.stop(victim);
        while sim.stuck == 0 {
            sim.run(MS / 10);
        }
        let since = sim.now;
        sim.run(SECOND);
        let found = evictions(&sim);
        prop_assert_eq!(found.len(), 1, "{:?}", &sim.turns);
        prop_assert_eq!(found[0].1 as usize, victim);
        prop_assert!(found[0].0 - since <= 100 * MS, "{} us", found[0].0 - since);
        sim.resume(victim);
        sim.run(2 * SECOND);
        prop_assert_eq!(sim.health.evicted().count(), 0);
        prop_assert_eq!(sim.turns.len(), 2);
    }
}
