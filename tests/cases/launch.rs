//! `run`: copies that are started, steered, and kept running.

use std::path::Path;
use std::time::Duration;

use reuseport_tests::client::{Failure, Tally, Target, burst};
use reuseport_tests::launcher::{Launch, Launcher, PATIENCE};
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::observe::allowed;
use reuseport_tests::servers::{Language, Program, Script};
use reuseport_tests::sys::kill;
use reuseport_tests::{cpus, eventually, require};

mod ends;
mod given;
mod refusals;
mod servers;

const PORT: u16 = 8080;
/// A worker on each CPU, hardware threads too.
const ALL: [&str; 4] = ["--port", "8080", "--workers", "per-cpu"];

fn plain() -> Target {
    Target::plain("127.0.0.1:8080")
}

/// `options... -- words...`.
fn line<'a>(options: &[&'a str], words: &[&'a str]) -> Vec<&'a str> {
    [options, &["--"], words].concat()
}

/// `options... -- PROGRAM 8080`, for servers that are told their port.
fn textbook(options: &[&str], program: &Program) -> Vec<String> {
    let path = program.path();
    let options = if options.is_empty() { ALL.to_vec() } else { [&ALL[..2], options].concat() };
    line(&options, &[&path, "8080"]).into_iter().map(str::to_owned).collect()
}

/// Asserts that connections from each CPU are answered by the worker that is bound to it, and by no
/// other; `answers` says who answers for a worker.
fn assert_local(
    netns: &Netns,
    launcher: &Launcher<'_>,
    target: &Target,
    answers: impl Fn(u32) -> Vec<u32>,
) {
    let workers = launcher.workers();
    assert_eq!(workers.len(), cpus().len(), "{}", launcher.said());
    for cpu in cpus() {
        let own = workers.values().find(|&&pid| allowed(pid) == [cpu]);
        let own = own.unwrap_or_else(|| panic!("no worker on CPU {cpu}: {}", launcher.said()));
        let tally = burst(netns, cpu, target, 50);
        assert_eq!((tally.failed(), tally.answered()), (0, 50), "{tally}");
        let own: Vec<String> = answers(*own).iter().map(u32::to_string).collect();
        let stray = tally.replies.keys().find(|(_, name)| !own.contains(name));
        assert_eq!(stray, None, "not {own:?}: {tally}\n{}", launcher.said());
    }
}

fn itself(pid: u32) -> Vec<u32> {
    vec![pid]
}

/// What may fail when a worker is killed: what it was serving.
fn assert_only_cut(tally: &Tally, most: usize) {
    let cut = |failure: &Failure| matches!(failure, Failure::Reset | Failure::Eof);
    assert!(tally.failures.keys().all(|(_, failure)| cut(failure)), "{tally}");
    assert!(tally.failed() <= most as u64, "{tally}");
}

/// Kills a worker's copy, and waits until another one is steered to: the `times`-th steering.
fn kill_and_wait(launcher: &mut Launcher<'_>, worker: u32, times: usize) {
    let pid = launcher.workers()[&worker];
    kill(pid, libc::SIGKILL).expect("kill a worker");
    let new = eventually(PATIENCE, || launcher.workers()[&worker] != pid);
    assert!(new, "worker {worker} does not come back: {}", launcher.said());
    launcher.wait_for_times("[run] steering tcp", times);
}

#[test]
fn copies_are_pinned_told_who_they_are_and_steered() {
    require::cpus(2);
    let netns = Netns::new();
    let script = Script::textbook();
    let path = script.path();
    let words = ["/usr/bin/python3", &path, "8080", "i=%i", "c=%c", "50%%"];
    let launch = Launch::new(&netns, line(&ALL, &words));
    let mut launcher = launch.env("LISTEN_FDS", "7").env("LISTEN_PIDFDID", "7").up();
    launcher.wait_for_times("ready", cpus().len());
    for (worker, cpu) in (0u32..).zip(cpus()) {
        let pid = launcher.workers()[&worker];
        assert_eq!(allowed(pid), [cpu]);
        let said = format!("[{worker}] ready i={worker} c={cpu} 50% {worker} {cpu}\n");
        assert!(launcher.out().contains(&said), "{}", launcher.said());
        let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("its environment");
        assert!(!String::from_utf8_lossy(&environment).contains("LISTEN_"));
    }
    // Nobody sees colours in a file.
    assert!(!launcher.said().contains('\x1b'), "{}", launcher.said());
    assert_local(&netns, &launcher, &plain(), itself);
    let status = launcher.status(PORT);
    assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
    let counters = &status["steering"]["counters"];
    assert_eq!(counters["local"], counters["runs"], "{status:#}");
    // Passed on, and answered.
    launcher.signal(libc::SIGUSR1);
    launcher.wait_for_times("signalled", cpus().len());
    launcher.stop();
}

#[test]
fn colours_where_they_are_wanted() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let launch = Launch::new(&netns, textbook(&["--workers", "1"], &program));
    let mut launcher = launch.env("CLICOLOR_FORCE", "1").up();
    launcher.wait_for("ready");
    assert!(launcher.out().contains("\x1b[36m[0]\x1b[0m ready\n"), "{:?}", launcher.out());
    launcher.stop();
}

