//! Ports and places that cannot be steered: a clear refusal, nothing changed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::thread;
use std::time::Duration;

use reuseport_tests::binary::Cli;
use reuseport_tests::bpffs::Bpffs;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::cpus;
use reuseport_tests::hostile::{Deed, Stranger, attach_classic, seccomp};
use reuseport_tests::leak::Baseline;
use reuseport_tests::process::tool;
use reuseport_tests::worker::{Spec, Style, Worker};

use crate::scene::{Scene, refused};

#[test]
fn nobody_listens_there() {
    let scene = Scene::new();
    for verb in ["attach", "status"] {
        scene.refuses(&scene.cli_at(8099, verb, &[]), 3, &["nobody listens", "8099"]);
    }
    // To detach what is not there is no failure.
    let detached = scene.cli_at(8099, "detach", &[]).run().ok();
    assert!(detached.stdout.contains("nobody listens on tcp port 8099"), "{detached}");
    for verb in ["attach", "detach", "status"] {
        let elsewhere = scene.cli(verb, &["--addr", "127.0.0.9"]);
        scene.refuses(&elsewhere, 3, &["127.0.0.9", "8080", "0.0.0.0:8080"]);
    }
    scene.refuses(&scene.cli_at(8099, "attach", &["--dry-run"]), 3, &["nobody listens"]);
    scene.hashed();
}

#[test]
fn processes_and_namespaces_that_do_not_exist() {
    let scene = Scene::new();
    // Above the largest possible pid_max.
    scene.refuses(
        &scene.cli("attach", &["--pid", "4194305"]),
        3,
        &["no process 4194305", "process id namespace"],
    );
    for (path, word) in [
        ("/nonexistent", "No such file"),
        ("/etc/passwd", "not a network namespace"),
        ("/proc/self/ns/uts", "not a network namespace"),
        ("/proc", "/proc"),
        ("/dev/null", "/dev/null"),
    ] {
        scene.refuses(&scene.cli("attach", &["--netns", path]), 3, &[path, word]);
    }
    scene.hashed();
}

#[test]
fn a_listener_without_reuseport() {
    let scene = Scene::of(&[Spec { reuseport: false, ..Spec::default() }]);
    let pid = scene.workers[0].pid().to_string();
    let options = ["so_reuseport", "listen ... reuseport", "shards by-thread", "enable_reuse_port"];
    let words = [&["SO_REUSEPORT", pid.as_str(), "0.0.0.0:8080"], &options[..]].concat();
    for more in [&[][..], &["--takeover"], &["--policy", "hash"]] {
        scene.refuses(&scene.cli("attach", more), 4, &words);
    }
    assert_eq!(scene.attached()["state"], "nothing");
}

#[test]
fn a_group_of_one() {
    let scene = Scene::of(&[Spec::default()]);
    let words = ["only one listener", "0.0.0.0:8080", "so_reuseport"];
    scene.refuses(&scene.cli("attach", &[]), 4, &words);
    scene.refuses(&scene.cli("attach", &["--dry-run"]), 4, &words);
    scene.hashed();
}

/// Beside a group that can be steered, one that is alone is left as it is, and said.
#[test]
fn a_group_of_one_beside_another() {
    let mut scene = Scene::new();
    let alone = Spec { addr: "127.0.0.1", ..Spec::default() };
    let alone = Worker::start(&scene.netns, &alone);
    let outcome = scene.cli("attach", &[]).run().ok();
    assert!(outcome.stdout.contains("127.0.0.1:8080 has one listener"), "{outcome}");
    assert_eq!(scene.bpffs.pins().len(), 1);
    scene.cli("detach", &[]).run().ok();
    assert!(scene.bpffs.pins().is_empty());
    scene.workers.push(alone);
}

#[test]
fn multipath_listeners() {
    // Built without it, the kernel has no such listeners.
    if !Path::new("/proc/sys/net/mptcp").exists() {
        return;
    }
    let spec = Spec { mptcp: true, ..Spec::default() };
    for specs in [vec![spec.clone()], vec![spec.clone(), spec]] {
        let scene = Scene::of(&specs);
        let words = ["multipath TCP", "GODEBUG=multipathtcp=0", "net.mptcp.enabled=0"];
        scene.refuses(&scene.cli("attach", &[]), 4, &words);
    }
}

