//! The agent beside servers that know nothing of it: reloads, upgrades and rolling restarts as their
//! operators do them, under load, with every connection that fails counted.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::binary::Cli;
use reuseport_tests::bpffs::Bpffs;
use reuseport_tests::client::{Failure, Tally, Target, burst};
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::observe::{allowed, threads};
use reuseport_tests::process::children;
use reuseport_tests::servers::{Haproxy, Nginx, NginxDaemon, PgBouncer, Postgres};
use reuseport_tests::{cpus, eventually, require, sys};

use super::bars::migrations;
use super::{PATIENCE, two};

const PORT: u16 = 8080;

/// A namespace whose port 8080 an agent keeps.
struct Beside {
    agent: Agent,
    bpffs: Bpffs,
    target: Target,
}

impl Beside {
    fn start(netns: &Netns, target: Target, args: &[&str]) -> Self {
        let bpffs = Bpffs::new();
        let agent = Agent::start(netns, &bpffs, PORT, args);
        let beside = Self { agent, bpffs, target };
        beside.cli(netns, "status", &[]);
        beside
    }

    fn cli(&self, netns: &Netns, verb: &str, more: &[&str]) {
        let bpffs = self.bpffs.path().to_str().expect("a path of ours is text");
        let args = [verb, "--port", "8080", "--netns", "/proc/self/ns/net", "--bpffs", bpffs];
        Cli::new(args.into_iter().chain(more.iter().copied())).netns(netns).run().ok();
    }

    fn load(&self, netns: &Netns) -> Load {
        let load = Load::start(netns, &self.target.clone().told(), &two(), 2);
        load.advance(100);
        load
    }

    /// Waits until each CPU's connections are all served by one of whom `is_local` is so.
    fn settles(&self, netns: &Netns, is_local: impl Fn(u32, &str) -> bool) {
        let mut all = Tally::default();
        let local = eventually(PATIENCE, || {
            all = Tally::default();
            two().into_iter().all(|cpu| {
                let tally = burst(netns, cpu, &self.target, 20);
                all.merge(tally.clone());
                tally.failed() == 0 && tally.by_worker(cpu).keys().all(|who| is_local(cpu, who))
            })
        });
        assert!(local, "{all}\n{}", self.agent.log());
    }

    /// Ends the load, and says what became of it; asserts that no more than so many failed, each
    /// because its server's process ended with it in hand.
    fn ends(self, netns: &Netns, what: &str, load: Load, most: u64) {
        let tally = load.stop();
        let [moved, lost] = migrations(netns);
        println!(
            "{what}: {} answered, {} failed; {moved} migrated, {lost} could not be",
            tally.answered(),
            tally.failed(),
        );
        let log = self.agent.stop();
        let cut = |why: &Failure| matches!(why, Failure::Reset | Failure::Eof);
        assert!(tally.failures.keys().all(|(_, why)| cut(why)), "{tally}\n{log}");
        assert!(tally.failed() <= most, "{tally}\n{log}");
    }
}

/// nginx answers with a worker's pid.
fn bound_there(cpu: u32, who: &str) -> bool {
    allowed(who.parse().expect("a pid")) == [cpu]
}

/// Its listeners stay, and all that serves them changes.
#[test]
fn nginx_reloads() {
    require::cpus(2);
    let netns = Netns::new();
    let nginx = Nginx::start(&netns, PORT, 2);
    let beside = Beside::start(&netns, Target::http("127.0.0.1:8080"), &[]);
    beside.settles(&netns, bound_there);
    let load = beside.load(&netns);
    for _ in 0..3 {
        nginx.reload();
        load.advance(100);
        beside.settles(&netns, bound_there);
    }
    beside.ends(&netns, "3 reloads of nginx", load, 0);
}

/// A worker that dies leaves its listener to its master, who accepts nothing: what waits there waits
/// for the next worker, and only what it had in hand is lost.
#[test]
fn a_worker_of_nginx_is_killed() {
    require::cpus(2);
    let netns = Netns::new();
    let nginx = Nginx::start(&netns, PORT, 2);
    let beside = Beside::start(&netns, Target::http("127.0.0.1:8080"), &[]);
    let load = beside.load(&netns);
    for _ in 0..3 {
        let before = nginx.workers();
        sys::kill(before[0], libc::SIGKILL).expect("kill a worker");
        let again = || nginx.workers().len() == 2 && !nginx.workers().contains(&before[0]);
        assert!(eventually(PATIENCE, again), "{:?}", nginx.workers());
        load.advance(100);
        // Another worker is bound to the same CPU.
        beside.settles(&netns, bound_there);
    }
    // Two clients on either CPU.
    beside.ends(&netns, "3 kills of nginx's workers", load, 3 * 4);
}

