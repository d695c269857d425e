//! From one process to the next, under load: nobody is refused, reset or left waiting.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use reuseport_tests::client::{Tally, exchange};
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::scene::{Scene, number, text};
use reuseport_tests::server::Server;
use reuseport_tests::{cpus, eventually, require, sys};
use serde_json::Value;

use super::{ADDRESS, TCP, assert_local, here};

const PATIENCE: Duration = Duration::from_secs(30);

fn load(netns: &Netns) -> Load {
    Load::start(netns, &here(), &cpus(), 2)
}

fn assert_none_failed(tally: &Tally) {
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// The process that answers now.
fn answers(netns: &Netns) -> u64 {
    let reply = netns.run_in(|| exchange(&here())).expect("an answer");
    reply.field("pid") as u64
}

/// Roles of a process's listeners, as `status` tells.
fn roles(scene: &Scene, pid: u32) -> Vec<String> {
    let status = scene.status();
    let of = |it: &&Value| it["holders"][0]["pid"] == pid;
    let listeners = status["listeners"].as_array().expect("listeners").iter().filter(of);
    listeners.map(|it| text(&it["role"])).collect()
}

#[test]
fn generation_after_generation() {
    require::cpus(2);
    let scene = Scene::new();
    let arguments = [TCP, "standby", "until-superseded"];
    let mut old = Server::start(&scene.netns, &arguments);
    let load = load(&scene.netns);
    let mut programs = Vec::new();
    for _ in 0..10 {
        load.advance(30);
        let new = Server::start(&scene.netns, &arguments);
        let (status, report) = old.wait();
        assert!(status.success() && report.contains("Superseded"), "{status}: {report}");
        assert_eq!(answers(&scene.netns), u64::from(new.pid()));
        programs.push(number(&scene.status()["steering"]["program_id"]));
        old = new;
    }
    load.advance(30);
    assert_none_failed(&load.stop());
    programs.dedup();
    assert_eq!(programs.len(), 1, "the same program all the time: {programs:?}");
    scene.assert_steered();
    old.stop();
}

/// The old one is asked to end by its supervisor; the new one is there already.
#[test]
fn an_old_one_that_is_asked_to_end() {
    require::cpus(2);
    let scene = Scene::new();
    let mut old = Server::start(&scene.netns, &[TCP]);
    let load = load(&scene.netns);
    for _ in 0..5 {
        load.advance(30);
        let new = Server::start(&scene.netns, &[TCP]);
        assert_eq!(answers(&scene.netns), u64::from(new.pid()));
        let roles = roles(&scene, old.pid());
        assert_eq!(roles, vec!["superseded"; cpus().len()], "{:#}", scene.status());
        old.stop();
        old = new;
    }
    load.advance(30);
    assert_none_failed(&load.stop());
    scene.assert_steered();
    old.stop();
}

/// A new one that never gets ready must not take anything over.
#[test]
fn a_new_one_that_fails_leaves_the_old_one_in_charge() {
    require::cpus(2);
    let scene = Scene::new();
    let old = Server::start(&scene.netns, &[TCP, "standby", "until-superseded"]);
    let load = load(&scene.netns);
    for _ in 0..3 {
        load.advance(30);
        let mut new = Server::start(&scene.netns, &[TCP, "standby", "fault=panic-core"]);
        let (status, _) = new.wait();
        assert_eq!(status.code(), Some(1));
    }
    load.advance(30);
    let tally = load.stop();
    assert_none_failed(&tally);
    assert_eq!(answers(&scene.netns), u64::from(old.pid()));
    assert_eq!(roles(&scene, old.pid()), vec!["active"; cpus().len()]);
    scene.assert_steered();
    old.stop();
}

/// Whoever was superseded is the second choice while it lives: a new one that is killed loses only
/// what it had accepted.
#[test]
fn a_new_one_that_is_killed_gives_the_rows_back() {
    require::cpus(2);
    let scene = Scene::new();
    let old = Server::start(&scene.netns, &[TCP]);
    let mut new = Server::start(&scene.netns, &[TCP]);
    assert_eq!(answers(&scene.netns), u64::from(new.pid()));
    new.kill();
    let load = load(&scene.netns);
    load.advance(100);
    assert_none_failed(&load.stop());
    assert_eq!(answers(&scene.netns), u64::from(old.pid()));
    assert_local(&scene.netns);
    old.stop();
}

/// No pins: the old one starts the new one, and passes its maps on.
#[test]
fn maps_that_are_passed_on() {
    require::cpus(2);
    let scene = Scene::new();
    let arguments = [TCP, "bpffs=/proc", "standby", "until-superseded", "pass"];
    let mut first = Server::start(&scene.netns, &arguments);
    let load = load(&scene.netns);
    load.advance(30);
    let mut pid = first.pid();
    for _ in 0..4 {
        sys::kill(pid, libc::SIGHUP).expect("ask for the next one");
        // It writes where the first one does.
        let next: Value = loop {
            let line: Value = serde_json::from_str(&first.line()).expect("JSON");
            if line.get("pid").is_some() {
                break line;
            }
        };
        assert_eq!(next["rung"]["rung"], "ebpf", "{next}");
        let gone = || !alive(pid);
        assert!(eventually(PATIENCE, gone), "the old one does not end");
        pid = number(&next["pid"]) as u32;
        load.advance(30);
        assert_eq!(answers(&scene.netns), u64::from(pid));
    }
    assert_none_failed(&load.stop());
    assert_local(&scene.netns);
    sys::kill(pid, libc::SIGTERM).expect("end the last one");
    assert!(eventually(PATIENCE, || !alive(pid)), "the last one does not end");
    assert!(first.wait().0.success());
}

/// Whether a process that need not be our child runs.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z'))
}

