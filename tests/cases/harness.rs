//! The harness itself: what it starts really serves, what it leaves is nothing.

use std::time::Duration;

use reuseport_tests::binary::Cli;
use reuseport_tests::client::{Failure, Target, burst, connect};
use reuseport_tests::cpus;
use reuseport_tests::leak::Baseline;
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::process::must;
use reuseport_tests::servers::postgres::{binaries, psql};
use reuseport_tests::servers::{Gunicorn, Haproxy, Nginx, PgBouncer, Postgres, Prefork, Sharing};
use reuseport_tests::worker::{Spec, Style, Worker};

#[test]
fn a_worker_of_every_style_serves_and_leaves_no_trace() {
    let before = Baseline::take();
    {
        let netns = Netns::new();
        for style in [Style::Epoll, Style::Poll, Style::Accept, Style::Threads] {
            let listeners = 2;
            let spec = Spec { style, listeners, cpus: cpus(), ..Spec::default() };
            let mut worker = Worker::start(&netns, &spec);
            let tally = burst(&netns, cpus()[0], &Target::plain("127.0.0.1:8080"), 20);
            assert_eq!((tally.answered(), tally.failed()), (20, 0), "{style}: {tally}");
            let threads = if matches!(style, Style::Accept | Style::Threads) { 2 } else { 1 };
            assert_eq!((worker.tids().len(), worker.cookies().len()), (threads, 2), "{style}");
            let accepted = worker.tell("stats")["accepted"].clone();
            let sum: u64 =
                accepted.as_array().unwrap().iter().filter_map(serde_json::Value::as_u64).sum();
            assert_eq!(sum, 20, "{style}: {accepted}");
        }
    }
    before.assert_same();
}

#[test]
fn the_leak_check_sees_a_process_a_descriptor_and_a_namespace() {
    let before = Baseline::take();
    let netns = Netns::new();
    let worker = Worker::start(&netns, &Spec::default());
    let check = std::panic::AssertUnwindSafe(|| before.assert_same());
    let left = std::panic::catch_unwind(check).unwrap_err();
    let left = left.downcast_ref::<String>().expect("a message");
    assert!(left.contains(&format!("process {} steer-test-work", worker.pid())), "{left}");
    assert!(left.contains("net:["), "{left}");
    drop(worker);
    drop(netns);
    before.assert_same();
}

#[test]
fn a_client_runs_on_the_cpu_it_was_told_and_so_does_the_softirq() {
    let netns = Netns::new();
    let _worker = Worker::start(&netns, &Spec { addr: "::", ..Spec::default() });
    for cpu in cpus() {
        for address in ["127.0.0.1:8080", "[::1]:8080"] {
            for _ in 0..10 {
                let reply = connect(&netns, cpu, &Target::plain(address)).unwrap();
                assert_eq!(reply.field("incoming_cpu"), i64::from(cpu), "{address}");
            }
        }
    }
}

#[test]
fn failures_are_told_apart() {
    let netns = Netns::new();
    let (cpu, target) = (cpus()[0], Target::plain("127.0.0.1:8080"));
    assert_eq!(connect(&netns, cpu, &target), Err(Failure::Refused));

    let mut worker = Worker::start(&netns, &Spec { listen: false, ..Spec::default() });
    assert_eq!(connect(&netns, cpu, &target), Err(Failure::Refused));
    worker.tell("listen");
    assert_eq!(worker.tids(), [worker.pid()]);
    assert!(connect(&netns, cpu, &target).is_ok());

    worker.tell("stop");
    let hasty = target.clone().timeout(Duration::from_millis(300));
    assert_eq!(connect(&netns, cpu, &hasty), Err(Failure::Timeout));
    worker.tell("resume");
    assert!(connect(&netns, cpu, &target).is_ok());

    worker.freeze();
    assert_eq!(connect(&netns, cpu, &hasty), Err(Failure::Timeout));
    worker.thaw();
    assert!(connect(&netns, cpu, &target).is_ok());

    worker.tell("close");
    assert_eq!(connect(&netns, cpu, &target), Err(Failure::Refused));
    assert!(worker.alive());
}