/// Attaching through it would break its `listen()`: it has to go through the others.
#[test]
fn a_member_that_does_not_listen_yet() {
    let waiting = Spec { listen: false, ..Spec::default() };
    let mut scene = Scene::of(&[waiting, Spec::default(), Spec::default()]);
    let outcome = scene.cli("attach", &["--json"]).run().ok();
    assert_eq!(outcome.json()[0]["slots"], serde_json::json!([0, 1]), "{outcome}");
    scene.workers[0].tell("listen");
    let tally = burst(&scene.netns, cpus()[0], &Target::plain("127.0.0.1:8080"), 30);
    assert_eq!(tally.failed(), 0, "{tally}");
    let again = scene.cli("attach", &["--json"]).run().ok().json();
    assert_eq!(again[0]["slots"].as_array().map(Vec::len), Some(3), "{again}");
    scene.cli("detach", &[]).run().ok();
    scene.hashed();

    let alone = Scene::of(&[Spec { listen: false, ..Spec::default() }]);
    alone.refuses(&alone.cli("attach", &[]), 3, &["bound", "does not listen yet"]);
}

#[test]
fn datagrams_are_refused_unless_asked_for() {
    let spec = Spec { udp: true, ..Spec::default() };
    let scene = Scene::of(&[spec.clone(), spec]);
    scene.refuses(&scene.cli("attach", &[]), 3, &["nobody listens on tcp", "UDP", "--udp"]);
    let streams = Scene::new();
    let asked = streams.cli("attach", &["--udp"]);
    streams.refuses(&asked, 3, &["TCP listener", "without --udp"]);
}

/// Threads that nobody can be seen to serve are not guessed at.
#[test]
fn workers_that_cannot_be_seen() {
    let spec = Spec { style: Style::Poll, listeners: 2, ..Spec::default() };
    let scene = Scene::of(&[spec]);
    let outcome = scene.cli("attach", &["--dry-run"]).run();
    // One thread polls both: known or not, it must not be a crash or a wrong claim.
    assert!(matches!(outcome.code, Some(0 | 4)), "{outcome}");
    if outcome.code == Some(4) {
        assert!(outcome.stderr.contains("--worker") && outcome.stderr.contains("--policy hash"));
    }
}

#[test]
fn no_bpffs() {
    let scene = Scene::new();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_str().expect("a path of ours is text");
    let missing = format!("{path}/missing");
    let file = format!("{path}/file");
    fs::write(&file, "").expect("write a file");
    let long = format!("/{}", "x".repeat(300));
    for verb in ["attach", "detach", "status"] {
        let at = |place| {
            let here = ["--netns", "/proc/self/ns/net"];
            let args = [verb, "--port", "8080", "--bpffs", place].into_iter().chain(here);
            Cli::new(args).netns(&scene.netns)
        };
        for place in [path, &missing, &file, "/proc"] {
            let cli = at(place);
            let words = [place, "not a mounted BPF file system", "mount -t bpf", "--bpffs"];
            if verb == "status" {
                // Whoever does without eBPF has none, and can look all the same.
                let shown = cli.run().ok().stdout;
                assert!(words.iter().all(|word| shown.contains(word)), "{shown}");
            } else {
                refused(&cli, 6, &words);
            }
        }
        refused(&at(&long), 6, &["name too long"]);
    }
    let unmounted =
        ["unshare", "--mount", "sh", "-c", "umount -l /sys/fs/bpf && exec \"$@\"", "sh"];
    let args = ["attach", "--port", "8080", "--netns", "/proc/self/ns/net"];
    let cli = Cli::new(args).netns(&scene.netns).through(unmounted);
    // Pins on one that is mounted in there would go with it.
    refused(&cli, 6, &["/sys/fs/bpf", "ip netns exec", "--netns FILE"]);
    assert!(fs::read_dir(path).expect("the directory").count() == 1);
    scene.hashed();
}

#[test]
fn a_read_only_bpffs() {
    let scene = Scene::new();
    let path = scene.bpffs.path().to_str().expect("a path of ours is text");
    let script = format!("mount -t bpf -o ro bpf {path} && exec \"$@\"");
    let cli = scene.cli("attach", &[]).through(["unshare", "--mount", "sh", "-c", &script, "sh"]);
    scene.refuses(&cli, 6, &["read-only", "remount,rw", path]);
    // One that was made before it became read-only.
    scene.cli("attach", &[]).run().ok();
    let script = format!("mount -o remount,bind,ro {path} && exec \"$@\"");
    let through = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let before = scene.bpffs.pins();
    let outcome = refused(&scene.cli("detach", &[]).through(through), 6, &["read-only"]);
    assert_eq!(scene.bpffs.pins(), before, "{outcome}");
    let status = scene.cli("status", &["--json"]).run().ok().json();
    assert_eq!(status[0]["steering"]["in_force"], true, "half detached: {status}");
    scene.cli("detach", &[]).run().ok();
    scene.hashed();
}