/// No pins, and nothing passed on: it is as without steering until the old one ends, and nobody is
/// lost.
#[test]
fn neither_pins_nor_maps() {
    require::cpus(2);
    let scene = Scene::new();
    let arguments = [TCP, "bpffs=/proc"];
    let old = Server::start(&scene.netns, &arguments);
    let load = load(&scene.netns);
    load.advance(30);
    let new = Server::start(&scene.netns, &arguments);
    assert_eq!(new.rung(), "hash", "{}", new.ready);
    load.advance(30);
    old.stop();
    load.advance(30);
    assert_none_failed(&load.stop());
    assert_eq!(answers(&scene.netns), u64::from(new.pid()));
    new.stop();
}

/// On a rung that needs no privilege, who is asked to end stops to be preferred first.
#[test]
fn by_so_incoming_cpu() {
    require::cpus(2);
    let scene = Scene::new();
    let mut old = Server::start(&scene.netns, &[TCP, "rung=incoming-cpu"]);
    let load = load(&scene.netns);
    for _ in 0..3 {
        load.advance(30);
        let new = Server::start(&scene.netns, &[TCP, "rung=incoming-cpu"]);
        old.stop();
        assert_local(&scene.netns);
        old = new;
    }
    assert_none_failed(&load.stop());
    old.stop();
}

/// A new one with fewer workers, and one with more again.
#[test]
fn another_number_of_workers() {
    require::cpus(2);
    let scene = Scene::new();
    let all = [TCP, "standby", "until-superseded"];
    let mut old = Server::start(&scene.netns, &all);
    let load = load(&scene.netns);
    for workers in ["workers=count:1", "workers=per-core", "workers=count:1"] {
        load.advance(30);
        let new = Server::start(&scene.netns, &[&all[..], &[workers]].concat());
        assert!(old.wait().0.success());
        old = new;
    }
    load.advance(30);
    let new = Server::start(&scene.netns, &all);
    assert!(old.wait().0.success());
    load.advance(30);
    assert_none_failed(&load.stop());
    scene.assert_steered();
    new.stop();
}

/// Instances that share the address for good, as of one systemd template unit.
#[test]
fn side_by_side() {
    require::cpus(2);
    let scene = Scene::new();
    let arguments = [TCP, "beside-others", "until-superseded"];
    let servers = [(); 3].map(|()| Server::start(&scene.netns, &arguments));
    for server in &servers {
        assert_eq!(roles(&scene, server.pid()), vec!["active"; cpus().len()]);
    }
    let load = load(&scene.netns);
    let [first, rest @ ..] = servers;
    for server in rest {
        load.advance(50);
        server.stop();
    }
    load.advance(50);
    assert_none_failed(&load.stop());
    assert_local(&scene.netns);
    first.stop();
}

/// Two listeners that somebody else opens and keeps, as systemd does.
fn activation(netns: &Netns) -> [OwnedFd; 2] {
    let open = || {
        let fd = sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0).expect("a socket");
        let on = 1_i32.to_ne_bytes();
        sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, &on).expect("set");
        sys::bind(fd.as_fd(), ADDRESS.parse().expect("an address")).expect("bind");
        sys::listen(fd.as_fd(), 511).expect("listen");
        fd
    };
    netns.run_in(|| [open(), open()])
}

#[test]
fn sockets_that_are_passed_on() {
    require::cpus(2);
    let scene = Scene::new();
    let kept = activation(&scene.netns);
    let workers = format!("workers=on:{},{}", cpus()[0], cpus()[1]);
    let start = || {
        let copies = kept.each_ref().map(|fd| fd.try_clone().expect("duplicate a socket"));
        Server::start_with(&scene.netns, copies, &[TCP, &workers])
    };
    let cookies = kept.each_ref().map(|fd| sys::cookie(fd.as_fd()).expect("a cookie"));
    let load = load(&scene.netns);
    for _ in 0..4 {
        // Clients wait in the queues until it is there.
        let server = start();
        assert_eq!(server.rung(), "ebpf", "{}", server.ready);
        load.advance(30);
        let status = scene.status();
        let listeners = status["listeners"].as_array().expect("listeners");
        assert_eq!(listeners.len(), 2, "{status:#}");
        assert!(listeners.iter().all(|it| cookies.contains(&number(&it["cookie"]))), "{status:#}");
        assert_local(&scene.netns);
        server.stop();
    }
    // Whoever closes them last, closes them.
    let server = start();
    load.advance(30);
    assert_none_failed(&load.stop());
    drop(kept);
    server.stop();
    assert!(scene.netns.run_in(|| exchange(&here())).is_err(), "somebody has them still");
}
