//! A newer generation of workers beside the older one.

use std::thread::sleep;
use std::time::Duration;

use reuseport_tests::client::Target;
use reuseport_tests::load::Load;
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, require};
use serde_json::Value;

use super::{role, two};
use crate::scene::Scene;

/// With which the usual number of workers is known after half a second.
const QUICK: [&str; 2] = ["--generation-timeout", "3s"];

/// Long enough for that, and for one more tick.
fn settle() {
    sleep(Duration::from_secs(2));
}

#[test]
fn a_newcomer_takes_the_row_over_and_gives_it_back_when_it_dies() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent = scene.agent(&["--generation-timeout", "60s"]);
    // A sixth of that.
    sleep(Duration::from_secs(12));
    for _ in 0..2 {
        let mut newer = scene.start(10, two()[0]);
        scene.reaches(two()[0], 10);
        scene.reaches(two()[1], 1);
        let status = scene.status();
        assert_eq!(role(&status, &scene.workers[0]), "standby", "{status:#}");
        assert_eq!(role(&status, &newer), "active", "{status:#}");
        newer.kill();
        scene.reaches(two()[0], 0);
        assert_eq!(role(&scene.healed(), &scene.workers[0]), "active");
    }
    // It stays where the old one goes.
    let newer = scene.start(10, two()[0]);
    scene.reaches(two()[0], 10);
    scene.workers[0] = newer;
    scene.healed();
    scene.reaches(two()[0], 10);
    let log = agent.stop();
    assert_eq!(log.matches("stands by: a newer one took over").count(), 3, "{log}");
    assert_eq!(log.matches("serves again").count(), 2, "{log}");
}

#[test]
fn one_that_is_not_replaced_in_time_is_additional() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent = scene.agent(&QUICK);
    settle();
    scene.workers.push(scene.start(2, two()[0]));
    scene.reaches(two()[0], 2);
    scene.becomes("superseded", |status| role(status, &scene.workers[0]) == "standby");
    scene.becomes("additional", |status| role(status, &scene.workers[0]) == "active");
    let tally = scene.from(two()[0], 100);
    assert_eq!(tally.by_worker(two()[0]).len(), 2, "{tally}");
    agent.stop();
}

/// The whole of one generation under load, then of the next: no connection is lost.
#[test]
fn a_rolling_restart_under_load_loses_nothing() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent = scene.agent(&["--generation-timeout", "6s"]);
    settle();
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 2);
    for round in 1..4 {
        for place in 0..2 {
            let newer = scene.start(round * 10 + place, two()[place as usize]);
            let old = &scene.workers[place as usize];
            scene.becomes("superseded", |status| role(status, old) == "standby");
            load.advance(20);
            let mut old = std::mem::replace(&mut scene.workers[place as usize], newer);
            // Its queue is empty: it has been serving what it had.
            old.tell("exit");
            drop(old);
            scene.healed();
        }
        settle();
    }
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    agent.stop();
}

/// The next agent knows from the pins who stands by.
#[test]
fn a_takeover_outlives_the_agent() {
    require::cpus(2);
    let mut scene = Scene::new();
    let mut agent = scene.agent(&QUICK);
    settle();
    agent.kill();
    let mut agent = scene.agent(&["--generation-timeout", "600s"]);
    agent.kill();
    scene.workers.push(scene.start(2, two()[0]));
    // Nobody was there to see who came: it counts as one of the usual ones.
    let agent = scene.agent(&QUICK);
    settle();
    scene.workers.push(scene.start(3, two()[1]));
    scene.becomes("superseded", |status| role(status, &scene.workers[1]) == "standby");
    agent.stop();
    let agent = scene.agent(&["--generation-timeout", "600s"]);
    settle();
    assert_eq!(role(&scene.status(), &scene.workers[1]), "standby");
    scene.workers.pop();
    scene.becomes("restored", |status| role(status, &scene.workers[1]) == "active");
    agent.stop();
}

/// A deploy of more workers, which may run on other CPUs than those before them, under load: no
/// connection is lost, and the older ones get none once it is complete.
#[test]
fn a_deploy_of_another_number_of_workers_takes_over() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent = scene.agent(&["--generation-timeout", "30s"]);
    // A sixth of that.
    sleep(Duration::from_secs(7));
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 2);
    let start = |index: u32| {
        let spec = Spec { index, cpus: two().to_vec(), ..Spec::default() };
        Worker::start(&scene.netns, &spec)
    };
    let mut newer = vec![start(10)];
    scene.becomes("seated", |status| role(status, &newer[0]) == "active");
    load.advance(50);
    let status = scene.status();
    assert!(scene.workers.iter().all(|old| role(&status, old) == "active"), "{status:#}");
    newer.extend([11, 12].map(start));
    let standby = |status: &Value, old: &Worker| role(status, old) == "standby";
    scene.becomes("superseded", |status| scene.workers.iter().all(|old| standby(status, old)));
    let status = scene.status();
    assert!(newer.iter().all(|newer| role(&status, newer) == "active"), "{status:#}");
    for cpu in two() {
        let tally = scene.from(cpu, 40);
        assert!(
            tally.by_worker(cpu).keys().all(|it| it.starts_with('1') && it.len() == 2),
            "{tally}"
        );
    }
    // Their queues are empty: they have been serving what they had.
    load.advance(50);
    for mut old in std::mem::replace(&mut scene.workers, newer) {
        old.tell("exit");
        drop(old);
        load.advance(20);
    }
    let status = scene.becomes("complete", |status| {
        status["listeners"].as_array().map(Vec::len) == Some(3)
            && scene.workers.iter().all(|newer| role(status, newer) == "active")
    });
    load.advance(50);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{status:#}");
    let log = agent.stop();
    assert_eq!(log.matches("a newer one took over").count(), 2, "{log}");
    assert!(!log.contains("serves again"), "{log}");
}