#[test]
fn a_load_counts_what_a_killed_worker_costs() {
    let netns = Netns::new();
    let target = Target::plain("127.0.0.1:8080");
    let mut workers = Worker::one_per_cpu(&netns, &cpus(), &Spec::default());
    let load = Load::start(&netns, &target, &cpus(), 1);
    load.advance(100);
    let tally = load.take();
    assert_eq!(tally.failed(), 0, "{tally}");
    for worker in &mut workers {
        worker.kill();
    }
    let refused = reuseport_tests::eventually(Duration::from_secs(10), || {
        load.so_far().failures.keys().any(|(_, failure)| *failure == Failure::Refused)
    });
    assert!(refused, "{}", load.so_far());
    load.stop();
}

#[test]
fn listeners_of_any_kind() {
    let netns = Netns::new();
    let cpu = cpus()[0];
    let here = Target::plain("127.0.0.1:8080");

    let alone = Spec { reuseport: false, ..Spec::default() };
    let worker = Worker::start(&netns, &alone);
    let failed = std::panic::catch_unwind(|| Worker::start(&netns, &Spec::default()));
    assert!(failed.is_err(), "a listener without SO_REUSEPORT shares its port");
    drop(worker);

    let worker = Worker::start(&netns, &Spec { mptcp: true, ..Spec::default() });
    assert!(connect(&netns, cpu, &here).is_ok());
    drop(worker);

    let _udp = Worker::start(&netns, &Spec { udp: true, ..Spec::default() });
    assert_eq!(connect(&netns, cpu, &here), Err(Failure::Refused));

    let v6only = Spec { addr: "::", v6only: true, device: Some("lo"), ..Spec::default() };
    let _v6 = Worker::start(&netns, &Spec { user: Some((65534, 65534)), ..v6only });
    assert_eq!(connect(&netns, cpu, &here), Err(Failure::Refused));
    assert!(connect(&netns, cpu, &Target::plain("[::1]:8080")).is_ok());
}

#[test]
fn two_namespaces_meet_over_veth() {
    let (server, client) = (Netns::new(), Netns::new());
    server.veth(&client);
    assert_ne!(server.cookie(), client.cookie());
    assert_eq!(
        server.run("readlink", &["/proc/self/ns/net"]).trim(),
        format!("net:[{}]", server.inode())
    );
    let _worker = Worker::start(&server, &Spec { addr: "::", ..Spec::default() });
    for address in ["10.0.0.1:8080", "[fd00::1]:8080"] {
        let reply = connect(&client, cpus()[0], &Target::plain(address));
        assert_eq!(reply.map(|reply| reply.worker()), Ok("0".to_owned()), "{address}");
    }
}

#[test]
fn nginx_serves_and_reloads() {
    let before = Baseline::take();
    {
        let netns = Netns::new();
        let nginx = Nginx::start(&netns, 8080, 2);
        nginx.reload();
        let tally = burst(&netns, cpus()[0], &Target::http("127.0.0.1:8080"), 50);
        assert_eq!(tally.answered(), 50, "{tally}");
        let workers: Vec<_> = nginx.workers().iter().map(u32::to_string).collect();
        assert!(tally.by_worker(cpus()[0]).keys().all(|pid| workers.iter().any(|own| own == pid)));
    }
    before.assert_same();
}

#[test]
fn haproxy_serves_from_every_thread() {
    let before = Baseline::take();
    {
        let netns = Netns::new();
        let _haproxy = Haproxy::start(&netns, 8080, &cpus());
        let tally = burst(&netns, cpus()[0], &Target::http("127.0.0.1:8080"), 100);
        assert_eq!(tally.answered(), 100, "{tally}");
        assert_eq!(tally.by_worker(cpus()[0]).len(), cpus().len(), "{tally}");
    }
    before.assert_same();
}

#[test]
fn gunicorn_instances_share_a_port() {
    let before = Baseline::take();
    {
        let netns = Netns::new();
        let start = |cpu| Gunicorn::start(&netns, 8080, 1, Some(cpu));
        let instances: Vec<_> = cpus().into_iter().map(start).collect();
        let tally = burst(&netns, cpus()[0], &Target::http("127.0.0.1:8080"), 100);
        assert_eq!(tally.answered(), 100, "{tally}");
        assert_eq!(tally.by_worker(cpus()[0]).len(), instances.len(), "{tally}");
    }
    before.assert_same();
}

