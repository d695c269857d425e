//! The command killed at any moment, many of it at once, and the same address in two namespaces.
#![expect(clippy::print_stdout, reason = "how many were hit is worth seeing with --nocapture")]

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use reuseport_tests::binary::Cli;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::cpus;
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::scene::{Scene, number, text};
use reuseport_tests::worker::Spec;

use crate::replan::assert_no_leftovers;

/// SIGKILL after ever longer, from before it has begun to after it has ended: wherever it hits, no
/// connection fails, and the next attach is as if nothing had happened.
#[test]
fn a_killed_attach_costs_no_connection_and_the_next_one_mends_it() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let null = || fs::File::options().write(true).open("/dev/null").expect("/dev/null");
    // How long it takes here and now, for the times to spread over all of it.
    let begun = Instant::now();
    scene.attach(&["--log-misses"]);
    let whole = begun.elapsed();
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 1);
    let rounds = 60;
    let (mut killed, mut ended) = (0, 0);
    for round in 0..rounds {
        // All ways there are: renewed with another program, in place, and after a detach.
        let args = match round % 3 {
            0 => &["--log-misses"] as &[&str],
            1 => &["--policy", "hash"],
            _ => {
                scene.detach();
                &[]
            }
        };
        let mut attach = scene.spawn("attach", args, null());
        thread::sleep(whole * (round + 1) / rounds);
        let alive = attach.alive();
        attach.kill();
        if alive {
            killed += 1;
        } else {
            ended += 1;
        }
        if round % 6 == 5 {
            scene.attach(&[]);
            scene.assert_local();
            assert_no_leftovers(&scene);
        }
    }
    load.advance(20);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    scene.attach(&[]);
    scene.assert_steered();
    assert_no_leftovers(&scene);
    let pins = text(&scene.status()["steering"]["pins"]);
    assert_eq!(scene.detach(), "detached");
    assert!(!std::path::Path::new(&pins).exists(), "{pins}");
    println!("{killed} killed, {ended} had ended, {} connections, 0 failed", tally.answered());
    assert!(killed >= 10, "hardly any was hit: {killed} killed, {ended} had ended");
}

#[test]
fn attaches_at_once_wait_for_each_other() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 1);
    let reports: Vec<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| scene.attach(&[]))).collect();
        all.into_iter().map(|attach| attach.join().expect("an attach")).collect()
    });
    let programs: BTreeSet<u64> =
        reports.iter().map(|it| number(&it["attached"]["program_id"])).collect();
    assert_eq!(programs.len(), 1, "{reports:#?}");
    let generations: BTreeSet<u64> =
        reports.iter().map(|it| number(&it["attached"]["generation"])).collect();
    assert_eq!(generations, BTreeSet::from([1]), "the first planned, the others saw to it");
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    scene.assert_steered();
    assert_no_leftovers(&scene);
}

#[test]
fn attaches_and_detaches_at_once_end_in_one_or_the_other() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 1);
    thread::scope(|scope| {
        for index in 0..8 {
            let verb = if index % 2 == 0 { "attach" } else { "detach" };
            scope.spawn(|| scene.run(verb, &[]).ok());
        }
    });
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    let status = scene.status();
    let (steered, pinned) = (&status["attached"]["state"] == "program", &status["steering"]);
    assert_eq!(pinned.is_object(), steered, "{status:#}");
    assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
    scene.attach(&[]);
    scene.assert_steered();
}

/// A group is more than its address: the same one in two containers is two groups.
#[test]
fn the_same_address_in_two_namespaces_is_two_groups() {
    let scenes = [(); 2].map(|()| Scene::with_workers(&Spec::default()));
    let attached = scenes.each_ref().map(|(scene, _)| scene.attach(&[]));
    let [one, other] = attached.map(|report| number(&report["attached"]["program_id"]));
    assert_ne!(one, other);
    let [one, other] =
        scenes.each_ref().map(|(scene, _)| text(&scene.status()["steering"]["pins"]));
    assert_ne!(one, other);
    for (scene, _) in &scenes {
        scene.assert_steered();
        assert_eq!(scene.status()["group"]["netns"], scene.netns.cookie());
    }
    assert_eq!(scenes[0].0.detach(), "detached");
    scenes[1].0.assert_steered();
}

#[test]
fn a_port_in_two_namespaces_is_ambiguous_until_one_is_named() {
    let port = 8124;
    let spec = Spec { port, ..Spec::default() };
    let scenes = [(); 2].map(|()| {
        let scene = Scene::on(port);
        let workers = scene.one_per_cpu(&spec, 1);
        (scene, workers)
    });
    let outside = Netns::new();
    let run = |args: &[&str]| {
        let all = ["attach", "--json", "--port", "8124"].iter().chain(args);
        Cli::new(all.copied()).netns(&outside).run()
    };
    let refusal = run(&[]).fails(3).says("2 network namespaces");
    for (_, workers) in &scenes {
        let own = workers.iter().map(|worker| format!("--pid {}:", worker.pid()));
        let named = own.filter(|candidate| refusal.stderr.contains(candidate)).count();
        assert_eq!(named, 1, "one process to name each: {refusal}");
    }
    let steered = |scene: &Scene| scene.status()["steering"].is_object();
    assert!(!scenes.iter().any(|(scene, _)| steered(scene)), "it was refused");

    let pid = scenes[0].1[0].pid().to_string();
    run(&["--pid", &pid]).ok();
    assert_eq!([0, 1].map(|index: usize| steered(&scenes[index].0)), [true, false]);
    let path = scenes[1].0.netns.path();
    run(&["--netns", path.to_str().expect("a path of ours is text")]).ok();
    for (scene, _) in &scenes {
        assert!(steered(scene));
        let target = Target::plain("127.0.0.1:8124");
        for cpu in cpus() {
            burst(&scene.netns, cpu, &target, 10).assert_local(reuseport_tests::scene::place);
        }
    }
    // Inside, the own namespace goes without saying only when no other has the port.
    let inside = Cli::new(["status", "--port", "8124"]).netns(&scenes[0].0.netns);
    inside.limit(Duration::from_secs(20)).run().fails(3).says("(this namespace)");
}
