//! `drain` and `undrain` on the real kernel, under load, with every connection counted.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use reuseport_tests::agent::Agent;
use reuseport_tests::binary;
use reuseport_tests::client::{Reply, Tally, Target, burst, connect};
use reuseport_tests::leak;
use reuseport_tests::load::Load;
use reuseport_tests::observe::threads;
use reuseport_tests::scene::{Scene, number};
use reuseport_tests::servers::Haproxy;
use reuseport_tests::steer::Steer;
use reuseport_tests::worker::{Spec, Style, Worker};
use reuseport_tests::{cpus, eventually, require, sys};
use serde_json::{Value, json};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(30);

fn here() -> Target {
    Target::plain("127.0.0.1:8080")
}

fn load(scene: &Scene) -> Load {
    Load::start(&scene.netns, &here(), &cpus(), 2)
}

/// The report of a verb that changed one group.
pub(crate) fn report(scene: &Scene, verb: &str, args: &[&str]) -> Value {
    let all = scene.run(verb, args).ok().json();
    assert_eq!(all.as_array().map(Vec::len), Some(1), "one group: {all:#}");
    all[0].clone()
}

/// What `status` says of the listener with this cookie.
fn listener(scene: &Scene, cookie: u64) -> Value {
    let status = scene.status();
    let all = status["listeners"].as_array().expect("listeners").clone();
    all.into_iter().find(|it| it["cookie"] == cookie).expect("the listener")
}

fn accepted(worker: &mut Worker) -> u64 {
    let stats = worker.tell("stats");
    stats["accepted"].as_array().expect("a list").iter().map(number).sum()
}

/// Opens `count` connections from `cpu`, waits until they are in somebody's accept queue, does `then`,
/// and returns what became of them.
fn queue(scene: &Scene, cpu: u32, count: usize, then: impl FnOnce()) -> Tally {
    let queued = || -> u64 {
        let status = scene.status();
        status["listeners"].as_array().unwrap().iter().map(|it| number(&it["queued"])).sum()
    };
    let mut tally = Tally::default();
    let target = here().timeout(Duration::from_mins(1));
    thread::scope(|scope| {
        let one = || connect(&scene.netns, cpu, &target);
        let clients: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        let waiting = eventually(PATIENCE, || queued() == count as u64);
        assert!(waiting, "{} of {count} wait", queued());
        then();
        for client in clients {
            tally.add(cpu, client.join().expect("a client"));
        }
    });
    tally
}

