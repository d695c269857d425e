//! A pin directory that somebody else got at: nothing beyond it is touched, nothing in it trusted.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reuseport_tests::hostile::Stranger;
use reuseport_tests::process::tool;
use reuseport_tests::worker::{Spec, Worker};

use crate::scene::Scene;

const NOBODY: u32 = 65534;

/// A directory with something to lose.
struct Victim(tempfile::TempDir);

impl Victim {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("precious"), "kept").expect("write a file");
        Self(directory)
    }

    fn assert_untouched(&self) {
        let entries = fs::read_dir(self.0.path()).expect("the victim is there").flatten();
        let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["precious"]);
        assert_eq!(fs::read_to_string(self.0.path().join("precious")).expect("a file"), "kept");
    }
}

/// Where the group's pins are when it is attached.
fn place(scene: &Scene) -> PathBuf {
    scene.cli("attach", &[]).run().ok();
    let name = scene.bpffs.pins().pop().expect("pins of an attached group");
    scene.cli("detach", &[]).run().ok();
    scene.bpffs.base().join(name)
}

fn aside(place: &Path, prefix: &str) -> PathBuf {
    let name = place.file_name().and_then(|name| name.to_str()).expect("a name of ours is text");
    place.with_file_name(format!("{prefix}{name}"))
}

#[test]
fn links_are_not_followed() {
    let scene = Scene::new();
    let victim = Victim::new();
    let place = place(&scene);
    let (new, old) = (aside(&place, "new-"), aside(&place, "old-"));
    let nowhere = victim.0.path().join("nowhere");
    // Each alone, to a directory and to nothing; then both, with pins to be replaced.
    for target in [victim.0.path(), &nowhere] {
        for link in [&new, &old] {
            symlink(target, link).expect("bpffs takes links");
            scene.cli("attach", &[]).run().ok();
            victim.assert_untouched();
            assert_eq!(scene.bpffs.pins().len(), 1, "{link:?} is left");
            scene.steered();
            symlink(target, link).expect("bpffs takes links");
            scene.cli("attach", &["--log-misses"]).run().ok();
            assert_eq!(scene.bpffs.pins().len(), 1, "{link:?} is left");
            scene.cli("detach", &[]).run().ok();
            victim.assert_untouched();
        }
        symlink(target, &place).expect("bpffs takes links");
        let shown = place.display().to_string();
        for verb in ["attach", "detach"] {
            let words = [shown.as_str(), "not a directory", "remove it"];
            scene.refuses(&scene.cli(verb, &[]), 6, &words);
        }
        victim.assert_untouched();
        fs::remove_file(&place).expect("remove the link");
        scene.hashed();
    }
}

#[test]
fn directories_of_others_are_refused() {
    let scene = Scene::new();
    let place = place(&scene);
    for path in [aside(&place, "new-"), aside(&place, "old-"), place] {
        fs::create_dir(&path).expect("make a directory");
        for (mode, uid, remedy) in [(0o700, NOBODY, "rm -r"), (0o777, 0, "chmod 0700")] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
            chown(&path, Some(uid), None).expect("chown");
            let shown = path.display().to_string();
            let words = [shown.as_str(), remedy, "whoever may write here may steer"];
            scene.refuses(&scene.cli("attach", &[]), 5, &words);
        }
        fs::remove_dir(&path).expect("remove the directory");
        scene.hashed();
    }
    scene.cli("attach", &[]).run().ok();
    scene.steered();
    scene.cli("detach", &[]).run().ok();
}

/// A frozen map takes no deletion either: its sockets are free once it has gone.
#[test]
fn frozen_maps_can_be_detached() {
    let scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    let name = scene.bpffs.pins().pop().expect("pins of an attached group");
    let pins = scene.bpffs.base().join(name);
    for map in ["SOCKETS", "LOAD"] {
        let map = pins.join(map);
        let map = map.to_str().expect("a path of ours is text");
        tool("bpftool", &["map", "freeze", "pinned", map]);
        scene.cli("status", &[]).run().ok();
    }
    scene.steered();
    scene.cli("detach", &[]).run().ok();
    assert!(scene.bpffs.pins().is_empty(), "pins are left");
    scene.hashed();
    let free = reuseport_tests::eventually(Duration::from_secs(10), || {
        scene.cli("attach", &[]).run().code == Some(0)
    });
    assert!(free, "the frozen map is gone, its hold is not");
    scene.steered();
    scene.cli("detach", &[]).run().ok();
}

/// `--takeover` is about one port: what the same map holds of another one's stays there.
#[test]
fn a_takeover_spares_other_groups() {
    let mut scene = Scene::new();
    for index in [2, 3] {
        let spec = Spec { index, port: 8081, cpus: reuseport_tests::cpus(), ..Spec::default() };
        scene.workers.push(Worker::start(&scene.netns, &spec));
    }
    let workers = &scene.workers;
    let stranger = Stranger::share(&scene.netns, &workers[0], &workers[2], 8);
    scene.cli("attach", &["--takeover"]).run().ok();
    scene.steered();
    // No program on that port: only the map's hold on its listener is in the way, if it is there.
    let pid = workers[2].pid().to_string();
    let words = ["another program's socket map", pid.as_str()];
    scene.refuses(&scene.cli_at(8081, "attach", &["--takeover"]), 7, &words);
    scene.cli("detach", &[]).run().ok();
    drop(stranger);
}

/// Maps with 4-byte values do not tell whose sockets they hold.
#[test]
fn a_takeover_leaves_unreadable_maps_alone() {
    let mut scene = Scene::new();
    let spec = Spec { index: 2, port: 8081, cpus: reuseport_tests::cpus(), ..Spec::default() };
    scene.workers.push(Worker::start(&scene.netns, &spec));
    let workers = &scene.workers;
    let stranger = Stranger::share(&scene.netns, &workers[0], &workers[2], 4);
    let pid = workers[0].pid().to_string();
    let words = ["another program's socket map", pid.as_str()];
    scene.refuses(&scene.cli("attach", &["--takeover"]), 7, &words);
    drop(stranger);
}
