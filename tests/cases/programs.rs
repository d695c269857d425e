//! Programs of the plain kinds: pre-forked Python, gunicorn, Go, textbook C.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use reuseport_tests::client::{Failure, Tally, Target, burst, connect};
use reuseport_tests::leak::scene;
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::observe::{allowed, holders, threads};
use reuseport_tests::servers::{Compiled, Gunicorn, Language, Prefork, Program, Sharing};
use reuseport_tests::steer::Steer;
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually, require};
use std::time::Duration;

const PORT: u16 = 8080;

fn exchanges(netns: &Netns, target: &Target, count: u32) -> Tally {
    let mut tally = Tally::default();
    for cpu in cpus() {
        tally.merge(burst(netns, cpu, target, count));
    }
    tally
}

/// Attaches; then each CPU's connections are answered by `workers` bound to it and no others, as
/// was not the case before. `serving` are the processes that discovery must name for each listener.
fn assert_steered(netns: &Netns, target: &Target, workers: &[u32], serving: &[Vec<u32>]) {
    let own = |cpu: u32, name: &str| {
        let pid = name.parse().expect("these servers answer with a pid");
        assert!(workers.contains(&pid), "{name} is none of the workers");
        allowed(pid) == [cpu]
    };
    let stray = |tally: &Tally| {
        let stray = tally.replies.iter().filter(|((cpu, name), _)| !own(*cpu, name));
        stray.map(|(_, count)| count).sum::<u64>()
    };
    let hashed = exchanges(netns, target, 50);
    assert_eq!(hashed.failed(), 0, "{hashed}");
    assert!(stray(&hashed) > 0, "{hashed}");
    let steer = Steer::new(netns, PORT);
    let attached = steer.attach(&[]);
    let pids = attached.workers().into_iter().map(|all| all.into_iter().map(|it| it.0).collect());
    let mut mapped: Vec<Vec<u32>> = pids.collect();
    mapped.sort_unstable();
    let mut expected = serving.to_vec();
    expected.sort_unstable();
    assert_eq!(mapped, expected, "{:#}", attached.0);
    let tally = exchanges(netns, target, 100);
    assert_eq!((tally.failed(), stray(&tally)), (0, 0), "{tally}");
}

fn plain() -> Target {
    Target::plain("127.0.0.1:8080")
}

#[test]
fn a_prefork_server_with_a_listener_for_each_child() {
    require::cpus(2);
    scene(|netns| {
        let family = Prefork::start(netns, PORT, Sharing::Own, &cpus());
        let workers = family.workers();
        let serving: Vec<_> = workers.iter().map(|&pid| vec![pid]).collect();
        assert_steered(netns, &plain(), &workers, &serving);
    });
}

#[test]
fn prefork_families_that_share_a_listener_each() {
    require::cpus(2);
    scene(|netns| {
        let start = |cpu| Prefork::start(netns, PORT, Sharing::Shared, &[cpu, cpu]);
        let families: Vec<_> = cpus().into_iter().map(start).collect();
        let serving: Vec<_> = families.iter().map(Prefork::workers).collect();
        assert_steered(netns, &plain(), &serving.concat(), &serving);
    });
}

#[test]
fn gunicorn_instances_pinned_to_a_cpu_each() {
    require::cpus(2);
    scene(|netns| {
        let start = |cpu| Gunicorn::start(netns, PORT, 2, Some(cpu));
        let instances: Vec<_> = cpus().into_iter().map(start).collect();
        let serving: Vec<_> = instances.iter().map(Gunicorn::workers).collect();
        assert_steered(netns, &Target::http("127.0.0.1:8080"), &serving.concat(), &serving);
    });
}

#[test]
fn go_and_c_programs() {
    require::cpus(2);
    scene(|netns| {
        for language in [Language::C, Language::Go] {
            let program = Program::build(language);
            let start = |cpu| Compiled::start(netns, &program, PORT, cpu);
            let servers: Vec<_> = cpus().into_iter().map(start).collect();
            let workers: Vec<_> = servers.iter().map(Compiled::pid).collect();
            let serving: Vec<_> = workers.iter().map(|&pid| vec![pid]).collect();
            assert_steered(netns, &plain(), &workers, &serving);
        }
    });
}