#[test]
fn a_drained_worker_gets_nothing_and_nothing_is_lost() {
    require::cpus(2);
    let (scene, mut workers) = Scene::with_workers(&Spec::default());
    scene.attach(&[]);
    let load = load(&scene);
    let pid = workers[0].pid().to_string();
    let cookie = workers[0].cookies()[0];
    for round in 0..5 {
        load.advance(200);
        let drained = report(&scene, "drain", &["--pid", &pid]);
        assert_eq!(drained["seats"][0]["drained"], "empty", "{drained:#}");
        assert_eq!(drained["seats"][0]["cookie"], cookie, "{drained:#}");
        let seat = listener(&scene, cookie);
        assert_eq!((&seat["queued"], &seat["role"]), (&json!(0), &json!("drained")), "{seat:#}");
        // Taken out of the map it would get its part of what the hash decides.
        assert_eq!(seat["slot"], drained["seats"][0]["slot"]);
        let (before, selected) = (accepted(&mut workers[0]), number(&seat["selections"]));
        load.advance(500);
        assert_eq!(accepted(&mut workers[0]), before, "something new in round {round}");
        assert_eq!(listener(&scene, cookie)["selections"], selected);
        let status = scene.status();
        assert_eq!(status["problems"], json!([]), "{status:#}");
        let rows = status["steering"]["rows"].to_string();
        assert!(!rows.contains(&format!("[{}]", seat["slot"])), "{rows}");

        // It stays so.
        for args in [&[] as &[&str], &["--policy", "hash"], &[]] {
            scene.attach(args);
            load.advance(50);
        }
        assert_eq!(accepted(&mut workers[0]), before, "attached again in round {round}");
        assert_eq!(report(&scene, "drain", &["--pid", &pid])["changed"], false);

        report(&scene, "undrain", &["--pid", &pid]);
        scene.assert_local();
        assert_eq!(listener(&scene, cookie)["role"], "active");
        assert_eq!(report(&scene, "undrain", &["--pid", &pid])["changed"], false);
    }
    // And what it is for.
    scene.run("drain", &["--pid", &pid]).ok();
    workers[0].tell("exit");
    load.advance(200);
    let tally = load.stop();
    println!(
        "5 drains, 15 attaches, an exit: {} answered, {} failed",
        tally.answered(),
        tally.failed()
    );
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// With another program, too: while the sockets change maps, the two programs have somebody each.
#[test]
fn a_drained_worker_gets_nothing_from_the_next_program() {
    let scene = Scene::new();
    let start = |index| Worker::start(&scene.netns, &Spec { index, ..Spec::default() });
    let mut workers: Vec<_> = (0..3).map(start).collect();
    scene.attach(&[]);
    let load = load(&scene);
    load.advance(50);
    scene.run("drain", &["--pid", &workers[1].pid().to_string()]).ok();
    let before = accepted(&mut workers[1]);
    for round in 0..20 {
        let log = if round % 2 == 0 { &["--log-misses"] as &[&str] } else { &[] };
        assert_eq!(scene.attach(log)["attached"]["in_place"], false, "not renewed");
        load.advance(20);
    }
    assert_eq!(accepted(&mut workers[1]), before);
    assert_eq!(listener(&scene, workers[1].cookies()[0])["role"], "drained");
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// Rolling: each is drained, stopped, and replaced, by another worker of the same kind.
#[test]
fn restarts_one_by_one_lose_nothing() {
    require::cpus(2);
    let (scene, mut workers) = Scene::with_workers(&Spec::default());
    scene.attach(&[]);
    let load = load(&scene);
    let mut took = Vec::new();
    for round in 0..10 {
        for (index, cpu) in (0..).zip(cpus()) {
            let worker = &mut workers[index as usize];
            let began = Instant::now();
            let drained = report(&scene, "drain", &["--pid", &worker.pid().to_string()]);
            took.push(began.elapsed());
            assert_eq!(drained["seats"][0]["drained"], "empty", "round {round}: {drained:#}");
            worker.tell("exit");
            let spec = Spec { index, cpus: vec![cpu], ..Spec::default() };
            *worker = Worker::start(&scene.netns, &spec);
            scene.attach(&[]);
        }
    }
    load.advance(100);
    let tally = load.stop();
    took.sort_unstable();
    println!(
        "{} restarts: {} answered, {} migrated; a drain took {:.0?} (median), {:.0?} at most",
        took.len(),
        tally.answered(),
        scene.counter("migrated"),
        took[took.len() / 2],
        took[took.len() - 1],
    );
    assert_eq!(tally.failed(), 0, "{tally}");
    scene.assert_steered();
}

#[test]
fn the_accept_queue_is_waited_for() {
    require::cpus(2);
    let (scene, mut workers) = Scene::with_workers(&Spec::default());
    scene.attach(&[]);
    let pid = workers[0].pid().to_string();
    workers[0].tell("stop");
    let tally = queue(&scene, cpus()[0], 7, || {
        let late = scene.run("drain", &["--pid", &pid, "--timeout", "1"]).fails(1);
        let late = late.says("its queue holds 7").says("slot 0: 7 to be accepted");
        assert_eq!(late.stdout, "", "{late}");
        assert_eq!(scene.status()["listeners"][0]["role"], "drained");
        // Nothing new is held up by it.
        burst(&scene.netns, cpus()[0], &here(), 50).assert_local(|_| "1".to_owned());
        let waits = thread::scope(|scope| {
            let drain = scope.spawn(|| report(&scene, "drain", &["--pid", &pid]));
            thread::sleep(Duration::from_millis(200));
            let waits = !drain.is_finished();
            workers[0].tell("resume");
            let drained = drain.join().expect("drain");
            assert_eq!(drained["seats"][0]["drained"], "empty", "{drained:#}");
            waits
        });
        assert!(waits, "it did not wait");
    });
    assert_eq!((tally.answered(), tally.failed()), (7, 0), "{tally}");
    assert_eq!(tally.by_worker(cpus()[0])["0"], 7, "{tally}");
}

/// The handshake is done for the client, not yet for the server: it belongs to the listener that got
/// the SYN, and reaches its queue later.
#[test]
fn handshakes_under_way_are_waited_for() {
    require::cpus(2);
    let (scene, mut workers) = Scene::with_workers(&Spec { defer: true, ..Spec::default() });
    scene.attach(&[]);
    let pid = workers[0].pid().to_string();
    let open = || -> Vec<TcpStream> {
        scene.netns.run_in(|| {
            sys::pin(0, &[cpus()[0]]).expect("run on a CPU");
            (0..5).map(|_| TcpStream::connect(here().address).expect("connect")).collect()
        })
    };
    let streams = open();
    let late = scene.run("drain", &["--pid", &pid, "--timeout", "1"]).fails(1);
    let _late = late.says("its queue holds 0 and 5 handshakes");

    let said = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut drain = scene.netns.command(binary::path());
    drain.args(scene.args("drain", &["--pid", &pid])).stdin(Stdio::null());
    drain.stderr(said.reopen().expect("the file")).stdout(Stdio::piped());
    let drain = drain.spawn().expect("start the command");
    let begun = || fs::read_to_string(said.path()).expect("the file").contains("5 handshakes");
    assert!(eventually(PATIENCE, begun), "it does not wait");
    // Those that began after the change are nobody's to wait for.
    let others = open();
    for stream in streams {
        assert_eq!(finish(stream), "0");
    }
    let drained = drain.wait_with_output().expect("drain");
    let drained: Value = serde_json::from_slice(&drained.stdout).expect("a report");
    let drained = &drained[0];
    assert_eq!(drained["seats"][0]["drained"], "empty", "{drained:#}");
    assert_eq!(accepted(&mut workers[0]), 5);
    for stream in others {
        assert_eq!(finish(stream), "1", "the drain waited for it");
    }
}

/// Sends what the server waits for; who answers.
fn finish(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"x").expect("send");
    let mut line = String::new();
    stream.read_to_string(&mut line).expect("an answer");
    Reply(line).worker()
}

#[test]
fn a_worker_that_exits_is_drained() {
    require::cpus(2);
    let (scene, mut workers) = Scene::with_workers(&Spec::default());
    scene.attach(&[]);
    let pid = workers[0].pid().to_string();
    workers[0].tell("stop");
    let tally = queue(&scene, cpus()[0], 5, || {
        let drained = thread::scope(|scope| {
            let drain = scope.spawn(|| report(&scene, "drain", &["--pid", &pid]));
            let begun = || scene.status()["listeners"][0]["role"] == "drained";
            assert!(eventually(PATIENCE, begun), "it is not drained");
            workers[0].kill();
            drain.join().expect("drain")
        });
        assert_eq!(drained["seats"][0]["drained"], "gone", "{drained:#}");
    });
    // With migration, which this kernel has.
    assert_eq!((tally.answered(), tally.failed()), (5, 0), "{tally}");
}

/// A process with a thread for each of its listeners, as HAProxy has.
#[test]
fn all_threads_of_a_process_are_drained_or_one() {
    require::cpus(2);
    let scene = Scene::new();
    let count = cpus().len() as u32;
    let spec = |index| Spec {
        index,
        listeners: count,
        style: Style::Threads,
        cpus: cpus(),
        ..Spec::default()
    };
    let mut old = Worker::start(&scene.netns, &spec(0));
    let _new = Worker::start(&scene.netns, &spec(100));
    scene.attach(&[]);
    let load = load(&scene);
    let pid = old.pid().to_string();
    let drained = report(&scene, "drain", &["--pid", &pid]);
    let seats = drained["seats"].as_array().expect("seats");
    assert_eq!(seats.len(), cpus().len(), "{drained:#}");
    assert!(seats.iter().all(|seat| seat["drained"] == "empty"), "{drained:#}");
    let before = accepted(&mut old);
    load.advance(300);
    assert_eq!(accepted(&mut old), before);

    // One of them comes back.
    let one = format!("{pid}/{}", old.tids()[0]);
    let seats = report(&scene, "undrain", &["--pid", &one])["seats"].clone();
    assert_eq!(seats.as_array().map(Vec::len), Some(1), "{seats:#}");
    let stats = |old: &mut Worker| old.tell("stats")["accepted"].as_array().unwrap().clone();
    let before = stats(&mut old);
    load.advance(300);
    let after = stats(&mut old);
    let grown = after.iter().zip(&before).filter(|(after, before)| after != before).count();
    assert_eq!(grown, 1, "{before:?}, then {after:?}");
    let seats = report(&scene, "drain", &["--pid", &one])["seats"].clone();
    assert_eq!(seats[0]["drained"], "empty", "{seats:#}");
    old.tell("exit");
    load.advance(100);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// Two HAProxies side by side, as a reload leaves them; threads that are busy cannot always be seen.
#[test]
fn an_old_haproxy_is_drained_and_stopped_under_load() {
    require::cpus(2);
    leak::scene(|netns| {
        let old = Haproxy::start(netns, PORT, &cpus());
        let new = Haproxy::start(netns, PORT, &cpus());
        let steer = Steer::new(netns, PORT);
        steer.attach(&[]);
        let load = Load::start(netns, &Target::http("127.0.0.1:8080"), &cpus(), 2);
        load.advance(100);
        let pid = old.pid().to_string();
        let drained = steer.run("drain", &["--pid", &pid, "--json"]).ok().json();
        let seats = drained[0]["seats"].as_array().expect("seats").clone();
        assert_eq!(seats.len(), threads(old.pid()).len(), "{drained:#}");
        assert!(seats.iter().all(|seat| seat["drained"] == "empty"), "{drained:#}");
        load.advance(100);
        drop(old);
        load.advance(100);
        let tally = load.stop();
        println!("an old HAProxy drained and stopped: {} answered", tally.answered());
        assert_eq!(tally.failed(), 0, "{tally}");
        drop(new);
    });
}

/// The agent keeps what was asked for by hand, through ticks that change the table.
#[test]
fn an_agent_leaves_the_drained_drained() {
    require::cpus(2);
    let mut scene = crate::scene::Scene::new();
    let agent = Agent::start(&scene.netns, &scene.bpffs, PORT, &["--reconcile-interval", "100ms"]);
    let load = Load::start(&scene.netns, &here(), &cpus(), 2);
    load.advance(50);
    let pid = scene.workers[0].pid().to_string();
    let drained = scene.cli("drain", &["--pid", &pid, "--json"]).run().ok().json();
    assert_eq!(drained[0]["seats"][0]["drained"], "empty", "{drained:#}");
    let before = accepted(&mut scene.workers[0]);
    let planned = generation(&scene);
    let late = Spec { index: 2, cpus: vec![cpus()[1]], ..Spec::default() };
    let late = Worker::start(&scene.netns, &late);
    assert!(
        eventually(PATIENCE, || generation(&scene) > planned),
        "the agent does not see {late:?}"
    );
    load.advance(200);
    assert_eq!(accepted(&mut scene.workers[0]), before, "{}", agent.log());
    scene.workers.push(late);

    scene.cli("undrain", &["--pid", &pid]).run().ok();
    let served = accepted(&mut scene.workers[0]);
    let back = eventually(PATIENCE, || accepted(&mut scene.workers[0]) > served);
    assert!(back, "{}", agent.log());
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    agent.stop();
    scene.cli("detach", &[]).run().ok();
}

fn generation(scene: &crate::scene::Scene) -> u64 {
    let status = scene.cli("status", &["--json"]).run().ok().json();
    number(&status[0]["steering"]["generation"])
}
