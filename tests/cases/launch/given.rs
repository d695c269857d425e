//! `--listen`: listeners that the launcher opens and hands over.

use std::path::Path;
use std::thread;
use std::time::Duration;

use reuseport_tests::client::{Target, connect};
use reuseport_tests::launcher::{Launch, PATIENCE};
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::servers::Script;
use reuseport_tests::sys::kill;
use reuseport_tests::{cpus, eventually, require};

use super::{PORT, assert_local, itself, kill_and_wait, line, plain};

const LISTEN: [&str; 4] = ["--listen", "127.0.0.1:8080", "--workers", "per-cpu"];

fn python(script: &Script) -> Vec<String> {
    let path = script.path();
    line(&LISTEN, &["/usr/bin/python3", &path]).into_iter().map(str::to_owned).collect()
}

/// Cookies of the listeners, in order of slots.
fn cookies(status: &serde_json::Value) -> Vec<u64> {
    let listeners = status["listeners"].as_array().expect("listeners");
    let mut cookies: Vec<u64> = listeners.iter().filter_map(|it| it["cookie"].as_u64()).collect();
    cookies.sort_unstable();
    cookies
}

#[test]
fn a_python_program_takes_its_listener_and_keeps_it_when_it_comes_back() {
    require::cpus(2);
    let netns = Netns::new();
    let script = Script::given();
    let mut launcher = Launch::new(&netns, python(&script)).up();
    launcher.wait_for_times("took", cpus().len());
    assert_local(&netns, &launcher, &plain(), itself);
    let before = launcher.status(PORT);
    assert_eq!(before["problems"], serde_json::json!([]), "{before:#}");
    // The launcher holds them too, and accepts from none.
    let served = &before["listeners"][0]["served"]["by"];
    assert_eq!(served.as_array().map(Vec::len), Some(1), "{before:#}");
    let load = Load::start(&netns, &plain(), &cpus(), 2);
    load.advance(50);
    // Once without it, once with it again.
    kill_and_wait(&mut launcher, 0, 3);
    load.advance(50);
    super::assert_only_cut(&load.stop(), 2 * cpus().len());
    let after = launcher.status(PORT);
    assert_eq!(cookies(&before), cookies(&after), "the same listeners");
    assert_local(&netns, &launcher, &plain(), itself);
    launcher.stop();
}

/// Connections that wait while a worker is dead are served by its next copy.
#[test]
fn a_queue_outlives_its_worker() {
    require::cpus(2);
    let netns = Netns::new();
    let script = Script::given();
    let mut launcher = Launch::new(&netns, python(&script)).up();
    let cpu = cpus()[0];
    let old = launcher.workers()[&0];
    kill(old, libc::SIGSTOP).expect("stop a worker");
    let stat = || std::fs::read_to_string(format!("/proc/{old}/stat")).unwrap_or_default();
    // Before it has stopped, it may take one more.
    assert!(eventually(PATIENCE, || stat().contains(") T ")), "{}", stat());
    let waiting = 5;
    let target = plain().timeout(PATIENCE);
    thread::scope(|scope| {
        let client = || connect(&netns, cpu, &target);
        let clients: Vec<_> = (0..waiting).map(|_| scope.spawn(client)).collect();
        let queued = || {
            let lines = netns.run("ss", &["-Hltn", "sport = 8080"]);
            let queue = |line: &str| line.split_whitespace().nth(1)?.parse::<u32>().ok();
            lines.lines().filter_map(queue).sum::<u32>()
        };
        assert!(eventually(PATIENCE, || queued() == waiting), "{} queued", queued());
        kill(old, libc::SIGKILL).expect("kill a worker");
        launcher.wait_for_times("took", cpus().len() + 1);
        let new = launcher.workers()[&0].to_string();
        for client in clients {
            let reply = client.join().expect("a client").expect("an answer");
            assert_eq!(reply.worker(), new);
        }
    });
    launcher.stop();
}

