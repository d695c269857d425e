//! `attach` again, under load: the plan, the maps and the program change, and no connection fails.

use std::fs::{self, File};
use std::time::Duration;

use reuseport_tests::client::{Target, burst};
use reuseport_tests::load::Load;
use reuseport_tests::scene::{Scene, number};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually};
use serde_json::Value;

fn load(scene: &Scene) -> Load {
    Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 1)
}

fn assert_none_failed(load: Load) {
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    assert!(tally.answered() > 0, "there was no load");
}

/// What is in force, as a report says it: program, generation, whether it was in place.
fn in_force(report: &Value) -> (u64, u64, bool) {
    let attached = &report["attached"];
    let in_place = attached["in_place"].as_bool().expect("a flag");
    (number(&attached["program_id"]), number(&attached["generation"]), in_place)
}

#[test]
fn policies_and_weights_change_in_place_under_load() {
    let (scene, workers) = Scene::with_workers(&Spec::default());
    let load = load(&scene);
    let (program, mut last, in_place) = in_force(&scene.attach(&[]));
    assert_eq!((last, in_place), (1, false));
    let [weight, normal] = [25, 100].map(|percent| format!("{}={percent}", workers[0].pid()));
    for round in 0..3 {
        for args in [
            &["--policy", "hash"] as &[&str],
            &["--policy", "random", "--weight", &weight],
            &["--policy", "round-robin"],
            &["--weight", &weight],
            &["--weight", &normal],
        ] {
            assert_eq!(
                in_force(&scene.attach(args)),
                (program, last + 1, true),
                "{round} {args:?}"
            );
            last += 1;
            load.advance(20);
        }
    }
    assert_none_failed(load);
    scene.assert_steered();
    let status = scene.status();
    assert_eq!(status["steering"]["generation"], last);
    assert_eq!(status["attached"]["id"], program);
}

#[test]
fn a_group_that_outgrows_the_map_gets_another_program_under_load() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let (program, _, _) = in_force(&scene.attach(&[]));
    let slots = number(&scene.status()["steering"]["slots"]) as u32;
    let load = load(&scene);
    load.advance(100);
    let more = Spec { index: 1000, listeners: slots, cpus: vec![cpus()[0]], ..Spec::default() };
    let _more = Worker::start(&scene.netns, &more);
    let (renewed, generation, in_place) = in_force(&scene.attach(&[]));
    assert_ne!(renewed, program);
    assert_eq!((generation, in_place), (2, false), "the count goes on");
    load.advance(100);
    // There is room again; and nothing to change.
    assert_eq!(in_force(&scene.attach(&[])), (renewed, 2, true));
    assert_none_failed(load);
    let status = scene.status();
    assert!(number(&status["steering"]["slots"]) > u64::from(slots));
    assert_eq!(status["problems"], serde_json::json!([]), "{:#}", status["problems"]);
    let unseated = status["listeners"].as_array().unwrap().iter().filter(|it| it["slot"].is_null());
    assert_eq!(unseated.count(), 0);
    assert_no_leftovers(&scene);
}

/// Beside the group's pins nothing of it is left.
pub(crate) fn assert_no_leftovers(scene: &Scene) {
    let pins = scene.status()["steering"]["pins"].as_str().expect("pins").to_owned();
    let (base, own) = pins.rsplit_once('/').expect("a path");
    let names = fs::read_dir(base).expect("the pins' directory").flatten();
    let names: Vec<_> = names.map(|entry| entry.file_name().display().to_string()).collect();
    let ours: Vec<_> = names.iter().filter(|name| name.ends_with(own)).collect();
    assert_eq!(ours, [own], "of {names:?}");
}

#[test]
fn the_log_is_switched_on_and_off_under_load() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let silent = in_force(&scene.attach(&[]));
    let load = load(&scene);
    let logging = in_force(&scene.attach(&["--log-misses"]));
    assert!(logging.0 != silent.0 && !logging.2, "{silent:?}, then {logging:?}");
    assert_eq!(scene.status()["steering"]["logs"], true);
    assert_eq!(in_force(&scene.attach(&["--log-misses"])), (logging.0, 2, true));
    let silent = in_force(&scene.attach(&[]));
    assert!(silent.0 != logging.0 && !silent.2, "{logging:?}, then {silent:?}");
    assert_eq!(scene.status()["steering"]["logs"], false);
    load.advance(50);
    assert_none_failed(load);
    scene.assert_steered();
    scene.run("log", &[]).fails(1).says("--log-misses");
}

#[test]
fn a_miss_is_a_line_of_the_log() {
    let (scene, workers) = Scene::with_workers(&Spec::default());
    scene.attach(&["--log-misses"]);
    // In the group, and in no slot: who answers when nobody with a slot is left.
    let _late = Worker::start(&scene.netns, &Spec { index: 77, ..Spec::default() });
    let out = tempfile::NamedTempFile::new().expect("a temporary file");
    let file = |path| File::options().append(true).open(path).expect("the log's file");
    let mut log = scene.spawn("log", &[], file(out.path()));
    let said = || fs::read_to_string(out.path()).expect("the log");

    // Who is steered is not logged; and the log may take a moment to start.
    burst(&scene.netns, cpus()[0], &Target::plain("127.0.0.1:8080"), 20);
    drop(workers);
    let heard = eventually(Duration::from_secs(20), || {
        let tally = burst(&scene.netns, cpus()[0], &Target::plain("127.0.0.1:8080"), 1);
        assert_eq!(tally.answered(), 1, "{tally}");
        said().contains("miss")
    });
    assert!(heard && log.alive(), "no line: {}", said());
    let line = said().lines().next().expect("a line").to_owned();
    assert!(line.contains(&format!("cpu {}", cpus()[0])), "{line}");

    log.signal(libc::SIGINT);
    let ended = log.wait(Duration::from_secs(10)).expect("it ends by SIGINT");
    assert!(ended.success(), "{ended}: {}", said());
    let misses = scene.counter("no_socket");
    assert!(said().lines().count() as u64 <= misses, "more lines than {misses} misses");
}

/// Every kind of change, one after the other, with clients on every CPU all the time.
#[test]
fn attach_and_detach_in_any_order_fail_no_connection() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let load = load(&scene);
    for _ in 0..5 {
        for args in [&[] as &[&str], &["--log-misses"], &["--policy", "hash"], &[]] {
            scene.attach(args);
        }
        assert_eq!(scene.detach(), "detached");
        assert_eq!(scene.detach(), "already");
    }
    scene.attach(&[]);
    assert_none_failed(load);
    scene.assert_steered();
}
