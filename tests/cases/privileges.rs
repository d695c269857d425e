//! Too little power, each kind of it: which is missing, how to get it, nothing changed; and the least
//! that is enough.

use reuseport_tests::cpus;
use reuseport_tests::hostile::seccomp;
use reuseport_tests::worker::{Spec, Style};

use crate::scene::{Scene, refused};

const NOBODY: u32 = 65534;
/// Some other user.
const SERVER: u32 = 33;

fn foreign_users() -> Scene {
    let spec = Spec { user: Some((SERVER, SERVER)), ..Spec::default() };
    Scene::of(&[spec.clone(), spec])
}

#[test]
fn root_without_bpf() {
    let scene = Scene::new();
    let cli = scene.cli("attach", &[]).capabilities(&["sys_ptrace", "perfmon", "net_admin"]);
    let words = ["CAP_BPF is missing", "uid 0 without it does not help", "setcap", "0.0.0.0:8080"];
    scene.refuses(&cli, 5, &words);
    let rest = ["sys_ptrace", "perfmon"];
    scene.refuses(&scene.cli("detach", &[]).capabilities(&rest), 5, &words);
    // Looking does with less, and says what it could not see.
    let status = scene.cli("status", &[]).capabilities(&rest).run().ok();
    assert!(status.stdout.contains("CAP_BPF is missing"), "{status}");
    scene.hashed();
}

#[test]
fn root_without_ptrace() {
    for scene in [foreign_users(), Scene::new()] {
        let words = ["CAP_SYS_PTRACE is missing", "uid 0 without it does not help", "setcap"];
        for verb in ["attach", "detach", "status"] {
            let cli = scene.cli(verb, &[]).capabilities(&["bpf", "perfmon"]);
            scene.refuses(&cli, 5, &words);
            scene.refuses(&scene.cli(verb, &[]).capabilities(&[]), 5, &words[..1]);
        }
        scene.hashed();
    }
}

#[test]
fn an_ordinary_user() {
    let scene = Scene::new();
    let words = ["CAP_SYS_PTRACE is missing", "grant it", "8080"];
    let outcome = scene.refuses(&scene.cli("attach", &[]).uid(NOBODY), 5, &words);
    assert!(!outcome.stderr.contains("uid 0"), "{outcome}");
    // The server's own user may see and take its listeners, and lacks the rest.
    let scene = foreign_users();
    let words = ["CAP_BPF is missing", "grant it", "setcap"];
    scene.bpffs.owned_by(SERVER);
    refused(&scene.cli("attach", &[]).uid(SERVER), 5, &words);
    assert!(scene.bpffs.pins().is_empty());
    scene.hashed();
}

/// As a unit of systemd would be set up: a user of its own, three capabilities, a bpffs or a
/// directory of it.
#[test]
fn the_least_that_is_enough() {
    let scene = foreign_users();
    scene.bpffs.owned_by(NOBODY);
    for caps in [&["bpf", "sys_ptrace", "perfmon"][..], &["bpf", "sys_ptrace"]] {
        let run = |verb: &str, more: &[&str]| {
            scene.cli(verb, more).uid(NOBODY).capabilities(caps).run().ok()
        };
        let sees = caps.contains(&"perfmon");
        let attached = run("attach", &[]);
        assert_eq!(attached.stdout.contains("CAP_PERFMON is missing"), !sees, "{attached}");
        scene.steered();
        let status = run("status", &["--json"]).json();
        assert_eq!(status[0]["steering"]["in_force"], true, "{status}");
        let state = if sees { "program" } else { "unknown" };
        assert_eq!(status[0]["attached"]["state"], state, "{status}");
        let again = run("attach", &["--json"]).json();
        assert_eq!(again[0]["attached"]["in_place"], true, "{again}");
        run("detach", &[]);
        assert!(scene.bpffs.pins().is_empty());
        scene.hashed();
    }
}

/// Threads of another user's process show what they wait for to those who may read everybody's files.
#[test]
fn threads_of_another_user() {
    let spec = Spec {
        style: Style::Threads,
        listeners: 2,
        cpus: cpus(),
        user: Some((SERVER, SERVER)),
        ..Spec::default()
    };
    let scene = Scene::of(&[spec]);
    scene.bpffs.owned_by(NOBODY);
    let caps = ["bpf", "sys_ptrace", "perfmon"];
    let cli = || scene.cli("attach", &[]).uid(NOBODY);
    let words = ["2 of 2 listeners", "CAP_DAC_READ_SEARCH", "--worker", "--policy hash"];
    scene.refuses(&cli().capabilities(&caps), 4, &words);
    assert_eq!(scene.attached()["state"], "nothing");
    let more = [&caps[..], &["dac_read_search"]].concat();
    cli().capabilities(&more).run().ok();
    scene.steered();
    scene.cli("detach", &[]).uid(NOBODY).capabilities(&more).run().ok();
}

#[test]
fn a_bpffs_that_is_not_ours() {
    let scene = foreign_users();
    let cli = scene.cli("attach", &[]).uid(NOBODY).capabilities(&["bpf", "sys_ptrace", "perfmon"]);
    let base = scene.bpffs.base().display().to_string();
    scene.refuses(&cli, 5, &[&base, "Permission denied", "--bpffs"]);
    scene.hashed();
}

#[test]
fn seccomp_filters() {
    let scene = Scene::new();
    for (call, words) in [
        (libc::SYS_bpf, ["seccomp", "bpf", "profile"]),
        (libc::SYS_pidfd_getfd, ["seccomp", "pidfd_getfd", "SYS_PTRACE"]),
        (libc::SYS_pidfd_open, ["seccomp", "pidfd_open", "SYS_PTRACE"]),
    ] {
        let cli = scene.cli("attach", &[]).through(seccomp(libc::EPERM, &[call]));
        scene.refuses(&cli, 5, &words);
    }
    // One that answers as if the kernel had none.
    let cli = scene.cli("attach", &[]).through(seccomp(libc::ENOSYS, &[libc::SYS_bpf]));
    scene.refuses(&cli, 6, &["no bpf system call", "CONFIG_BPF_SYSCALL"]);
    scene.hashed();
}

#[test]
fn user_namespaces() {
    let scene = Scene::new();
    for flag in ["-U", "-Ur"] {
        for verb in ["attach", "detach"] {
            let cli = scene.cli(verb, &[]).through(["unshare", flag]);
            scene.refuses(&cli, 5, &[]);
        }
        let attach = scene.cli("attach", &[]).through(["unshare", flag]);
        refused(&attach, 5, &["user namespace", "initial one"]);
    }
    scene.hashed();
}
