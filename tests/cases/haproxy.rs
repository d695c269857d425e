//! HAProxy `shards by-thread`: one process, a thread for each listener; what a thread blocks on
//! tells which.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use std::collections::BTreeMap;

use reuseport_tests::client::{Tally, Target, burst};
use reuseport_tests::leak::scene;
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::observe::{allowed, threads};
use reuseport_tests::servers::Haproxy;
use reuseport_tests::steer::{Attached, Steer};
use reuseport_tests::sys::pin;
use reuseport_tests::{cpus, require};

const PORT: u16 = 8080;
/// Exit code for groups that cannot be steered as they are.
const NOT_STEERABLE: i32 = 4;

fn target() -> Target {
    Target::http("127.0.0.1:8080")
}

fn requests(netns: &Netns, count: u32) -> Tally {
    let mut tally = Tally::default();
    for cpu in cpus() {
        tally.merge(burst(netns, cpu, &target(), count));
    }
    tally
}

/// HAProxy's number, from 0, of the thread bound to each CPU: it creates them in order.
fn numbers(haproxy: &Haproxy) -> BTreeMap<u32, String> {
    let bound = threads(haproxy.pid()).into_iter().map(|tid| allowed(tid)[0]);
    bound.zip(0..).map(|(cpu, number): (u32, u32)| (cpu, number.to_string())).collect()
}

/// Asserts that each listener is served by one thread, each by another.
fn assert_mapped(haproxy: &Haproxy, attached: &Attached) {
    let mut mapped = attached.workers();
    mapped.sort_unstable();
    let own = |tid| vec![(haproxy.pid(), Some(tid))];
    let expected: Vec<_> = threads(haproxy.pid()).into_iter().map(own).collect();
    assert_eq!(mapped, expected, "{:#}", attached.0);
}

#[test]
fn every_request_is_served_by_the_thread_on_the_cpu_that_received_it() {
    require::cpus(2);
    scene(|netns| {
        let haproxy = Haproxy::start(netns, PORT, &cpus());
        let bound: Vec<_> = threads(haproxy.pid()).into_iter().flat_map(allowed).collect();
        assert_eq!(bound, cpus(), "cpu-map binds a thread to each CPU");
        let hashed = requests(netns, 50);
        let number = numbers(&haproxy);
        assert!(hashed.locality(|cpu| number[&cpu].clone()) < 0.9, "{hashed}");
        let steer = Steer::new(netns, PORT);
        assert_mapped(&haproxy, &steer.attach(&[]));
        requests(netns, 200).assert_local(|cpu| number[&cpu].clone());
        // The other way round: a mapping by order alone would be wrong now.
        for (tid, &cpu) in threads(haproxy.pid()).into_iter().zip(cpus().iter().rev()) {
            pin(tid as i32, &[cpu]).expect("bind a thread");
        }
        let number = numbers(&haproxy);
        assert_mapped(&haproxy, &steer.attach(&[]));
        requests(netns, 200).assert_local(|cpu| number[&cpu].clone());
        steer.detach();

        // Threads that are busy: found all the same, or refused with the way out.
        let load = Load::start(netns, &target(), &cpus(), 4);
        let order: Vec<_> = cpus().iter().rev().map(u32::to_string).collect();
        let (mut found, mut refused) = (0, 0);
        for _ in 0..10 {
            load.advance(50);
            let outcome = steer.run("attach", &["--json"]);
            if outcome.code == Some(0) {
                assert_mapped(&haproxy, &Attached::of(&outcome));
                found += 1;
            } else {
                outcome.fails(NOT_STEERABLE).says("--worker").says("--order");
                refused += 1;
            }
            steer.detach();
        }
        println!("under load the threads were found {found} times and refused {refused} times");
        steer.attach(&["--order", &order.join(",")]);
        let tally = load.stop();
        println!("across all of it: {tally}");
        assert_eq!(tally.failed(), 0, "{tally}");
        requests(netns, 100).assert_local(|cpu| number[&cpu].clone());
    });
}

#[test]
fn unbound_threads_are_pinned_one_by_one() {
    require::cpus(2);
    scene(|netns| {
        let haproxy = Haproxy::start_unbound(netns, PORT, cpus().len());
        for tid in threads(haproxy.pid()) {
            assert_eq!(allowed(tid), cpus());
        }
        let steer = Steer::new(netns, PORT);
        let attached = steer.attach(&["--pin"]);
        assert_mapped(&haproxy, &attached);
        let pinned = attached.assert_pinned();
        assert_eq!(pinned.keys().copied().collect::<Vec<_>>(), threads(haproxy.pid()));
        let number = numbers(&haproxy);
        assert_eq!(number.keys().copied().collect::<Vec<_>>(), cpus());
        requests(netns, 200).assert_local(|cpu| number[&cpu].clone());
    });
}
