//! The main job: PgBouncers that know nothing of us, and every login served on the CPU that
//! received it.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use reuseport_tests::client::{Failure, Tally, Target, burst, connect};
use reuseport_tests::leak::scene;
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::observe::{allowed, holders, uid};
use reuseport_tests::process::must;
use reuseport_tests::servers::postgres::binaries;
use reuseport_tests::servers::{PgBouncer, Postgres};
use reuseport_tests::steer::Steer;
use reuseport_tests::sys::Become;
use reuseport_tests::{cpus, eventually, require};

const PORT: u16 = 6432;
/// Longest that any connection may take in these tests: more is a hang. A PostgreSQL that has to start
/// a process for it takes seconds on a machine that does much else.
const HANG: Duration = Duration::from_secs(10);

fn target() -> Target {
    Target::postgres("127.0.0.1:6432").timeout(HANG)
}

/// Name of the instance bound to `cpu`.
fn local(bouncers: &[PgBouncer]) -> impl Fn(u32) -> String {
    |cpu| {
        let own = bouncers.iter().find(|bouncer| allowed(bouncer.pid()) == [cpu]);
        own.expect("an instance for every CPU").name().to_owned()
    }
}

/// Logins one after the other from every CPU.
fn logins(netns: &Netns, count: u32) -> Tally {
    let mut tally = Tally::default();
    for cpu in cpus() {
        tally.merge(burst(netns, cpu, &target(), count));
    }
    tally
}

/// pgbench with a new connection for each transaction: `args` say for how long.
pub(crate) fn pgbench(netns: &Netns, cpu: Option<u32>, script: &str, args: &[&str]) -> Command {
    let what = Become { cpu, ..Become::default() };
    let mut command = netns.command_as(binaries().join("pgbench"), what);
    command.args(["-h", "127.0.0.1", "-p", "6432", "-U", "postgres", "-n", "-C"]);
    command.args(["-f", script]).args(args).arg("postgres");
    command
}

/// A file for `pgbench -f`.
pub(crate) fn script(statement: &str) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), statement).expect("write a script");
    file.into_temp_path()
}

fn failures(tally: &Tally, kind: impl Fn(&Failure) -> bool) -> u64 {
    tally.failures.iter().filter(|((_, failure), _)| kind(failure)).map(|(_, count)| count).sum()
}

