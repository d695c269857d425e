//! Servers of the world through `run`.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use std::thread;
use std::time::Duration;

use reuseport_tests::client::{Target, burst};
use reuseport_tests::launcher::Launch;
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::observe::uid;
use reuseport_tests::process::{children, must};
use reuseport_tests::servers::{Gunicorn, Language, PgBouncers, Postgres, Program, Script};
use reuseport_tests::{cpus, require};

use crate::pgbouncer::{pgbench, script};

use super::{ALL, assert_local, assert_only_cut, itself, kill_and_wait, line, plain, textbook};

#[test]
fn the_python_and_the_c_of_the_textbooks_and_go() {
    require::cpus(2);
    let netns = Netns::new();
    for language in [Language::C, Language::Go] {
        let program = Program::build(language);
        let mut launcher = Launch::new(&netns, textbook(&[], &program)).up();
        assert_local(&netns, &launcher, &plain(), itself);
        kill_and_wait(&mut launcher, 0, 2);
        assert_local(&netns, &launcher, &plain(), itself);
        launcher.stop();
    }
    let script = Script::textbook();
    let path = script.path();
    let words = ["/usr/bin/python3", &path, "8080"];
    let mut launcher = Launch::new(&netns, line(&ALL, &words)).up();
    assert_local(&netns, &launcher, &plain(), itself);
    kill_and_wait(&mut launcher, 1, 2);
    assert_local(&netns, &launcher, &plain(), itself);
    launcher.stop();
}

/// Go from 1.24 on listens so by default.
#[test]
fn go_with_multipath_tcp_is_refused_with_its_remedy() {
    let enabled = std::fs::read_to_string("/proc/sys/net/mptcp/enabled");
    assert_eq!(enabled.unwrap_or_default().trim(), "1", "this kernel has no multipath TCP");
    let netns = Netns::new();
    let program = Program::build(Language::MultipathGo);
    let launch = Launch::new(&netns, textbook(&[], &program));
    launch.fails(4, &["multipath TCP", "GODEBUG=multipathtcp=0", "net.mptcp.enabled=0"]);
}

/// A copy is a master and its workers, which share its listener.
#[test]
fn gunicorn_with_reuse_port() {
    require::cpus(2);
    let netns = Netns::new();
    let home = Gunicorn::application();
    let directory = home.path();
    let words = ["gunicorn", "--reuse-port", "--workers", "2", "--chdir", &directory];
    let words = [&words[..], &["--bind", "0.0.0.0:8080", "app"]].concat();
    let launch = Launch::new(&netns, line(&ALL, &words));
    let mut launcher = launch.env("PYTHONDONTWRITEBYTECODE", "1").up();
    launcher.wait_for_times("Booting worker", 2 * cpus().len());
    let target = Target::http("127.0.0.1:8080");
    assert_local(&netns, &launcher, &target, children);
    kill_and_wait(&mut launcher, 0, 2);
    launcher.wait_for_times("Booting worker", 3 * cpus().len());
    assert_local(&netns, &launcher, &target, children);
    // The masters are killed with us, and their workers too.
    launcher.signal(libc::SIGKILL);
    assert_eq!(launcher.wait(), None);
    launcher.assert_no_process_left();
}

#[test]
fn pgbouncers_in_front_of_postgresql() {
    require::cpus(2);
    let netns = Netns::new();
    let postgres = Postgres::start(&netns, 5432);
    let count = cpus().len() as u32;
    let configured = PgBouncers::configure(&netns, &postgres, 6432, count);
    let ini = configured.path();
    let words = ["pgbouncer", "-u", "postgres", &ini];
    let options = ["--port", "6432", "--workers", "per-cpu"];
    let mut launcher = Launch::new(&netns, line(&options, &words)).up();
    for pid in launcher.workers().values() {
        assert_ne!(uid(*pid), 0, "PgBouncer runs as a user of its own");
    }
    let target = Target::postgres("127.0.0.1:6432").timeout(Duration::from_secs(20));
    // Its user in PostgreSQL is the instance's.
    let local = |cpu: u32| {
        let place = cpus().iter().position(|&it| it == cpu).expect("a CPU of ours");
        format!("bouncer{place}")
    };
    let logins = || {
        for cpu in cpus() {
            burst(&netns, cpu, &target, 50).assert_local(local);
        }
    };
    logins();
    // libpq, from every CPU at once: a transaction that another instance serves divides by zero.
    thread::scope(|scope| {
        for cpu in cpus() {
            let sql = script(&format!("SELECT 1 / (current_user = '{}')::int;", local(cpu)));
            let path = sql.to_str().expect("a path of ours is text").to_owned();
            let mut run = pgbench(&netns, Some(cpu), &path, &["-c", "4", "-t", "50"]);
            scope.spawn(move || {
                let report = must(&mut run);
                assert!(report.contains("actually processed: 200/200"), "{report}");
                drop(sql);
            });
        }
    });
    let status = launcher.status(6432);
    let counters = &status["steering"]["counters"];
    assert_eq!(counters["local"], counters["runs"], "{status:#}");

    let load = Load::start(&netns, &target, &cpus(), 2);
    load.advance(50);
    kill_and_wait(&mut launcher, 0, 2);
    load.advance(50);
    let tally = load.stop();
    println!("killed under load: {tally}");
    assert_only_cut(&tally, 2 * cpus().len());
    logins();

    let one = script("SELECT 1;");
    let path = one.to_str().expect("a path of ours is text");
    let mut run = pgbench(&netns, None, path, &["-c", "8", "-j", "2", "-T", "15"]);
    let report = thread::scope(|scope| {
        let load = scope.spawn(move || must(&mut run));
        let mut rounds = 0;
        while !load.is_finished() {
            rounds += 1;
            launcher.signal(libc::SIGHUP);
            launcher.wait_for_times("rolling restart: done", rounds);
        }
        println!("{rounds} rolling restarts");
        assert!(rounds > 1, "pgbench ended too early");
        load.join().expect("pgbench succeeds")
    });
    println!("{report}");
    assert!(report.contains("number of failed transactions: 0 (0.000%)"), "{report}");
    logins();
    launcher.stop();
}
