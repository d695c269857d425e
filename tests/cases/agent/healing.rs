//! Workers that die, return, join, move; groups that end and begin again.

use std::thread::sleep;
use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::binary;
use reuseport_tests::client::Target;
use reuseport_tests::load::Load;
use reuseport_tests::observe::allowed;
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, require, sys};

use super::{generation, two};
use crate::scene::Scene;

#[test]
fn a_worker_that_dies_and_returns_has_its_row_again() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent = scene.agent(&[]);
    scene.steered();
    for place in [0, 1, 0] {
        scene.workers[place].kill();
        // The other one takes its connections, its CPU's too.
        let other = 1 - place as u32;
        for cpu in two() {
            scene.reaches(cpu, other);
        }
        scene.workers[place] = scene.start(place as u32, two()[place]);
        scene.healed();
        scene.steered();
    }
    agent.stop();
    // Steering does not depend on the agent.
    scene.steered();
    assert_eq!(scene.bpffs.pins().len(), 1, "{:?}", scene.bpffs.pins());
}

/// The kernel's news are stamped by a clock that knows no time namespaces; the agent's may be in one.
#[test]
fn a_time_namespace_does_not_spoil_how_long_a_heal_took() {
    require::cpus(2);
    let mut scene = Scene::new();
    let mut command = scene.netns.command("unshare");
    command.args(["--time", "--monotonic", "500000", "--kill-child", "--"]).arg(binary::path());
    let mut agent = Agent::spawn_with(command, &scene.bpffs, 8080, &[]);
    agent.wait_for("ready");
    scene.workers[0].kill();
    agent.wait_for("-1 listeners, after ");
    let log = agent.log();
    let (_, after) = log.split_once("-1 listeners, after ").expect("just seen");
    assert!(!after.starts_with("500"), "{log}");
    let millis = after.split_once("ms").and_then(|(millis, _)| millis.parse().ok());
    assert!(millis.is_some_and(|millis: f64| millis > 0.0), "{log}");
    agent.kill();
}

#[test]
fn joiners_are_seated_and_nothing_is_written_where_nothing_changes() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent = scene.agent(&["--reconcile-interval", "10ms", "--generation-timeout", "600s"]);
    // Another worker on each CPU: before the group has settled, nobody takes over from anybody.
    for place in 2..4 {
        scene.workers.push(scene.start(place, two()[place as usize % 2]));
    }
    let before = scene.healed();
    for (place, cpu) in two().into_iter().enumerate() {
        let tally = scene.from(cpu, 100);
        let served = tally.by_worker(cpu);
        let own = [place.to_string(), (place + 2).to_string()];
        assert!(served.keys().all(|it| own.contains(&(*it).to_owned())), "{tally}");
        assert_eq!(served.len(), 2, "both on the CPU have their part: {tally}");
    }
    // Some hundred ticks.
    sleep(Duration::from_secs(3));
    assert_eq!(generation(&scene.healed()), generation(&before));
    agent.stop();
}

#[test]
fn a_worker_that_is_moved_gets_the_rows_of_where_it_runs() {
    require::cpus(2);
    let scene = Scene::new();
    let agent = scene.agent(&[]);
    scene.steered();
    for (worker, cpu) in scene.workers.iter().zip(two().into_iter().rev()) {
        for tid in reuseport_tests::observe::threads(worker.pid()) {
            sys::pin(tid as i32, &[cpu]).expect("move a worker");
        }
        assert_eq!(allowed(worker.pid()), [cpu]);
    }
    scene.reaches(two()[0], 1);
    scene.reaches(two()[1], 0);
    agent.stop();
}

#[test]
fn waits_for_the_group_and_outlives_it() {
    require::cpus(2);
    let mut scene = Scene::new();
    scene.workers.clear();
    let mut agent = scene.agent(&["--detach-on-exit"]);
    for round in 0..3 {
        scene.workers = Worker::one_per_cpu(&scene.netns, &two(), &Spec::default());
        scene.healed();
        scene.steered();
        scene.workers.clear();
        // The others return before it may have seen that they were gone.
        if round == 0 {
            agent.wait_for("nobody listens any more");
        }
    }
    scene.workers = Worker::one_per_cpu(&scene.netns, &two(), &Spec::default());
    scene.healed();
    agent.stop();
    scene.hashed();
    assert_eq!(scene.bpffs.pins(), [""; 0]);
}

/// Where the kernel does not tell of listeners, they are looked at.
#[test]
fn heals_without_the_power_to_be_told() {
    require::cpus(2);
    let mut scene = Scene::new();
    let mut agent = scene.agent_without_perfmon();
    agent.wait_for("CAP_PERFMON");
    assert!(agent.log().contains("looked at every 50ms"), "{}", agent.log());
    for place in [0, 1] {
        scene.workers[place].kill();
        scene.workers[place] = scene.start(place as u32, two()[place]);
        scene.reaches(two()[place], place as u32);
    }
    scene.workers.push(scene.start(2, two()[0]));
    scene.becomes("seated", |status| {
        let listeners = status["listeners"].as_array().expect("listeners");
        listeners.len() == 3 && listeners.iter().all(|it| it["slot"].is_u64())
    });
    agent.stop();
}

/// Killed at any moment, under load: no connection notices, and the next one goes on with the same
/// program and the same table.
#[test]
fn a_killed_agent_is_not_missed() {
    require::cpus(2);
    let scene = Scene::new();
    scene.agent(&[]).kill();
    let before = scene.healed();
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 2);
    for round in 0..20_u64 {
        let mut agent = scene.agent(&[]);
        sleep(Duration::from_millis(round * 37 % 100));
        agent.kill();
    }
    load.advance(100);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    let after = scene.healed();
    for what in ["program_id", "generation", "attached_at"] {
        assert_eq!(after["steering"][what], before["steering"][what], "{after:#}");
    }
    // What changed while none was there is put right by the next.
    let mut scene = scene;
    scene.workers[0].kill();
    scene.workers[0] = scene.start(0, two()[0]);
    let agent = scene.agent(&[]);
    scene.healed();
    scene.steered();
    agent.stop();
    assert_eq!(scene.bpffs.pins().len(), 1, "{:?}", scene.bpffs.pins());
}
