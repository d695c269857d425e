//! The agent on the rungs below eBPF.

use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::client::{Failure, Target};
use reuseport_tests::load::Load;
use reuseport_tests::worker::Worker;
use reuseport_tests::{binary, cpus, eventually, require};
use serde_json::json;

use super::{PATIENCE, role};
use crate::scene::Scene;

impl Scene {
    /// One that may take listeners, and nothing else.
    fn taking_agent(&self, args: &[&str]) -> Agent {
        let mut command = self.netns.command("setpriv");
        command.arg("--bounding-set=-all,+sys_ptrace").arg(binary::path());
        let mut agent = Agent::spawn_with(command, &self.bpffs, 8080, args);
        agent.wait_for("ready");
        agent
    }

    /// Waits until the group is on `rung` and there is nothing to complain about.
    fn settles_on(&self, rung: &str) {
        self.becomes(rung, |status| {
            status["rung"]["rung"] == rung && status["problems"] == json!([])
        });
    }

    /// A worker like the `place`th.
    fn another(&self, place: usize) -> Worker {
        self.start(place as u32, cpus()[place])
    }
}

#[test]
fn without_cap_bpf_it_keeps_incoming_cpu_right() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent = scene.taking_agent(&[]);
    for word in ["not ebpf", "CAP_BPF is missing", "rung incoming-cpu"] {
        assert!(agent.log().contains(word), "{word}: {}", agent.log());
    }
    scene.settles_on("incoming-cpu");
    scene.steered();
    for place in [0, 1, 1] {
        scene.workers[place].kill();
        scene.workers[place] = scene.another(place);
        scene.settles_on("incoming-cpu");
        scene.steered();
    }
    // The whole group, too.
    scene.workers.clear();
    scene.workers = vec![scene.another(0), scene.another(1)];
    scene.settles_on("incoming-cpu");
    scene.steered();
    let log = agent.stop();
    assert!(!log.contains("panicked"), "{log}");
    // It stays without the agent.
    scene.steered();
    assert_eq!(scene.bpffs.pins(), [""; 0]);
    scene.taking_agent(&["--detach-on-exit"]).stop();
    scene.hashed();
}

/// A newer generation takes over: the older one is left without a CPU, and gets it back.
#[test]
fn a_newer_generation_takes_the_cpu() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent =
        scene.taking_agent(&["--generation-timeout", "3s", "--reconcile-interval", "100ms"]);
    scene.settles_on("incoming-cpu");
    // As long as it takes to know how many there usually are.
    std::thread::sleep(Duration::from_secs(2));
    let [first, ..] = cpus()[..] else { unreachable!("two CPUs are required") };
    let mut newer = scene.another(0);
    scene.workers.push(scene.another(1));
    let listeners = || scene.status()["listeners"].as_array().expect("listeners").clone();
    let of = |pid: u32| {
        let all = listeners();
        let own = all.iter().find(|it| it["holders"][0]["pid"] == pid).expect("its listener");
        own["incoming_cpu"].clone()
    };
    let took_over = || of(newer.pid()) == first && of(scene.workers[0].pid()).is_null();
    assert!(eventually(PATIENCE, took_over), "{:#}\n{}", scene.status(), agent.log());
    assert!(agent.log().contains("a newer one took over"), "{}", agent.log());
    // The next agent tells from the listeners who stands by.
    agent.stop();
    let agent = scene.taking_agent(&["--generation-timeout", "600s"]);
    std::thread::sleep(Duration::from_secs(2));
    assert!(took_over(), "{:#}\n{}", scene.status(), agent.log());
    newer.kill();
    let restored = || of(scene.workers[0].pid()) == first;
    assert!(eventually(PATIENCE, restored), "{:#}\n{}", scene.status(), agent.log());
    agent.stop();
    scene.taking_agent(&["--detach-on-exit"]).stop();
}

