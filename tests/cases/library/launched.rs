//! Servers made with the library, of which `reuseport-steer run` starts one for each CPU: it replaces
//! them, they do not replace each other.

use std::collections::BTreeSet;

use reuseport_tests::launcher::{Launch, Launcher};
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::server::example;
use reuseport_tests::{cpus, require};

use super::{ADDRESS, from_each_cpu, here};

/// Both ways to a listener.
const WAYS: [[&str; 4]; 2] =
    [["--port", "8080", "--workers", "per-cpu"], ["--listen", ADDRESS, "--workers", "per-cpu"]];

/// Copies that end as soon as somebody takes over from them.
fn launch<'a>(netns: &'a Netns, way: &[&str]) -> Launcher<'a> {
    let path = example("restart");
    let path = path.to_str().expect("a path of ours is text");
    Launch::new(netns, [way, &["--", path, ADDRESS, "worker-%i"]].concat()).up()
}

/// That every worker has its CPU's connections, and nobody's else.
fn assert_all_serve(netns: &Netns, launcher: &Launcher<'_>) {
    let worker = |cpu: u32| {
        let index = cpus().iter().position(|&it| it == cpu).expect("a CPU of ours");
        format!("worker-{index}")
    };
    from_each_cpu(netns, &here()).assert_local(worker);
    let status = launcher.status(8080);
    assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
    let listeners = status["listeners"].as_array().expect("listeners");
    assert_eq!(listeners.len(), cpus().len(), "{status:#}");
    assert!(listeners.iter().all(|it| it["role"] == "active"), "{status:#}");
}

#[test]
fn copies_serve_side_by_side() {
    require::cpus(2);
    for way in WAYS {
        let netns = Netns::new();
        let mut launcher = launch(&netns, &way);
        launcher.wait_for("[run] steering tcp");
        let workers = launcher.workers();
        assert_all_serve(&netns, &launcher);
        assert_eq!(launcher.workers(), workers, "one ended: {}", launcher.said());
        assert!(!launcher.said().contains("Superseded"), "{}", launcher.said());
        launcher.stop();
    }
}

#[test]
fn copies_are_rolled_without_a_lost_connection() {
    require::cpus(2);
    for way in WAYS {
        let netns = Netns::new();
        let mut launcher = launch(&netns, &way);
        launcher.wait_for("[run] steering tcp");
        let load = Load::start(&netns, &here(), &cpus(), 2);
        for times in 1..=2 {
            load.advance(50);
            let old: BTreeSet<u32> = launcher.workers().into_values().collect();
            launcher.signal(libc::SIGHUP);
            launcher.wait_for_times("rolling restart: done", times);
            let new: BTreeSet<u32> = launcher.workers().into_values().collect();
            assert!(old.is_disjoint(&new), "{}", launcher.said());
        }
        load.advance(50);
        let tally = load.stop();
        assert_eq!(tally.failed(), 0, "{tally}\n{}", launcher.said());
        assert_all_serve(&netns, &launcher);
        launcher.stop();
    }
}
