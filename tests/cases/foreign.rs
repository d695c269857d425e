//! Other people's programs and maps: seen, named, left alone; replaced only on demand.

use reuseport_tests::hostile::{Deed, Stranger, attach_classic, detach};
use reuseport_tests::worker::Spec;

use crate::scene::Scene;

/// Refused and left alone; then replaced, which is for good.
fn refused_then_taken_over(scene: &Scene, words: &[&str]) {
    let theirs = scene.attached();
    scene.refuses(&scene.cli("attach", &[]), 7, &[&["--takeover", "8080"], words].concat());
    let status = scene.cli("status", &[]).run().ok();
    assert!(status.stdout.contains("not steered by us"), "{status}");
    let outcome = scene.cli("detach", &["--json"]).run().fails(7).json();
    assert_eq!(outcome[0]["outcome"], "foreign", "{outcome}");
    assert_eq!(scene.attached(), theirs, "what is theirs was touched");
    scene.cli("attach", &["--takeover"]).run().ok();
    scene.steered();
    scene.cli("detach", &[]).run().ok();
    scene.hashed();
}

#[test]
fn an_ebpf_program() {
    let scene = Scene::new();
    let _stranger = Stranger::start(&scene.netns, &scene.workers[0], Deed::Program);
    assert_eq!(scene.attached()["state"], "program");
    refused_then_taken_over(&scene, &["another program", "somebody_elses"]);
}

#[test]
fn a_classic_program() {
    let scene = Scene::new();
    attach_classic(&scene.netns, &scene.workers[0]);
    assert_eq!(scene.attached()["state"], "classic");
    refused_then_taken_over(&scene, &["classic BPF program"]);
}

#[test]
fn a_program_that_holds_a_listener() {
    let scene = Scene::new();
    let _stranger = Stranger::start(&scene.netns, &scene.workers[0], Deed::ProgramWithMap);
    refused_then_taken_over(&scene, &["somebody_elses"]);
}

/// Nothing tells whose map it is, so `--takeover` does not help either.
#[test]
fn a_map_that_holds_a_listener() {
    let scene = Scene::new();
    let stranger = Stranger::start(&scene.netns, &scene.workers[1], Deed::Map);
    let pid = scene.workers[1].pid().to_string();
    for more in [&[][..], &["--takeover"], &["--policy", "hash"]] {
        let words = ["another program's socket map", pid.as_str(), "bpftool map", "8080"];
        scene.refuses(&scene.cli("attach", more), 7, &words);
    }
    scene.hashed();
    // Maps end some time after their last user.
    drop(stranger);
    let free = reuseport_tests::eventually(std::time::Duration::from_secs(10), || {
        scene.cli("attach", &[]).run().code == Some(0)
    });
    assert!(free, "the stranger is gone, its hold is not");
    scene.steered();
    scene.cli("detach", &[]).run().ok();
}

/// A listener that joins while it sits in a stranger's map: what is steered stays steered.
#[test]
fn a_replan_that_fails_leaves_the_old_plan() {
    let mut scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    let late = Spec { index: 7, cpus: reuseport_tests::cpus(), ..Spec::default() };
    let late = reuseport_tests::worker::Worker::start(&scene.netns, &late);
    let _stranger = Stranger::start(&scene.netns, &late, Deed::Map);
    scene.workers.push(late);
    let before = scene.cli("status", &["--json"]).run().ok().json();
    scene.refuses(&scene.cli("attach", &[]), 7, &["another program's socket map"]);
    let after = scene.cli("status", &["--json"]).run().ok().json();
    for what in ["generation", "program_id", "in_force", "rows"] {
        assert_eq!(before[0]["steering"][what], after[0]["steering"][what], "{after}");
    }
    scene.steered();
    scene.cli("detach", &[]).run().ok();
}

#[test]
fn a_stranger_that_replaces_ours() {
    let scene = Scene::new();
    for classic in [false, true] {
        scene.cli("attach", &[]).run().ok();
        let stranger =
            (!classic).then(|| Stranger::start(&scene.netns, &scene.workers[0], Deed::Program));
        if classic {
            attach_classic(&scene.netns, &scene.workers[0]);
        }
        let theirs = scene.attached();
        let status = scene.cli("status", &[]).run().ok().stdout;
        assert!(status.contains("NOT IN FORCE") && status.contains("--takeover"), "{status}");
        let outcome = scene.cli("detach", &["--json"]).run().fails(7).json();
        assert_eq!(outcome[0]["outcome"], "foreign", "{outcome}");
        assert!(scene.bpffs.pins().is_empty(), "pins of ours are left");
        assert_eq!(scene.attached(), theirs, "what is theirs was touched");
        detach(&scene.netns, &scene.workers[0]);
        drop(stranger);
        scene.hashed();
    }
}

/// Somebody detached ours: status says so, attach brings it back.
#[test]
fn ours_taken_off_by_a_stranger() {
    let scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    detach(&scene.netns, &scene.workers[0]);
    let status = scene.cli("status", &[]).run().ok().stdout;
    assert!(status.contains("NOT IN FORCE") && status.contains("no program is attached"));
    scene.cli("attach", &[]).run().ok();
    scene.steered();
    scene.cli("detach", &[]).run().ok();
    scene.hashed();
}

/// Of datagram groups the kernel does not tell: any program of the type is a suspect.
#[test]
fn a_suspect_where_ownership_is_unknown() {
    let spec = Spec { udp: true, ..Spec::default() };
    let scene = Scene::of(&[spec.clone(), spec]);
    let _stranger = Stranger::start(&scene.netns, &scene.workers[0], Deed::Program);
    let words = ["cannot be seen", "somebody_elses", "--takeover"];
    scene.refuses(&scene.cli("attach", &["--udp"]), 7, &words);
    scene.cli("attach", &["--udp", "--takeover"]).run().ok();
    scene.cli("detach", &["--udp"]).run().ok();
    assert!(scene.bpffs.pins().is_empty());
}
