//! nginx: every process holds every listener, and only epoll sets tell who serves which.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use reuseport_tests::client::{Tally, Target, burst};
use reuseport_tests::leak::scene;
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::observe::allowed;
use reuseport_tests::servers::Nginx;
use reuseport_tests::steer::{Attached, Steer};
use reuseport_tests::{cpus, require};

const PORT: u16 = 8080;

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

/// Asserts that each CPU's requests were answered by workers bound to it, or by any worker where
/// none is.
fn assert_local(nginx: &Nginx, tally: &Tally) {
    assert_eq!(tally.failed(), 0, "{tally}");
    let workers = nginx.workers();
    for cpu in cpus() {
        let own: Vec<_> = workers.iter().filter(|&&pid| allowed(pid) == [cpu]).collect();
        for name in tally.by_worker(cpu).keys() {
            let pid = name.parse().expect("nginx answers with a pid");
            assert!(workers.contains(&pid), "{name} is no worker: {tally}");
            assert!(own.is_empty() || own.contains(&&pid), "CPU {cpu} has {own:?}: {tally}");
        }
    }
}

/// Asserts that each listener is served by one worker, each worker of nginx serves one, and the
/// master none.
fn assert_mapped(nginx: &Nginx, attached: &Attached) {
    let mut mapped = attached.workers();
    mapped.sort_unstable();
    let expected: Vec<_> = nginx.workers().into_iter().map(|pid| vec![(pid, None)]).collect();
    assert_eq!(mapped, expected);
}

#[test]
fn every_request_is_served_on_the_cpu_that_received_it_also_after_reloads() {
    require::cpus(2);
    scene(|netns| {
        let mut nginx = Nginx::start(netns, PORT, 2);
        let hashed = requests(netns, 50);
        assert_eq!(hashed.failed(), 0, "{hashed}");
        assert!(cpus().iter().all(|&cpu| hashed.by_worker(cpu).len() == 2), "{hashed}");

        let steer = Steer::new(netns, PORT);
        let first = steer.attach(&[]);
        assert_mapped(&nginx, &first);
        assert_local(&nginx, &requests(netns, 200));

        // A reload keeps the sockets and changes every process.
        let load = Load::start(netns, &target(), &cpus(), 2);
        let reloads = 3;
        for _ in 0..reloads {
            load.advance(200);
            nginx.reload();
            let again = steer.attach(&[]);
            assert_mapped(&nginx, &again);
            assert!(again.in_place());
            assert_eq!((again.program(), again.slots()), (first.program(), first.slots()));
            assert_eq!(again.generation(), first.generation(), "nothing to change");
        }
        load.advance(200);
        let tally = load.stop();
        println!("{reloads} reloads under load: {} answered", tally.answered());
        assert_eq!(tally.failed(), 0, "{tally}");
        assert_local(&nginx, &requests(netns, 200));

        // More workers, more listeners; and fewer.
        let load = Load::start(netns, &target(), &cpus(), 1);
        for workers in [3, 2] {
            nginx.resize(workers);
            let again = steer.attach(&[]);
            assert_mapped(&nginx, &again);
            assert_eq!(again.slots().len(), workers);
            assert_local(&nginx, &requests(netns, 100));
        }
        // What is left of a steered group is followed, too.
        nginx.resize(1);
        let alone = steer.attach(&[]);
        assert!(alone.in_place());
        assert_mapped(&nginx, &alone);
        let problems = &steer.status()["problems"];
        assert!(!problems.to_string().contains("empty slots"), "{problems:#}");
        load.advance(100);
        nginx.resize(2);
        let again = steer.attach(&[]);
        assert_mapped(&nginx, &again);
        load.advance(100);
        let tally = load.stop();
        println!("2 -> 3 -> 2 -> 1 -> 2 workers under load: {tally}");
        assert_eq!(tally.failed(), 0, "{tally}");
        assert_local(&nginx, &requests(netns, 100));
    });
}