#[test]
fn a_rolling_restart_of_programs_that_were_given_theirs_loses_nothing() {
    require::cpus(2);
    let netns = Netns::new();
    let script = Script::given();
    let mut launcher = Launch::new(&netns, python(&script)).up();
    let load = Load::start(&netns, &plain(), &cpus(), 2);
    for round in 1..=2 {
        let before = launcher.workers();
        load.advance(100);
        launcher.signal(libc::SIGHUP);
        launcher.wait_for_times("rolling restart: done", round);
        for pid in before.values() {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{}", launcher.said());
        }
    }
    load.advance(100);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{}", launcher.said());
    assert_local(&netns, &launcher, &plain(), itself);
    let status = launcher.status(PORT);
    assert_eq!(cookies(&status).len(), cpus().len(), "the old listeners are closed: {status:#}");
    launcher.stop();
}

/// A listener that is opened for the next copy listens long before that copy is ready, or is found not
/// to be: until then it gets nothing, also where it joins a single one.
#[test]
fn a_new_copy_that_is_slow_or_fails_costs_no_connection() {
    let netns = Netns::new();
    let server = Script::given();
    let wrapper = "test -e \"$0.broken\" && { sleep 2; exit 3; }; \
                   test -e \"$0.slow\" && sleep 5; exec /usr/bin/python3 \"$1\"";
    let script = Script::shell(wrapper);
    let [broken, slow] = ["script.sh.broken", "script.sh.slow"].map(|it| script.beside(it));
    let (path, server) = (script.path(), server.path());
    let options = ["--listen", "127.0.0.1:8080", "--workers", "1"];
    let mut launcher = Launch::new(&netns, line(&options, &[&path, &server])).up();
    let old = launcher.workers()[&0];
    // Shorter than a slow copy takes.
    let target = plain().timeout(Duration::from_secs(3));
    let load = Load::start(&netns, &target, &cpus(), 2);
    load.advance(50);
    std::fs::write(&broken, "").expect("break the script");
    launcher.signal(libc::SIGHUP);
    launcher.wait_for("rolling restart given up");
    load.advance(50);
    assert!(Path::new(&format!("/proc/{old}")).exists(), "{}", launcher.said());
    std::fs::remove_file(&broken).expect("mend the script");
    std::fs::write(&slow, "").expect("slow the script down");
    launcher.signal(libc::SIGHUP);
    launcher.wait_for("rolling restart: done");
    load.advance(50);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{}", launcher.said());
    assert_ne!(launcher.workers()[&0], old);
    launcher.stop();
}

/// What a copy leaves running may keep its listener open: nothing goes there any more.
#[test]
fn a_listener_that_a_stray_process_keeps_gets_nothing() {
    require::cpus(2);
    let netns = Netns::new();
    let server = Script::given();
    let script = Script::shell("setsid sleep 1000 & exec /usr/bin/python3 \"$1\"");
    let (path, server) = (script.path(), server.path());
    let mut launcher = Launch::new(&netns, line(&LISTEN, &[&path, &server])).up();
    let target = plain().timeout(Duration::from_secs(3));
    let load = Load::start(&netns, &target, &cpus(), 2);
    for round in 1..=2 {
        launcher.signal(libc::SIGHUP);
        launcher.wait_for_times("rolling restart: done", round);
        load.advance(100);
    }
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{}", launcher.said());
    assert_local(&netns, &launcher, &plain(), itself);
    let status = launcher.status(PORT);
    assert_eq!(cookies(&status).len(), cpus().len(), "the old ones do not listen: {status:#}");
    launcher.stop();
}

/// Node takes a listener by its number (`listen({ fd: 3 })`), and sets no SO_REUSEPORT of its own.
#[test]
fn a_node_program_on_the_listener_it_is_given() {
    require::cpus(2);
    let netns = Netns::new();
    let script = Script::node();
    let path = script.path();
    let words = ["node", &path];
    let mut launcher = Launch::new(&netns, line(&LISTEN, &words)).up();
    let target = Target::http("127.0.0.1:8080");
    assert_local(&netns, &launcher, &target, itself);
    let load = Load::start(&netns, &target.timeout(Duration::from_secs(20)), &cpus(), 1);
    load.advance(20);
    kill_and_wait(&mut launcher, 1, 3);
    load.advance(20);
    super::assert_only_cut(&load.take(), cpus().len());
    launcher.signal(libc::SIGHUP);
    launcher.wait_for("rolling restart: done");
    load.advance(20);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{}", launcher.said());
    assert_local(&netns, &launcher, &Target::http("127.0.0.1:8080"), itself);
    launcher.stop();
}