/// Connections waiting in the listeners' accept queues.
fn queued(netns: &Netns) -> u64 {
    let lines = netns.run("ss", &["-Hltn", "sport = 6432"]);
    lines.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

#[test]
fn every_login_is_served_on_the_cpu_that_received_it() {
    require::cpus(2);
    scene(|netns| {
        let postgres = Postgres::start(netns, 5432);
        let bouncers = PgBouncer::one_per_cpu(netns, &postgres, PORT, &cpus());
        for bouncer in &bouncers {
            assert_ne!(uid(bouncer.pid()), 0, "PgBouncer runs as a user of its own");
        }
        // The kernel's hash sends them anywhere, so what follows proves something.
        let hashed = logins(netns, 40);
        assert_eq!(hashed.failed(), 0, "{hashed}");
        assert!(hashed.locality(local(&bouncers)) < 0.9, "{hashed}");

        let steer = Steer::new(netns, PORT);
        let attached = steer.attach(&[]);
        for bouncer in &bouncers {
            attached.of_process(bouncer.pid());
        }
        logins(netns, 100).assert_local(local(&bouncers));
        // libpq, under load from every CPU at once: a transaction that another instance serves
        // divides by zero, which fails pgbench.
        let scripts: Vec<_> = bouncers
            .iter()
            .map(|it| script(&format!("SELECT 1 / (current_user = '{}')::int;", it.name())))
            .collect();
        let count = "100";
        let runs: Vec<_> = cpus()
            .into_iter()
            .zip(&scripts)
            .map(|(cpu, script)| {
                let path = script.to_str().expect("a path of ours is text");
                pgbench(netns, Some(cpu), path, &["-c", "4", "-t", count])
            })
            .collect();
        thread::scope(|scope| {
            for mut run in runs {
                scope.spawn(move || {
                    let report = must(&mut run);
                    assert!(report.contains("actually processed: 400/400"), "{report}");
                });
            }
        });
        let counters = &steer.status()["steering"]["counters"];
        assert!(counters["first"].as_u64() >= Some(1000), "{counters:#}");
        assert_eq!(counters["local"], counters["runs"], "{counters:#}");

        // PgBouncer sets TCP_DEFER_ACCEPT: a client that says nothing stays in SYN_RECV, on the
        // listener that was selected for its SYN, and is accepted once it speaks.
        let cpu = cpus()[0];
        let silent = netns.run_in(|| {
            reuseport_tests::sys::pin(0, &[cpu]).expect("run on a CPU");
            TcpStream::connect(target().address).expect("connect")
        });
        let waiting = netns.run("ss", &["-Htn", "state", "syn-recv", "sport = 6432"]);
        assert_eq!(waiting.lines().count(), 1, "{waiting}");
        assert_eq!(queued(netns), 0);
        let mut client = &silent;
        let own = local(&bouncers)(cpu);
        let own = bouncers.iter().find(|it| it.name() == own).expect("an instance");
        let before = own.logins();
        client.write_all(target().request.as_bytes()).expect("speak at last");
        client.set_read_timeout(Some(HANG)).expect("a timeout");
        let mut kind = [0];
        client.read_exact(&mut kind).expect("an answer");
        assert_eq!(kind, *b"R", "AuthenticationOk");
        assert!(eventually(HANG, || own.logins() == before + 1), "the local instance's");
    });
}

#[test]
fn pgbench_loses_nothing_while_steering_comes_and_goes() {
    require::cpus(2);
    scene(|netns| {
        let postgres = Postgres::start(netns, 5432);
        let bouncers: Vec<_> = (0..)
            .zip(cpus())
            .map(|(index, _)| PgBouncer::start(netns, &postgres, index, PORT, None))
            .collect();
        for bouncer in &bouncers {
            assert_eq!(allowed(bouncer.pid()), cpus(), "not pinned");
        }
        let steer = Steer::new(netns, PORT);
        let one = script("SELECT 1;");
        let path = one.to_str().expect("a path of ours is text");
        let mut run = pgbench(netns, None, path, &["-c", "4", "-j", "2", "-T", "4"]);
        let (rounds, report) = thread::scope(|scope| {
            let load = scope.spawn(move || must(&mut run));
            let mut rounds = 0;
            while !load.is_finished() {
                let first = steer.attach(&[]);
                let again = steer.attach(&[]);
                assert_eq!(again.generation(), first.generation(), "nothing to change");
                assert!(again.in_place() && again.program() == first.program());
                steer.run("attach", &["--policy", "hash"]).ok();
                steer.detach();
                rounds += 1;
            }
            (rounds, load.join().expect("pgbench succeeds"))
        });
        println!("{rounds} rounds of attach, attach, attach, detach: {report}");
        assert!(rounds > 1, "pgbench ended too early");
        assert!(report.contains("number of failed transactions: 0 (0.000%)"), "{report}");

        // Unpinned instances: told so, and pinned on demand, as the plan says.
        let plain = steer.run("attach", &[]).ok();
        assert!(plain.stdout.contains("--pin") || plain.stderr.contains("--pin"), "{plain}");
        let pinned = steer.attach(&["--pin"]).assert_pinned();
        assert_eq!(pinned.len(), bouncers.len());
        let mut taken: Vec<_> = pinned.values().copied().collect();
        taken.sort_unstable();
        assert_eq!(taken, cpus(), "one instance for each CPU");
        logins(netns, 50).assert_local(local(&bouncers));
        // Nothing is left to pin.
        assert!(steer.attach(&["--pin"]).assert_pinned().is_empty());
    });
}

#[test]
fn a_rolling_restart_loses_only_what_was_accepted() {
    require::cpus(2);
    scene(|netns| {
        let postgres = Postgres::start(netns, 5432);
        let mut bouncers = PgBouncer::one_per_cpu(netns, &postgres, PORT, &cpus());
        let steer = Steer::new(netns, PORT);
        steer.attach(&[]);
        let threads = 2 * cpus().len();
        let load = Load::start(netns, &target().told(), &cpus(), 2);
        load.advance(100);
        let rounds = 4;
        for round in 0..rounds {
            let victim = round % bouncers.len();
            let (old, cpu) = (bouncers[victim].pid(), allowed(bouncers[victim].pid())[0]);
            let (inode, slot) = steer.attach(&[]).of_process(old);
            let index = (bouncers.len() + round) as u32;
            let start = || PgBouncer::start(netns, &postgres, index, PORT, Some(cpu));
            // The new one first, or the old one's end first.
            let overlapping = (round >= bouncers.len()).then(&start);
            if let Some(new) = &overlapping {
                assert_ne!(steer.attach(&[]).of_process(new.pid()).1, slot, "a seat of its own");
                load.advance(50);
            }
            bouncers[victim].signal(libc::SIGTERM);
            let gone = eventually(Duration::from_secs(10), || holders(inode).is_empty());
            assert!(gone, "{:?} hold the listener of a PgBouncer that ended", holders(inode));
            // The others take its connections.
            load.advance(50);
            let alone = overlapping.is_none();
            bouncers[victim] = overlapping.unwrap_or_else(start);
            let attached = steer.attach(&[]);
            assert!(attached.in_place());
            let seat = attached.of_process(bouncers[victim].pid()).1;
            assert!(!alone || seat == slot, "the free seat {slot} is taken again, not {seat}");
            load.advance(50);
        }
        let tally = load.stop();
        println!("{rounds} restarts under load: {tally}");
        if failures(&tally, |it| *it == Failure::Timeout) > 0 {
            let logs = bouncers.iter().map(PgBouncer::log);
            println!("{}", logs.collect::<Vec<_>>().join("\n"));
        }
        // Only what the ended process was serving may fail: at most one for each client.
        let ended = |it: &Failure| matches!(it, Failure::Reset | Failure::Eof);
        let broken = failures(&tally, ended);
        assert_eq!(tally.failed(), broken, "no refusal, no hang: {tally}");
        assert!(broken <= (rounds * threads) as u64, "{tally}");
        logins(netns, 50).assert_local(local(&bouncers));
    });
}

#[test]
fn a_killed_pgbouncer_resets_nothing_that_was_queued_and_hangs_nobody() {
    require::cpus(2);
    scene(|netns| {
        let postgres = Postgres::start(netns, 5432);
        let bouncers = PgBouncer::one_per_cpu(netns, &postgres, PORT, &cpus());
        let steer = Steer::new(netns, PORT);
        let attached = steer.attach(&[]);
        assert_eq!(attached.0["attached"]["migrates"], true);
        let inodes: Vec<_> = bouncers.iter().map(|it| attached.of_process(it.pid()).0).collect();
        let (cpu, victim, heir) = (cpus()[0], &bouncers[0], &bouncers[1]);

        // Logins that wait in its queue move to the other.
        let waiting = 8;
        victim.signal(libc::SIGSTOP);
        let moved = thread::scope(|scope| {
            let login = || connect(netns, cpu, &target().timeout(Duration::from_secs(10)));
            let clients: Vec<_> = (0..waiting).map(|_| scope.spawn(login)).collect();
            let all = eventually(Duration::from_secs(5), || queued(netns) == waiting);
            assert!(all, "{} of {waiting} are queued", queued(netns));
            victim.signal(libc::SIGKILL);
            let mut tally = Tally::default();
            for client in clients {
                tally.add(cpu, client.join().expect("a client"));
            }
            tally
        });
        println!("{waiting} queued logins of a killed PgBouncer: {moved}");
        moved.assert_local(|_| heir.name().to_owned());
        assert_eq!(holders(inodes[0]), [0; 0]);
        let counters = &steer.status()["steering"]["counters"];
        assert!(counters["migrated"].as_u64() >= Some(waiting), "{counters:#}");

        // Killed while serving: what it served fails at once.
        let second = PgBouncer::start(netns, &postgres, 7, PORT, Some(cpu));
        let inode = steer.attach(&[]).of_process(second.pid()).0;
        let load = Load::start(netns, &target(), &cpus(), 2);
        load.advance(200);
        let before = load.take();
        before
            .assert_local(|from| if from == cpu { second.name() } else { heir.name() }.to_owned());
        second.signal(libc::SIGKILL);
        load.advance(100);
        assert_eq!(holders(inode), [0; 0]);
        // The last one, too.
        heir.signal(libc::SIGKILL);
        let dead = || connect(netns, cpu, &target()) == Err(Failure::Refused);
        assert!(eventually(Duration::from_secs(5), dead), "the dead port refuses");
        let tally = load.stop();
        println!("killed under load, the last one too: {tally}");
        assert_eq!(failures(&tally, |it| *it == Failure::Timeout), 0, "{tally}");
        let cut = failures(&tally, |it| matches!(it, Failure::Reset | Failure::Eof));
        assert!(cut <= 2 * 2 * cpus().len() as u64, "{tally}");
        assert_eq!(holders(inodes[1]), [0; 0]);
    });
}
