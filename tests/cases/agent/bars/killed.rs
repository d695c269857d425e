//! An agent that is killed all the time, whatever it is at, while workers move and connections come.

use std::time::{Duration, Instant};

use reuseport_tests::agent::Agent;
use reuseport_tests::client::Target;
use reuseport_tests::leak::Baseline;
use reuseport_tests::load::Load;
use reuseport_tests::measure::Rng;
use reuseport_tests::observe::threads;
use reuseport_tests::{cpus, require, sys};

use super::super::two;
use super::length;
use crate::scene::Scene;

/// Between two kills, on average.
const PAUSE: Duration = Duration::from_millis(100);

#[test]
fn an_agent_that_is_killed_all_the_time_loses_and_leaves_nothing() {
    require::cpus(2);
    let baseline = Baseline::take();
    let scene = Scene::new();
    scene.agent(&[]).kill();
    scene.healed();
    let before = scene.traces();
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 2);
    let mut rng = Rng::with_seed(1);
    let (mut ready, mut tables) = (0, 0);
    let began = Instant::now();
    let rounds = length(600, 30);
    for round in 0..rounds {
        // The workers change places, so that there is something to be killed at.
        if round % 3 == 0 {
            change_places(&scene, round / 3 % 2 == 1);
        }
        let mut agent = Agent::spawn(&scene.netns, &scene.bpffs, 8080, &[]);
        // A slow machine's agents would never come as far as to keep anything.
        if round % 10 == 9 {
            agent.wait_for("ready");
        }
        std::thread::sleep(PAUSE * rng.u32(..200) / 100);
        agent.kill();
        let log = agent.log();
        ready += u32::from(log.contains("ready"));
        tables += u32::from(log.contains("mapping changed"));
        assert!(!log.contains("panicked"), "{log}");
    }
    let took = began.elapsed();
    change_places(&scene, false);
    let agent = scene.agent(&[]);
    scene.healed();
    scene.steered();
    let tally = load.stop();
    println!(
        "{rounds} kills in {took:.1?}, {ready} agents were ready, {tables} had changed something: {} \
         connections, {} failed",
        tally.answered(),
        tally.failed()
    );
    assert_eq!(tally.failed(), 0, "{tally}");
    assert!(ready > 0, "none came as far as to keep anything");
    agent.stop();
    // The killed one's lock is gone, and nothing came.
    let after = scene.traces();
    assert!(after.is_subset(&before), "pins and the workers' descriptors: {after:?}");
    scene.cli("detach", &[]).run().ok();
    drop(scene);
    baseline.assert_same();
}

/// Has each worker run where it began, or each where the other did.
fn change_places(scene: &Scene, swapped: bool) {
    for (place, worker) in scene.workers.iter().enumerate() {
        for tid in threads(worker.pid()) {
            let cpu = two()[place ^ usize::from(swapped)];
            sys::pin(tid as i32, &[cpu]).expect("move a worker");
        }
    }
}