#[test]
fn a_worker_killed_under_load_comes_back_and_is_steered() {
    require::cpus(2);
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let mut launcher = Launch::new(&netns, textbook(&[], &program)).up();
    let load = Load::start(&netns, &plain(), &cpus(), 2);
    let rounds = 4;
    for round in 0..rounds {
        load.advance(50);
        kill_and_wait(&mut launcher, round as u32 % 2, 2 + round);
        load.advance(50);
    }
    assert_only_cut(&load.stop(), rounds * 2 * cpus().len());
    assert!(launcher.errors().contains("was ended by SIGKILL; starting it again in"));
    assert_local(&netns, &launcher, &plain(), itself);
    launcher.stop();
}

/// The server has no handler: SIGTERM ends it on the spot, so nothing may be left for it to do.
#[test]
fn a_rolling_restart_under_load_loses_nothing() {
    require::cpus(2);
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let mut launcher = Launch::new(&netns, textbook(&[], &program)).up();
    let load = Load::start(&netns, &plain(), &cpus(), 2);
    for round in 1..=3 {
        let before = launcher.workers();
        load.advance(100);
        launcher.signal(libc::SIGHUP);
        launcher.wait_for_times("rolling restart: done", round);
        let after = launcher.workers();
        for (worker, pid) in before {
            assert_ne!(after[&worker], pid, "{}", launcher.said());
            assert!(!Path::new(&format!("/proc/{pid}")).exists());
        }
        load.advance(100);
    }
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{}", launcher.said());
    assert_local(&netns, &launcher, &plain(), itself);
    launcher.stop();
}

#[test]
fn a_new_copy_that_fails_leaves_the_old_ones_serving() {
    require::cpus(2);
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let script = Script::shell("test -e \"$0.broken\" && exit 3; exec \"$1\" 8080");
    let (path, server) = (script.path(), program.path());
    let words = [path.as_str(), &server];
    let mut launcher = Launch::new(&netns, line(&ALL, &words)).up();
    let before = launcher.workers();
    let load = Load::start(&netns, &plain(), &cpus(), 1);
    let broken = script.beside("script.sh.broken");
    std::fs::write(&broken, "").expect("break the script");
    launcher.signal(libc::SIGHUP);
    launcher.wait_for("rolling restart given up");
    load.advance(50);
    for pid in before.values() {
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "{}", launcher.said());
    }
    // Mended, it works.
    std::fs::remove_file(&broken).expect("mend the script");
    launcher.signal(libc::SIGHUP);
    launcher.wait_for("rolling restart: done");
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{}", launcher.said());
    assert_local(&netns, &launcher, &plain(), itself);
    launcher.stop();
}

/// A single worker is not steered but while it is replaced.
#[test]
fn a_single_worker_is_replaced_without_a_loss() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let mut launcher = Launch::new(&netns, textbook(&["--workers", "1"], &program)).up();
    assert_eq!(launcher.status(PORT)["steering"], serde_json::Value::Null);
    let load = Load::start(&netns, &plain(), &cpus(), 1);
    load.advance(50);
    launcher.signal(libc::SIGHUP);
    launcher.wait_for("rolling restart: done");
    load.advance(50);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{}", launcher.said());
    launcher.stop();
}

/// A slow client keeps its old copy from ending until it is done, or its time is over.
#[test]
fn connections_are_waited_for_before_a_copy_is_ended() {
    use std::io::Read as _;

    let netns = Netns::new();
    let script = Script::slow();
    let path = script.path();
    let words = ["/usr/bin/python3", &path];
    let options = ["--port", "8080", "--workers", "1"];
    let mut launcher = Launch::new(&netns, line(&options, &words)).up();
    let connect = || {
        let mut stream = std::net::TcpStream::connect(plain().address).expect("connect");
        let mut first = [0; 1];
        stream.read_exact(&mut first).expect("the first byte");
        stream
    };
    let mut client = netns.run_in(connect);
    let old = launcher.workers()[&0];
    launcher.signal(libc::SIGHUP);
    launcher.wait_for("draining the old one");
    // The others go to the new copy meanwhile; it has seen them before the old one is asked again.
    for _ in 0..20 {
        drop(netns.run_in(connect));
    }
    assert!(Path::new(&format!("/proc/{old}")).exists(), "{}", launcher.said());
    std::fs::write(script.beside("go"), "").expect("let it finish");
    let mut rest = String::new();
    client.read_to_string(&mut rest).expect("the rest, not a reset");
    assert_eq!(rest, "done\n");
    launcher.wait_for("rolling restart: done");
    assert!(!launcher.said().contains("still has connections"), "{}", launcher.said());
    launcher.stop();
}

#[test]
fn a_client_that_never_ends_is_cut_off_in_time() {
    use std::io::Read as _;

    let netns = Netns::new();
    let script = Script::slow();
    let path = script.path();
    let words = ["/usr/bin/python3", &path];
    let options = ["--port", "8080", "--workers", "1", "--drain-timeout", "500ms"];
    let mut launcher = Launch::new(&netns, line(&options, &words)).up();
    let mut client =
        netns.run_in(|| std::net::TcpStream::connect(plain().address)).expect("connect");
    client.read_exact(&mut [0; 1]).expect("the first byte");
    launcher.signal(libc::SIGHUP);
    launcher.wait_for("still has connections");
    launcher.wait_for("rolling restart: done");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    // Closed by the end of its process, one way or the other.
    drop(client.read(&mut [0; 1]));
    launcher.stop();
}
