//! `status` as JSON, against what is known to be so.

use reuseport_tests::client::{Target, burst};
use reuseport_tests::cpus;
use reuseport_tests::process::tool;
use reuseport_tests::scene::{Scene, number};
use reuseport_tests::worker::{Spec, Worker};
use serde_json::{Value, json};

#[test]
fn it_says_who_sits_where_and_what_came_to_each() {
    let (scene, workers) = Scene::with_workers(&Spec::default());
    let report = scene.attach(&[]);
    let target = Target::plain("127.0.0.1:8080");
    let sent = |place: usize| 10 * (place as u64 + 1);
    for (place, cpu) in cpus().into_iter().enumerate() {
        burst(&scene.netns, cpu, &target, sent(place) as u32);
    }
    let status = scene.status();
    assert_eq!(status["group"]["address"], "0.0.0.0:8080");
    assert_eq!(status["group"]["netns"], scene.netns.cookie());
    assert_eq!(status["problems"], json!([]), "{status:#}");

    let listeners = status["listeners"].as_array().unwrap();
    assert_eq!(listeners.len(), workers.len());
    for (place, (worker, cpu)) in workers.iter().zip(cpus()).enumerate() {
        let own = |it: &&Value| number(&it["cookie"]) == worker.cookies()[0];
        let listener = listeners.iter().find(own).expect("its cookie is there");
        assert_eq!(listener["selections"], sent(place), "{listener:#}");
        let served = &listener["served"]["by"][0];
        assert_eq!(
            (&served["pid"], &served["cpus"]),
            (&json!(worker.pid()), &json!(cpu.to_string()))
        );
        let slot = &listener["slot"];
        let order = report["listeners"].as_array().unwrap();
        let order = order.iter().position(|it| own(&it)).expect("the report has it too");
        assert_eq!(slot, &report["slots"][order]);
        let steering = &status["steering"];
        assert_eq!(steering["rows"][cpu as usize]["first"], json!([slot]), "{steering:#}");
        let by_cpu = steering["counters"]["by_cpu"].as_array().unwrap();
        let here = by_cpu.iter().find(|it| it["cpu"] == cpu).expect("its CPU selected");
        assert_eq!(here["slots"], json!([[slot, sent(place)]]));
    }
    let steering = &status["steering"];
    let all: u64 = (0..workers.len()).map(sent).sum();
    for name in ["runs", "first", "local"] {
        assert_eq!(steering["counters"][name], all, "{name}: {steering:#}");
    }
    let misses = ["second", "spilled", "migrated", "no_config", "no_row", "empty_row", "no_socket"];
    assert!(misses.iter().all(|&name| steering["counters"][name] == 0), "{steering:#}");
    assert_eq!(steering["program_id"], report["attached"]["program_id"]);
    assert_eq!(steering["policy"], "cpu");
    assert_eq!(status["attached"], json!({"state": "program", "id": steering["program_id"]}));
    // The kernel's own view of the same program.
    let id = steering["program_id"].to_string();
    let shown: Value = serde_json::from_str(&tool("bpftool", &["-j", "prog", "show", "id", &id]))
        .expect("bpftool speaks JSON");
    assert_eq!(shown["type"], "sk_reuseport");
}

#[test]
fn a_listener_without_a_seat_is_reported() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    scene.attach(&[]);
    let late = Worker::start(&scene.netns, &Spec { index: 9, cpus: cpus(), ..Spec::default() });
    let status = scene.status();
    let unseated: Vec<u64> = status["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["slot"].is_null())
        .map(|it| number(&it["cookie"]))
        .collect();
    assert_eq!(unseated, late.cookies());
    assert!(status["problems"].to_string().contains("1 listeners joined since"), "{status:#}");
    scene.attach(&[]);
    let status = scene.status();
    assert!(!status["problems"].to_string().contains("joined since"), "{status:#}");
}

/// The kernel tells of TCP groups alone whose program is attached: nothing is wrong with the others.
#[test]
fn a_healthy_datagram_group_has_no_problem() {
    let spec = Spec { udp: true, ..Spec::default() };
    let scene = crate::scene::Scene::of(&[spec.clone(), spec]);
    // Programs of the tests beside this one could be its own, for all that can be seen.
    scene.cli("attach", &["--udp", "--takeover"]).run().ok();
    let status = scene.cli("status", &["--udp"]).run().ok();
    assert!(status.stdout.contains("steered: policy cpu"), "{status}");
    assert!(status.stdout.contains("whether it is still attached cannot be seen"), "{status}");
    assert!(!status.stdout.contains('!'), "{status}");
    scene.cli("detach", &["--udp"]).run().ok();
}

#[test]
fn a_group_that_is_not_steered_is_shown_as_it_is() {
    let (scene, workers) = Scene::with_workers(&Spec::default());
    let status = scene.status();
    assert_eq!(status["attached"]["state"], "nothing");
    assert_eq!(status["steering"], Value::Null);
    assert_eq!(status["problems"], json!([]), "{status:#}");
    let slots: Vec<_> =
        status["listeners"].as_array().unwrap().iter().map(|it| &it["slot"]).collect();
    assert_eq!(slots, vec![&Value::Null; workers.len()]);
}

/// Somebody attaches a program in the place of ours: it works no more, and `status` says whose it is.
#[test]
fn a_foreign_program_in_place_of_ours_is_reported() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let ours = number(&scene.attach(&[])["attached"]["program_id"]);
    // The same kind of program, from another instance's pins: foreign by its id.
    let bpffs = tempfile::tempdir().expect("a directory");
    let mount = bpffs.path().to_str().expect("a path of ours is text");
    tool("mount", &["-t", "bpf", "bpf", mount]);
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        scene.run("attach", &["--bpffs", mount]).fails(7).says("reuseport-steer's own");
        scene.run("attach", &["--bpffs", mount, "--takeover"]).ok();
        let status = scene.status();
        scene.run("detach", &["--bpffs", mount]).ok();
        status
    }));
    tool("umount", &[mount]);
    let status = seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_eq!(status["attached"]["state"], "program");
    let theirs = number(&status["attached"]["id"]);
    assert_ne!(theirs, ours);
    assert_eq!(status["steering"]["in_force"], false, "{status:#}");
    let said = status["problems"].to_string();
    assert!(said.contains(&format!("program {theirs} steers it, reuseport-steer's own")), "{said}");
    // And ours is back with the next attach.
    scene.attach(&[]);
    scene.assert_steered();
}
