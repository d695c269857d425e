//! Who watches over the workers: which groups, and what is left when nobody does any more.

use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::metrics::Metrics;
use reuseport_tests::netns::Netns;
use reuseport_tests::traffic::{Pace, Plan, Traffic};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{eventually, require};
use serde_json::Value;

use super::config::{File, GOOD};
use super::{PATIENCE, two};
use crate::metrics::get;
use crate::scene::Scene;

/// A hundred connections per second from each of two CPUs, until dropped.
fn traffic(netns: &Netns) -> Traffic {
    let address = "127.0.0.1:8080".parse().expect("an address");
    let from = two().map(|cpu| (cpu, Pace::Open(100.0))).to_vec();
    let lasts = PATIENCE * 10;
    Traffic::start(netns, &Plan { address, from, lasts, patience: PATIENCE, seed: 1 })
}

/// Whether a worker's listener is evicted.
fn is_evicted(status: &Value, worker: &Worker) -> bool {
    let listeners = status["listeners"].as_array().expect("listeners");
    listeners.iter().any(|it| it["evicted"] == true && it["cookie"] == worker.cookies()[0])
}

/// Waits until the second worker, which hangs, is evicted, and planned around.
fn wait_until_out(scene: &Scene) {
    scene.becomes("planned around", |status| {
        let rows = status["steering"]["rows"].as_array().map_or(&[][..], Vec::as_slice);
        let first = |row: &Value| row["first"].as_array().expect("slots").clone();
        let named = rows.iter().flat_map(first).collect::<std::collections::HashSet<_>>();
        is_evicted(status, &scene.workers[1]) && named.len() == 1
    });
}

#[derive(Clone, Copy, Debug)]
enum End {
    Term,
    SpillOff,
    OtherPort,
    NextHasSpillOff,
}

/// Nobody would bring back who is evicted when its watcher has gone: so it gets its rows back then.
#[test]
fn nobody_stays_evicted_when_nobody_watches() {
    require::cpus(2);
    for end in [End::Term, End::SpillOff, End::OtherPort, End::NextHasSpillOff] {
        let scene = Scene::new();
        let file = File::new(GOOD);
        let mut agent = Agent::of(scene.agent_command(&file));
        agent.wait_for("ready");
        let traffic = traffic(&scene.netns);
        scene.workers[1].freeze();
        wait_until_out(&scene);
        let problems = scene.status()["problems"].to_string();
        assert!(problems.contains("is evicted") && !problems.contains("in no row"), "{problems}");
        let mut left = None;
        match end {
            End::Term => {
                let log = agent.stop();
                assert!(log.contains("restored: nobody watches"), "{log}");
            }
            End::SpillOff | End::OtherPort => {
                let text = match end {
                    End::SpillOff => format!("spill = 'off'\n{GOOD}"),
                    _ => GOOD.replace("8080", "8081"),
                };
                file.write(&text);
                agent.signal(libc::SIGHUP);
                agent.wait_for("reloaded");
                left = Some(agent);
            }
            End::NextHasSpillOff => {
                agent.kill();
                assert!(is_evicted(&scene.status(), &scene.workers[1]), "SIGKILL changes nothing");
                left = Some(scene.agent(&["--spill", "off"]));
            }
        }
        scene.becomes("restored", |status| !is_evicted(status, &scene.workers[1]));
        scene.workers[1].thaw();
        drop(traffic);
        scene.reaches(two()[0], 0);
        scene.reaches(two()[1], 1);
        // And nobody evicts it again.
        if left.is_some() {
            scene.workers[1].freeze();
            let traffic = super::watch::traffic(&scene.netns);
            sleep(Duration::from_millis(500));
            assert!(!is_evicted(&scene.status(), &scene.workers[1]), "{end:?}");
            scene.workers[1].thaw();
            drop(traffic);
        }
    }
}

/// Two namespaces and two protocols on one port: each group is looked at where it is.
#[test]
fn groups_on_one_port_are_told_apart() {
    require::cpus(2);
    let scenes = [Scene::new(), Scene::new()];
    let target = |scene: &Scene, udp: bool| {
        let netns = scene.netns.path();
        format!("[[target]]\nport = 8080\nnetns = '{}'\nudp = {udp}\n", netns.display())
    };
    let all = scenes.iter().flat_map(|scene| [target(scene, true), target(scene, false)]);
    let file = File::new(&all.collect::<String>());
    let mut agent = Agent::of(scenes[0].agent_command(&file));
    agent.wait_for("ready");
    for scene in &scenes {
        let traffic = traffic(&scene.netns);
        scene.workers[1].freeze();
        let pid = scene.workers[1].pid();
        agent.wait_for(&format!("(process {pid}) evicted"));
        scene.workers[1].thaw();
        agent.wait_for(&format!("(process {pid}) accepts again"));
        drop(traffic);
    }
    agent.stop();
}

/// A server on another port of the scene's namespace.
fn others(scene: &Scene) -> Vec<Worker> {
    let start = |(cpu, index)| {
        let spec = Spec { index, cpus: vec![cpu], port: 8081, ..Spec::default() };
        Worker::start(&scene.netns, &spec)
    };
    two().into_iter().zip(0..).map(start).collect()
}

/// What is served of metrics is what is kept now.
#[test]
fn a_reload_changes_what_is_told() {
    require::cpus(2);
    let scene = Scene::new();
    let _others = others(&scene);
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("metrics");
    let file = File::new(GOOD);
    let mut command = scene.agent_command(&file);
    command.arg("--metrics").arg(format!("unix:{}", socket.display()));
    let mut agent = Agent::of(command);
    agent.wait_for("ready");
    let ask = |path: &str| get(UnixStream::connect(&socket).expect("connect"), path);
    let told = |port: &str| {
        let metrics = Metrics::of(&ask("/metrics"));
        let port = [("port", port)];
        ["steered", "heals_total"].map(|name| metrics.sum(name, &port))
    };
    assert_eq!((told("8080"), told("8081")), ([1, 1], [0, 0]));
    file.write(&GOOD.replace("8080", "8081"));
    agent.signal(libc::SIGHUP);
    let changed = eventually(PATIENCE, || (told("8080"), told("8081")) == ([0, 0], [1, 1]));
    assert!(changed, "{:?}, {:?}\n{}", told("8080"), told("8081"), agent.log());
    let state: Value = serde_json::from_str(&ask("/state")).expect("JSON");
    assert!(!state["agent"]["groups"].to_string().contains(":8080"), "{state:#}");
    agent.stop();
}

/// An agent that cannot start leaves nothing, where it is to leave nothing in the end.
#[test]
fn what_was_attached_before_a_failure_is_given_back() {
    require::cpus(2);
    let scene = Scene::new();
    let _others = others(&scene);
    let owner = Agent::start(&scene.netns, &scene.bpffs, 8081, &[]);
    let second = GOOD.replace("8080", "8081");
    let file = File::new(&format!("detach-on-exit = true\n{GOOD}{second}"));
    let mut agent = Agent::of(scene.agent_command(&file));
    assert_eq!(agent.ended(), Some(7), "{}", agent.log());
    assert!(agent.log().contains("attached: "), "{}", agent.log());
    scene.hashed();
    // And what is another agent's stays.
    let status = scene.cli_at(8081, "status", &["--json"]).run().ok().json();
    assert_eq!(status[0]["steering"]["in_force"], true, "{status:#}");
    owner.stop();
}