/// A bpffs that is mounted later is taken note of, by itself or when told to, and no connection is
/// lost on the way up. Who stands by goes on to.
#[test]
fn it_climbs_to_ebpf_when_that_becomes_possible() {
    require::cpus(2);
    for told in [false, true] {
        let scene = Scene::new();
        scene.bpffs.unmount();
        // 60 intervals from one try to the next: 3 seconds, or longer than this test's patience.
        let interval = if told { "10s" } else { "50ms" };
        let args = ["--reconcile-interval", interval, "--generation-timeout", "60s"];
        let mut agent = scene.agent(&args);
        let log = agent.log();
        assert!(log.contains("not ebpf") && log.contains("rung incoming-cpu"), "{log}");
        scene.steered();
        let mut newer = None;
        if told {
            std::thread::sleep(Duration::from_secs(12));
            newer = Some(scene.another(0));
            agent.wait_for("a newer one took over");
        }
        let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 2);
        load.advance(50);
        scene.bpffs.mount();
        if told {
            agent.signal(libc::SIGHUP);
        }
        agent.wait_for("attached: ");
        load.advance(50);
        let tally = load.stop();
        assert_eq!(tally.failed(), 0, "{tally}\n{}", agent.log());
        let status = scene.becomes("ebpf", |status| {
            status["steering"]["in_force"] == true && status["problems"] == json!([])
        });
        assert_eq!(status["rung"]["rung"], "ebpf", "{status:#}");
        if newer.is_some() {
            assert_eq!(role(&status, &scene.workers[0]), "standby", "{status:#}");
            let log = agent.log();
            assert_eq!(log.matches("a newer one took over").count(), 1, "{log}");
        } else {
            scene.steered();
        }
        // And not down again.
        std::thread::sleep(Duration::from_secs(1));
        let log = agent.stop();
        assert_eq!(log.matches("eBPF is to be had by now").count(), 1, "{log}");
        assert_eq!(log.matches("not ebpf").count(), 1, "{log}");
        scene.agent(&["--detach-on-exit"]).stop();
    }
}

#[test]
fn classic_bpf_follows_each_change_and_gives_up_when_the_order_is_lost() {
    require::cpus(2);
    let [first, second, ..] = cpus()[..] else { unreachable!("two CPUs are required") };
    let mut scene = Scene::new();
    scene.workers.push(scene.another(0));
    scene.workers.push(scene.another(1));
    // Four workers that call themselves 0, 1, 0 and 1.
    let mut agent = scene.taking_agent(&["--rung", "classic-bpf"]);
    scene.settles_on("classic-bpf");
    let right = |scene: &Scene| {
        scene.reaches(first, 0);
        scene.reaches(second, 1);
    };
    right(&scene);
    drop(scene.workers.remove(0));
    right(&scene);
    scene.workers.push(scene.another(0));
    right(&scene);
    // Two at once, in an order that nobody sees.
    agent.signal(libc::SIGSTOP);
    scene.workers.drain(..2);
    scene.workers.push(scene.another(0));
    agent.signal(libc::SIGCONT);
    agent.wait_for("the kernel's hash decides");
    scene.settles_on("hash");
    scene.workers.push(scene.another(1));
    scene.settles_on("hash");
    // A group that is wholly new is a new beginning.
    scene.workers.clear();
    scene.workers = vec![scene.another(0), scene.another(1)];
    scene.settles_on("classic-bpf");
    right(&scene);
    agent.stop();
    scene.taking_agent(&["--detach-on-exit"]).stop();
}

#[test]
fn restarts_under_load_lose_what_the_kernel_loses_and_no_more() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent = scene.taking_agent(&[]);
    scene.settles_on("incoming-cpu");
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 2);
    for place in [0, 1, 0, 1] {
        // The newer one is there before the older goes, which accepts to its end.
        let newer = scene.another(place);
        load.advance(50);
        scene.workers[place].tell("close");
        drop(std::mem::replace(&mut scene.workers[place], newer));
        load.advance(50);
        scene.settles_on("incoming-cpu");
    }
    let tally = load.stop();
    scene.steered();
    // What waits in the queue of a worker that ends is lost with it; nothing hangs or is refused.
    let lost = |why: &Failure| matches!(why, Failure::Reset | Failure::Eof);
    assert!(tally.failures.keys().all(|(_, why)| lost(why)), "{tally}");
    assert!(tally.failed() <= tally.answered() / 100, "{tally}");
    agent.stop();
    scene.taking_agent(&["--detach-on-exit"]).stop();
}