/// Threads that never block cannot be told apart: the command says so, and takes the user's word.
#[test]
fn threads_that_spin_are_refused_until_they_are_named() {
    const NOT_STEERABLE: i32 = 4;
    require::cpus(2);
    scene(|netns| {
        let program = Program::build(Language::Spinning);
        // The first listener is the last CPU's.
        let order: Vec<_> = cpus().into_iter().rev().collect();
        let server = Compiled::spinning(netns, &program, PORT, &order);
        let tids = threads(server.pid());
        let bound = || tids.iter().zip(&order).all(|(&tid, &cpu)| allowed(tid) == [cpu]);
        assert!(eventually(Duration::from_secs(5), bound), "threads are made in order");
        let local = |cpu| {
            let place = order.iter().position(|&it| it == cpu).expect("a thread for each CPU");
            tids[place].to_string()
        };
        let steer = Steer::new(netns, PORT);
        let refused = steer.run("attach", &[]);
        refused.fails(NOT_STEERABLE).says("--worker").says("--order").says("busy");
        // Refused means untouched.
        assert_eq!(steer.status()["steering"], serde_json::Value::Null);

        let list: Vec<_> = order.iter().map(u32::to_string).collect();
        steer.attach(&["--order", &list.join(",")]);
        exchanges(netns, &plain(), 30).assert_local(local);
        // Nor need they be named again: their rows tell.
        steer.run("drain", &["--slot", "0"]).ok();
        let tally = exchanges(netns, &plain(), 30);
        assert_eq!(tally.failed(), 0, "{tally}");
        assert!(tally.replies.keys().all(|(_, worker)| *worker != tids[0].to_string()), "{tally}");
        steer.run("undrain", &["--slot", "0"]).ok();
        exchanges(netns, &plain(), 30).assert_local(local);
        // An experiment takes the rows away, and still knows them in the end.
        let connect = format!("bash -c ': <>/dev/tcp/127.0.0.1/{PORT}'; echo x = 1");
        let more = ["--metric", "x = (.*)", "--compare", "hash,cpu", "--rounds", "6"];
        steer.run("experiment", &[&["--load", &connect][..], &more].concat()).ok();
        exchanges(netns, &plain(), 30).assert_local(local);
        steer.detach();
        let name = |(tid, cpu)| format!("--worker={}/{tid}={cpu}", server.pid());
        let named: Vec<_> = tids.iter().zip(&order).map(name).collect();
        let named: Vec<_> = named.iter().map(String::as_str).collect();
        let attached = steer.attach(&named);
        let expected: Vec<_> = tids.iter().map(|&tid| vec![(server.pid(), Some(tid))]).collect();
        assert_eq!(attached.workers(), expected);
        exchanges(netns, &plain(), 30).assert_local(local);
    });
}

#[test]
fn workers_killed_under_load_hang_nobody_and_the_dead_port_refuses() {
    require::cpus(2);
    scene(|netns| {
        let spec = Spec::default();
        let mut workers = Worker::one_per_cpu(netns, &cpus(), &spec);
        let steer = Steer::new(netns, spec.port);
        let hasty = plain().timeout(Duration::from_secs(3));
        let load = Load::start(netns, &hasty, &cpus(), 2);
        let rounds = 10;
        for round in 0..rounds {
            let inode = steer.attach(&[]).of_process(workers[0].pid()).0;
            load.advance(50);
            reuseport_tests::sys::kill(workers[0].pid(), libc::SIGKILL).expect("kill a worker");
            let gone = eventually(Duration::from_secs(5), || holders(inode).is_empty());
            assert!(gone, "{:?} hold a dead worker's listener", holders(inode));
            load.advance(50);
            let spec = Spec { index: 10 + round, cpus: vec![cpus()[0]], ..spec.clone() };
            workers[0] = Worker::start(netns, &spec);
        }
        steer.attach(&[]);
        let tally = load.stop();
        println!("{rounds} kills under load: {tally}");
        let lost = |failure: &Failure| matches!(failure, Failure::Reset | Failure::Eof);
        assert!(tally.failures.keys().all(|(_, failure)| lost(failure)), "{tally}");
        assert!(tally.failed() <= u64::from(rounds) * 2 * cpus().len() as u64, "{tally}");

        let inodes: Vec<_> =
            workers.iter().map(|it| steer.attach(&[]).of_process(it.pid()).0).collect();
        drop(workers);
        for inode in inodes {
            assert_eq!(holders(inode), [0; 0]);
        }
        for cpu in cpus() {
            assert_eq!(connect(netns, cpu, &hasty), Err(Failure::Refused));
        }
    });
}
