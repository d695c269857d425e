//! What others tell of a running trace.

use reuseport_tests::metrics::Metrics;
use reuseport_tests::worker::Spec;
use reuseport_tests::{cpus, hostile, require};
use serde_json::Value;

use super::{assert_all, connect, start};
use crate::scene::Scene;

/// While one runs, others tell what it sees, by the privileges that they need anyway; and nothing once it
/// is gone, however it went.
#[test]
fn status_and_metrics_show_it_while_it_runs() {
    require::cpus(2);
    let scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    // Those of the agent's unit.
    let few = ["bpf", "perfmon", "sys_ptrace"];
    let status =
        || scene.cli("status", &["--json"]).capabilities(&few).run().ok().json()[0].clone();
    let metrics = || Metrics::of(&scene.cli("metrics", &[]).run().ok().stdout);
    let untraced = |status: &Value| {
        let listeners = status["listeners"].as_array().expect("listeners");
        status["traced"].is_null() && listeners.iter().all(|it| it["traced"].is_null())
    };
    assert!(untraced(&status()));
    for killed in [false, true] {
        let tracer = start(&scene, &["--json"]);
        let none = &status()["traced"]["locality"];
        assert_eq!(none["same"], 0, "{none}");
        for (cpu, count) in cpus().into_iter().zip([30, 12]) {
            connect(&scene, cpu, count);
        }
        let seen = status();
        assert_eq!(seen["traced"]["pid"], tracer.pid(), "{seen:#}");
        let only_same = |same: u32| serde_json::json!({"same": same, "sibling": 0, "llc": 0, "node": 0, "remote": 0});
        assert_eq!(seen["traced"]["locality"], only_same(42), "{seen:#}");
        for (worker, count) in scene.workers.iter().zip([30, 12]) {
            let listeners = seen["listeners"].as_array().expect("listeners");
            let is_its = |it: &&Value| it["cookie"] == worker.cookies()[0];
            let listener = listeners.iter().find(is_its).expect("the worker's");
            assert_eq!(listener["traced"], only_same(count), "{seen:#}");
        }
        let line = "42 connections accepted, 100.00 % on the receiving CPU\n";
        let line = format!("trace (process {}): {line}", tracer.pid());
        let shown = scene.cli("status", &[]).run().ok();
        assert!(shown.stdout.contains(&line), "{line}: {shown}");
        let told = metrics();
        assert_eq!(told.sum("traced_connections_total", &[("distance", "same")]), 42);
        assert_eq!(told.sum("traced_connections_total", &[("distance", "llc")]), 0);
        if killed {
            tracer.kill();
        } else {
            assert_all(&tracer.stop().json(), 42);
        }
        assert!(untraced(&status()));
        assert_eq!(metrics().find("traced_connections_total", &[]), None);
    }
}

/// Neither who looks like a trace to others nor a trace of another group is believed.
#[test]
fn status_shows_no_trace_of_others() {
    let (scene, other) = (Scene::of(&[Spec::default()]), Scene::of(&[Spec::default()]));
    let tracer = start(&other, &["--json"]);
    connect(&other, cpus()[0], 5);
    let status = |scene: &Scene| scene.cli("status", &["--json"]).run().ok().json()[0].clone();
    let _forger = hostile::forge_trace(&scene.netns, &scene.workers[0]);
    assert_eq!(status(&scene)["traced"], Value::Null);
    let seen = status(&other)["traced"].clone();
    let locality = seen["locality"].as_object().expect("an object");
    assert_eq!(locality.values().filter_map(Value::as_u64).sum::<u64>(), 5, "{seen}");
    tracer.kill();
}
