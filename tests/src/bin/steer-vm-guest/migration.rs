//! What becomes of connections that wait in a worker's accept queue when it dies.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use reuseport_tests::client::{Failure, Reply, Target, connect, exchange};
use reuseport_tests::{eventually, sys};

use crate::checks::migrates;
use crate::scene::{ADDRESS, Scene};

const QUEUED: usize = 8;
const PATIENCE: Duration = Duration::from_secs(20);

/// Queues connections on a worker that does not accept, and kills it.
pub(crate) fn of_a_killed_worker() -> String {
    let (mut scene, report) = Scene::steered();
    let victim = scene.workers.len() - 1;
    scene.workers[victim].tell("stop");
    let clients: Vec<_> = (0..QUEUED).map(|_| client(&scene, victim as u32)).collect();
    let waiting = || {
        let status = scene.status();
        let listeners = status["listeners"].as_array().expect("listeners").clone();
        listeners.iter().filter_map(|it| it["queued"].as_u64()).sum::<u64>()
    };
    let queued = eventually(PATIENCE, || waiting() == QUEUED as u64);
    assert!(queued, "{} of {QUEUED} connections wait: {}", waiting(), scene.status());
    scene.workers[victim].kill();

    let done = |clients: &[JoinHandle<_>]| clients.iter().filter(|it| it.is_finished()).count();
    eventually(Duration::from_secs(4), || done(&clients) == QUEUED);
    let at_once = done(&clients);
    if at_once < QUEUED {
        // A migrated connection does not wake its new listener on kernels without the fix of
        // CVE-2026-46015; the next connection to it does.
        for cpu in 0..victim as u32 {
            drop(connect(&scene.netns, cpu, &Target::plain(ADDRESS)));
        }
    }
    let outcomes: Vec<_> =
        clients.into_iter().map(|it| it.join().expect("a client thread")).collect();
    let served = outcomes.iter().filter(|it| it.is_ok()).count();
    let reset = outcomes.iter().filter(|it| **it == Err(Failure::Reset)).count();
    assert_eq!(served + reset, QUEUED, "{outcomes:?}");
    let expected = if migrates(&report) { (QUEUED, 0) } else { (0, QUEUED) };
    assert_eq!((served, reset), expected, "{outcomes:?}");
    match (reset, at_once) {
        (QUEUED, _) => "reset (no migration)".to_owned(),
        (_, QUEUED) => "served by the others".to_owned(),
        _ => format!(
            "served by the others, {} of {QUEUED} only after the next connection",
            QUEUED - at_once
        ),
    }
}

/// One connection from `cpu`, as long as it may take.
fn client(scene: &Scene, cpu: u32) -> JoinHandle<Result<Reply, Failure>> {
    let netns = scene.netns.file();
    thread::spawn(move || {
        sys::enter_netns(&netns).expect("enter the namespace");
        sys::pin(0, &[cpu]).expect("run on a CPU");
        exchange(&Target::plain(ADDRESS).timeout(PATIENCE))
    })
}