/// While its master is stopped nobody serves the listener of a worker that was killed. Others get what
/// comes from then on; the few that came before that was noticed wait for the next worker.
#[test]
fn a_worker_of_nginx_is_not_replaced_for_a_while() {
    require::cpus(2);
    let netns = Netns::new();
    let nginx = Nginx::start(&netns, PORT, 2);
    let mut beside = Beside::start(&netns, Target::http("127.0.0.1:8080"), &[]);
    let load = beside.load(&netns);
    let [killed, other] = nginx.workers()[..] else { panic!("two workers") };
    sys::kill(nginx.pid(), libc::SIGSTOP).expect("stop the master");
    sys::kill(killed, libc::SIGKILL).expect("kill a worker");
    beside.agent.wait_for("1 left out");
    beside.settles(&netns, |_, who| who == other.to_string());
    load.advance(100);
    sys::kill(nginx.pid(), libc::SIGCONT).expect("continue the master");
    beside.settles(&netns, bound_there);
    beside.ends(&netns, "a worker of nginx that was missing", load, 4);
}

/// The newer binary inherits the listeners; workers of both accept from them until the older ends.
#[test]
fn nginx_upgrades_its_binary() {
    require::cpus(2);
    let netns = Netns::new();
    let nginx = NginxDaemon::start(&netns, PORT, 2);
    let beside = Beside::start(&netns, Target::http("127.0.0.1:8080"), &[]);
    beside.settles(&netns, bound_there);
    let load = beside.load(&netns);
    for _ in 0..2 {
        let old = nginx.upgrade();
        load.advance(100);
        sys::kill(old, libc::SIGQUIT).expect("quit the older master");
        // Whoever inherits it may not wait for it: what is left then has no command line.
        let line = || fs::read(format!("/proc/{old}/cmdline")).unwrap_or_default();
        assert!(eventually(PATIENCE, || line().is_empty()), "{:?}", children(old));
        load.advance(100);
        beside.settles(&netns, bound_there);
    }
    beside.ends(&netns, "2 upgrades of nginx", load, 0);
}

/// The newer process opens listeners of its own, and the older closes all that it has.
#[test]
fn haproxy_is_succeeded() {
    require::cpus(2);
    let netns = Netns::new();
    let mut haproxy = Haproxy::start(&netns, PORT, &cpus());
    let beside = Beside::start(&netns, Target::http("127.0.0.1:8080"), &[]);
    let load = beside.load(&netns);
    for _ in 0..3 {
        let newer = haproxy.succeed(&netns, PORT, &cpus());
        haproxy.wait();
        haproxy = newer;
        load.advance(100);
        // It answers with the number of a thread.
        let tids = threads(haproxy.pid());
        let bound = |who: &str| allowed(tids[who.parse::<usize>().expect("a number")]);
        beside.settles(&netns, |cpu, who| bound(who) == [cpu]);
    }
    beside.ends(&netns, "3 reloads of HAProxy", load, 0);
}

/// One instance after the other: the newer takes over, the older drains and ends.
#[test]
fn pgbouncers_are_restarted_one_by_one() {
    require::cpus(2);
    let netns = Netns::new();
    let postgres = Postgres::start(&netns, 5432);
    let mut bouncers = PgBouncer::one_per_cpu(&netns, &postgres, PORT, &two());
    let target = Target::postgres("127.0.0.1:8080");
    let beside = Beside::start(&netns, target, &["--generation-timeout", "6s"]);
    // A sixth of that, and one more tick.
    sleep(Duration::from_secs(2));
    let load = beside.load(&netns);
    for place in 0..2 {
        let cpu = two()[place];
        let newer = PgBouncer::start(&netns, &postgres, 2 + place as u32, PORT, Some(cpu));
        let names = [newer.name(), bouncers[1 - place].name()].map(str::to_owned);
        let own = |from: u32| &names[usize::from(from != cpu)];
        beside.settles(&netns, |from, who| who == own(from));
        let older = std::mem::replace(&mut bouncers[place], newer);
        beside.cli(&netns, "drain", &["--pid", &older.pid().to_string()]);
        load.advance(20);
        // A safe shutdown: what it serves, it serves to the end.
        older.signal(libc::SIGINT);
        let ended =
            || fs::read(format!("/proc/{}/cmdline", older.pid())).is_ok_and(|it| it.is_empty());
        assert!(eventually(PATIENCE, ended), "{}", older.log());
        drop(older);
        load.advance(50);
        beside.settles(&netns, |from, who| who == own(from));
    }
    beside.ends(&netns, "2 PgBouncers restarted", load, 0);
}