#[test]
fn a_pin_directory_that_others_may_write() {
    let scene = Scene::new();
    let base = scene.bpffs.base();
    let shown = base.display().to_string();
    fs::create_dir(&base).expect("make the base directory");
    for (mode, uid) in [(0o777, 0), (0o770, 0), (0o702, 0), (0o1777, 0), (0o700, 65534)] {
        fs::set_permissions(&base, Permissions::from_mode(mode)).expect("chmod");
        chown(&base, Some(uid), None).expect("chown");
        let mode = format!("{mode:04o}");
        let owner = format!("owner {uid}");
        for verb in ["attach", "detach"] {
            // What somebody else made may hold traps of theirs: it is not to be adopted.
            let remedy = if uid == 0 { "chmod 0700" } else { "rm -r" };
            let words = [shown.as_str(), mode.as_str(), owner.as_str(), remedy];
            let outcome = scene.refuses(&scene.cli(verb, &[]), 5, &words);
            assert!(!outcome.stderr.contains("chown"), "{outcome}");
        }
    }
    scene.hashed();
    chown(&base, Some(0), None).expect("chown");
    fs::set_permissions(&base, Permissions::from_mode(0o700)).expect("chmod");
    scene.cli("attach", &[]).run().ok();
    scene.cli("detach", &[]).run().ok();
}

#[test]
fn a_base_path_that_is_no_directory() {
    let elsewhere = Bpffs::new();
    let scene = Scene::new();
    let base = scene.bpffs.base();
    let shown = base.display().to_string();
    symlink(elsewhere.path(), &base).expect("bpffs takes links");
    let words = [shown.as_str(), "not a directory", "remove it"];
    for verb in ["attach", "detach"] {
        scene.refuses(&scene.cli(verb, &[]), 6, &words);
    }
    assert!(!elsewhere.base().exists());
    fs::remove_file(&base).expect("remove the link");
    let map = ["type", "array", "key", "4", "value", "4", "entries", "1", "name", "alien"];
    tool("bpftool", &[&["map", "create", &shown], &map[..]].concat());
    for verb in ["attach", "detach"] {
        scene.refuses(&scene.cli(verb, &[]), 6, &words);
    }
    fs::remove_file(&base).expect("remove the pin");
    scene.hashed();
}

/// A kernel before 5.6 answers ENOSYS, and so does a filter that is told to.
#[test]
fn a_kernel_without_pidfd_getfd() {
    let scene = Scene::new();
    for call in [libc::SYS_pidfd_getfd, libc::SYS_pidfd_open] {
        let cli = scene.cli("attach", &[]).through(seccomp(libc::ENOSYS, &[call]));
        scene.refuses(&cli, 6, &["pidfd_getfd", "5.6"]);
    }
    scene.hashed();
}

#[test]
fn the_lock_is_waited_for_and_named() {
    let scene = Scene::new();
    let base = scene.bpffs.base();
    fs::create_dir(&base).expect("make the base directory");
    fs::set_permissions(&base, Permissions::from_mode(0o700)).expect("chmod");
    let lock = File::open(&base).expect("open the base directory");
    lock.lock().expect("flock");
    let shown = base.display().to_string();
    let words = ["another reuseport-steer", shown.as_str(), "/proc/locks", "try again"];
    scene.refuses(&scene.cli("attach", &[]), 7, &words);
    // Looking takes no lock.
    scene.cli("status", &[]).run().ok();
    scene.cli("attach", &["--dry-run"]).run().ok();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(500));
            lock.unlock().expect("unlock");
        });
        scene.cli("attach", &[]).run().ok();
    });
    scene.steered();
    scene.cli("detach", &[]).run().ok();
}

/// Late refusals: the object is loaded, its maps are pinned aside, one listener is in the map.
#[test]
fn refusals_leave_no_program() {
    let before = Baseline::take();
    {
        let mut scene = Scene::new();
        let getfd = seccomp(libc::EPERM, &[libc::SYS_pidfd_getfd]);
        scene.refuses(&scene.cli("attach", &[]).through(getfd), 5, &["seccomp"]);
        let stranger = Stranger::start(&scene.netns, &scene.workers[1], Deed::Map);
        scene.refuses(&scene.cli("attach", &[]), 7, &["socket map"]);
        drop(stranger);
        attach_classic(&scene.netns, &scene.workers[0]);
        scene.refuses(&scene.cli("attach", &[]), 7, &["classic BPF program"]);
        scene.workers.clear();
    }
    before.assert_same();
}