#[test]
fn prefork_families_serve() {
    let before = Baseline::take();
    for sharing in [Sharing::Own, Sharing::Shared] {
        let netns = Netns::new();
        let family = Prefork::start(&netns, 8080, sharing, &cpus());
        let listeners = netns.run("ss", &["-Hltn", "sport = 8080"]).lines().count();
        assert_eq!(listeners, if sharing == Sharing::Own { cpus().len() } else { 1 });
        let tally = burst(&netns, cpus()[0], &Target::plain("127.0.0.1:8080"), 100);
        assert_eq!(tally.answered(), 100, "{tally}");
        let workers: Vec<_> = family.workers().iter().map(u32::to_string).collect();
        assert!(tally.by_worker(cpus()[0]).keys().all(|pid| workers.iter().any(|own| own == pid)));
    }
    before.assert_same();
}

#[test]
fn pgbouncers_serve_in_front_of_postgres() {
    let before = Baseline::take();
    {
        let netns = Netns::new();
        let postgres = Postgres::start(&netns, 5432);
        let bouncers = PgBouncer::one_per_cpu(&netns, &postgres, 6432, &cpus());
        let mut pgbench = netns.command(binaries().join("pgbench"));
        let script = tempfile_with("SELECT current_user;");
        pgbench.args(["-h", "127.0.0.1", "-p", "6432", "-U", "postgres", "-n", "-C"]);
        must(pgbench.args(["-c", "2", "-t", "30", "-f"]).arg(script.path()).arg("postgres"));
        let logins: Vec<_> = bouncers.iter().map(PgBouncer::logins).collect();
        assert!(logins.iter().all(|&count| count > 0), "{logins:?}");
        assert!(logins.iter().sum::<usize>() >= 60, "{logins:?}");
        let served = psql(&netns, 6432, "SELECT current_user");
        assert!(bouncers.iter().any(|bouncer| bouncer.name() == served), "{served}");
    }
    before.assert_same();
}

fn tempfile_with(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("write a script");
    file
}

#[test]
fn a_panic_takes_everything_down() {
    let before = Baseline::take();
    let died = std::panic::catch_unwind(|| {
        let netns = Netns::new();
        let _worker = Worker::start(&netns, &Spec::default());
        let _load = Load::start(&netns, &Target::plain("127.0.0.1:8080"), &cpus(), 1);
        panic!("as a failing test does");
    });
    assert!(died.is_err());
    before.assert_same();
}

#[test]
fn the_command_runs_where_and_as_whom_it_was_told() {
    const NET_ADMIN: u64 = 1 << 12;
    const BPF: u64 = 1 << 39;
    let netns = Netns::new();
    let script = "readlink /proc/self/ns/net; id -u; grep CapEff /proc/self/status; echo $WORD";
    let cli = || Cli::new(["-c", script]).binary("/bin/sh").netns(&netns).env("WORD", "said");
    let expect = |cli: Cli<'_>, uid: u32, capabilities: u64| {
        let outcome = cli.run().ok();
        let (inode, set) = (netns.inode(), format!("{capabilities:016x}"));
        assert_eq!(outcome.stdout, format!("net:[{inode}]\n{uid}\nCapEff:\t{set}\nsaid\n"));
    };
    expect(cli().uid(65534), 65534, 0);
    expect(cli().uid(65534).capabilities(&["bpf", "net_admin"]), 65534, BPF | NET_ADMIN);
    expect(cli().capabilities(&["bpf"]), 0, BPF);
    expect(cli().capabilities(&[]), 0, 0);
}

#[test]
fn the_command_s_end_is_judged() {
    let shell = |script: &str| Cli::new(["-c", script]).binary("/bin/sh");
    shell("echo why >&2; exit 3").run().fails(3).says("why");
    assert_eq!(shell("echo '{\"a\": 1}'").run().ok().json()["a"], 1);
    assert_eq!(shell("kill -9 $$").run().code, None);
    let refuses = |work: &(dyn Fn() + std::panic::RefUnwindSafe)| {
        assert!(std::panic::catch_unwind(work).is_err());
    };
    refuses(&|| drop(shell("exit 3").run().fails(3)));
    refuses(&|| drop(shell("echo why >&2; exit 3").run().ok()));
    refuses(&|| drop(shell("sleep 60").limit(Duration::from_millis(100)).run()));
}
