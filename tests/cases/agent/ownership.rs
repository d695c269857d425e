//! Whose a group is to keep: another agent's, a stranger's, the user's.

use reuseport_tests::agent::Agent;
use reuseport_tests::hostile::{Deed, Stranger, attach_classic, detach};
use reuseport_tests::require;
use reuseport_tests::worker::Spec;
use serde_json::Value;

use super::two;
use crate::scene::Scene;

#[test]
fn a_second_agent_is_refused_and_told_who_is_there() {
    let scene = Scene::new();
    let mut first = scene.agent(&[]);
    let mut second = Agent::spawn(&scene.netns, &scene.bpffs, 8080, &[]);
    assert_eq!(second.ended(), Some(7), "{}", second.log());
    let told = format!("the agent with process id {}", first.pid());
    assert!(second.log().contains(&told), "{}", second.log());
    scene.steered();
    // A dead one stands in nobody's way.
    first.kill();
    scene.agent(&["--detach-on-exit"]).stop();
    scene.hashed();
    assert_eq!(scene.bpffs.pins(), [""; 0]);
}

/// Of two groups on a port one is another agent's: that one is left alone to the end.
#[test]
fn what_another_agent_keeps_is_not_given_back() {
    let two = Spec { listeners: 2, addr: "127.0.0.1,127.0.0.2", ..Spec::default() };
    let scene = Scene::of(&[two.clone(), two]);
    let first = scene.agent(&["--addr", "127.0.0.2"]);
    let args = ["--detach-on-exit", "--generation-timeout", "60s"];
    let mut second = Agent::spawn(&scene.netns, &scene.bpffs, 8080, &args);
    assert_eq!(second.ended(), Some(7), "{}", second.log());
    let groups = scene.cli("status", &["--json"]).run().ok().json();
    let attached = |address: &str| {
        let of = |group: &&Value| group["group"].to_string().contains(address);
        let group = groups.as_array().expect("groups").iter().find(of);
        group.unwrap_or_else(|| panic!("no {address}: {groups:#}"))["attached"]["state"].clone()
    };
    assert_eq!(
        (attached("127.0.0.1"), attached("127.0.0.2")),
        ("nothing".into(), "program".into())
    );
    first.stop();
}

/// Noticed and told; not fought; and ours is back when it is gone.
#[test]
fn a_stranger_is_not_fought() {
    require::cpus(2);
    let scene = Scene::new();
    let mut agent = scene.agent(&["--reconcile-interval", "100ms"]);
    let ours = scene.healed()["steering"]["program_id"].clone();
    for classic in [false, true] {
        let stranger =
            (!classic).then(|| Stranger::start(&scene.netns, &scene.workers[0], Deed::Program));
        if classic {
            attach_classic(&scene.netns, &scene.workers[0]);
        }
        let theirs = scene.attached();
        agent.wait_for(if classic { "a classic BPF program" } else { "somebody_elses" });
        for _ in 0..10 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert_eq!(scene.attached(), theirs, "fought");
        }
        detach(&scene.netns, &scene.workers[0]);
        drop(stranger);
        scene.healed();
        scene.steered();
    }
    assert_ne!(scene.healed()["steering"]["program_id"], ours, "attached anew");
    let log = agent.stop();
    let told = log.matches("another program is attached").count();
    assert_eq!(told, 2, "one line for each: {log}");
}

/// What the user detaches stays detached, until the user attaches or the group is started anew.
#[test]
fn detach_is_heeded() {
    require::cpus(2);
    let mut scene = Scene::new();
    let mut agent = scene.agent(&["--reconcile-interval", "50ms"]);
    scene.cli("detach", &[]).run().ok();
    agent.wait_for("detached by hand");
    std::thread::sleep(std::time::Duration::from_millis(500));
    scene.hashed();
    scene.cli("attach", &[]).run().ok();
    // The agent keeps it again.
    scene.workers[0].kill();
    scene.workers[0] = scene.start(0, two()[0]);
    scene.healed();
    scene.steered();

    scene.cli("detach", &[]).run().ok();
    scene.becomes("detached", |status| status["attached"]["state"] == "nothing");
    scene.workers.clear();
    scene.workers =
        two().into_iter().zip(0..).map(|(cpu, index)| scene.start(index, cpu)).collect();
    scene.healed();
    scene.steered();
    agent.stop();
}

/// Beside the agent, the same verbs work as without it.
#[test]
fn attach_beside_the_agent_changes_nothing_that_is_right() {
    require::cpus(2);
    let scene = Scene::new();
    let agent = scene.agent(&["--reconcile-interval", "50ms"]);
    scene.healed();
    let weight = format!("{}=0", scene.workers[1].pid());
    scene.cli("attach", &["--weight", &weight]).run().ok();
    // What the user wants is kept in the pins; the agent goes by it.
    std::thread::sleep(std::time::Duration::from_millis(500));
    for cpu in two() {
        scene.reaches(cpu, 0);
    }
    let weight = format!("{}=100", scene.workers[1].pid());
    scene.cli("attach", &["--weight", &weight]).run().ok();
    scene.healed();
    scene.steered();
    agent.stop();
}
