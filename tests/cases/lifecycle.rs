//! A group's life with steering: given back, restarted, its workers dying with connections in
//! their queues, and others in the making.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use reuseport_tests::client::{Reply, Tally, Target, burst, connect};
use reuseport_tests::load::Load;
use reuseport_tests::scene::{Scene, number, text};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually, require, sys};

fn here() -> Target {
    Target::plain("127.0.0.1:8080")
}

/// Asserts that connections from one CPU go to all workers, about evenly: by hash.
fn assert_by_hash(scene: &Scene) {
    let cpu = cpus()[0];
    let here = Target::plain(&format!("127.0.0.1:{}", scene.port));
    let tally = burst(&scene.netns, cpu, &here, 400);
    assert_eq!(tally.failed(), 0, "{tally}");
    let fair = 400 / cpus().len() as u64;
    let shares = tally.by_worker(cpu);
    assert_eq!(shares.len(), cpus().len(), "{tally}");
    assert!(shares.values().all(|&count| count > fair / 2), "not even: {tally}");
}

#[test]
fn detach_gives_the_group_back_to_the_hash() {
    require::cpus(2);
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    assert_by_hash(&scene);
    scene.attach(&[]);
    scene.assert_steered();
    let pins = text(&scene.status()["steering"]["pins"]);
    assert_eq!(scene.detach(), "detached");
    assert!(!Path::new(&pins).exists(), "{pins}");
    assert_eq!(scene.status()["attached"]["state"], "nothing");
    assert_by_hash(&scene);
    assert_eq!(scene.detach(), "already");
    scene.attach(&[]);
    scene.assert_steered();
}

#[test]
fn a_restart_of_the_whole_group_ends_steering_and_attach_begins_it_again() {
    require::cpus(2);
    // A port of its own: another test's detach clears what is pinned for this port and gone.
    let scene = Scene::on(8125);
    let start = || scene.one_per_cpu(&Spec { port: 8125, ..Spec::default() }, 1);
    let workers = start();
    let first = scene.attach(&[]);
    drop(workers);
    let _workers = start();
    let status = scene.status();
    assert_eq!(status["attached"]["state"], "nothing", "{status:#}");
    assert_eq!(status["steering"]["in_force"], false, "{status:#}");
    assert!(status["problems"].to_string().contains("whole group was restarted"), "{status:#}");
    assert_by_hash(&scene);
    let again = scene.attach(&[]);
    assert_eq!(again["attached"]["generation"], 2, "after {:#}", first["attached"]);
    scene.assert_steered();
}

#[test]
fn pins_of_a_group_that_is_gone_are_told_and_cleared() {
    let scene = Scene::on(8123);
    let start = || scene.one_per_cpu(&Spec { port: 8123, ..Spec::default() }, 1);
    let steer = || {
        let workers = start();
        scene.attach(&[]);
        let pins = text(&scene.status()["steering"]["pins"]);
        drop(workers);
        assert!(Path::new(&pins).exists(), "{pins}");
        pins
    };
    // By detach, when nobody listens any more; and then there is nothing to detach.
    let pins = steer();
    let said = scene.status()["problems"].to_string();
    assert!(said.contains("the group is gone"), "{said}");
    assert_eq!(scene.detach(), "cleared");
    assert!(!Path::new(&pins).exists(), "{pins}");
    let again = scene.run("detach", &[]).ok();
    assert!(again.stdout.contains("nobody listens"), "{again}");

    // By the next attach.
    let pins = steer();
    let _workers = start();
    scene.attach(&[]);
    let status = scene.status();
    assert_eq!(text(&status["steering"]["pins"]), pins);
    assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
    assert_eq!(status["steering"]["in_force"], true, "{status:#}");
}

/// All workers were replaced one by one, so the program is attached with an empty map. A detach on
/// the same port elsewhere must not take that for a group that is gone.
#[test]
fn a_group_in_another_place_keeps_its_pins_when_one_is_detached() {
    let (scene, workers) = Scene::with_workers(&Spec::default());
    scene.attach(&[]);
    let _next = scene.one_per_cpu(&Spec::default(), 1);
    drop(workers);
    let (elsewhere, _others) = Scene::with_workers(&Spec::default());
    elsewhere.attach(&[]);
    assert_eq!(elsewhere.detach(), "detached");
    let _v6 = scene.one_per_cpu(&Spec { addr: "::", v6only: true, ..Spec::default() }, 1);
    scene.run("detach", &["--addr", "::"]).ok();
    scene.run("attach", &["--addr", "0.0.0.0"]).ok();
    scene.assert_local();
}

/// Opens `count` connections from `cpu` at once and waits until they are in somebody's accept queue,
/// does `then`, and returns what became of them.
fn queue(scene: &Scene, cpu: u32, count: usize, then: impl FnOnce()) -> Tally {
    let queued = || -> u64 {
        let status = scene.status();
        status["listeners"].as_array().unwrap().iter().map(|it| number(&it["queued"])).sum()
    };
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let one = || connect(&scene.netns, cpu, &here());
        let clients: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        let waiting = eventually(Duration::from_secs(20), || queued() == count as u64);
        assert!(waiting, "{} of {count} wait", queued());
        then();
        for client in clients {
            tally.add(cpu, client.join().expect("a client"));
        }
    });
    tally
}

/// Twice as many workers as CPUs, each bound to one.
fn crowd(scene: &Scene, spec: &Spec) -> Vec<Worker> {
    let mut workers = scene.one_per_cpu(spec, 1);
    workers.extend(scene.one_per_cpu(&Spec { index: 100, ..spec.clone() }, 1));
    workers
}

#[test]
fn connections_that_wait_for_a_dead_worker_move_to_all_others() {
    require::cpus(2);
    let scene = Scene::new();
    let mut workers = crowd(&scene, &Spec::default());
    // Only the first is where the connections go; the others are just steered to nobody's rows.
    let others = |percent: u32| -> Vec<String> {
        let weight = |it: &Worker| ["--weight".to_owned(), format!("{}={percent}", it.pid())];
        workers[1..].iter().flat_map(weight).collect()
    };
    let [nothing, normal] = [0, 100].map(others);
    let attach = |weights: &[String]| {
        scene.attach(&weights.iter().map(String::as_str).collect::<Vec<_>>());
    };
    workers[0].tell("stop");
    attach(&nothing);
    let tally = queue(&scene, cpus()[0], 24, || {
        // Back to everybody, so that the dead one's connections have where to go.
        attach(&normal);
        workers[0].kill();
    });
    assert_eq!((tally.answered(), tally.failed()), (24, 0), "{tally}");
    let by_worker = tally.by_worker(cpus()[0]);
    assert!(!by_worker.contains_key("0"), "{tally}");
    // The closing process ran on the first CPU. By CPU all would go to its sibling there.
    assert!(by_worker.len() >= 2, "all went to one: {tally}");
    let remote = by_worker.iter().filter(|(worker, _)| **worker != "100");
    assert!(remote.map(|(_, count)| count).sum::<u64>() > 0, "{tally}");
    assert_eq!(scene.counter("migrated"), 24);
}

/// Without steering the same costs every waiting connection: what the test above rests on.
#[test]
fn without_steering_they_are_reset() {
    let scene = Scene::new();
    let mut workers = crowd(&scene, &Spec::default());
    for worker in &mut workers {
        worker.tell("stop");
    }
    let tally = queue(&scene, cpus()[0], 24, || workers.iter_mut().for_each(Worker::kill));
    assert_eq!(tally.failed(), 24, "{tally}");
}

/// The handshake is done for the client, not yet for the server: TCP_DEFER_ACCEPT.
#[test]
fn connections_that_are_not_established_yet_move_too() {
    require::cpus(2);
    let (scene, mut workers) = Scene::with_workers(&Spec { defer: true, ..Spec::default() });
    scene.attach(&[]);
    let count = 12;
    let mut streams: Vec<TcpStream> = scene.netns.run_in(|| {
        sys::pin(0, &[cpus()[0]]).expect("run on a CPU");
        let open = |_| TcpStream::connect(here().address).expect("connect");
        (0..count).map(open).collect()
    });
    assert_eq!(workers[0].tell("stats")["accepted"][0], 0, "nothing was sent yet");
    workers[0].kill();
    for stream in &mut streams {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream.write_all(b"x").expect("send");
    }
    let mut served = BTreeMap::new();
    for mut stream in streams {
        let mut line = String::new();
        stream.read_to_string(&mut line).expect("an answer");
        *served.entry(Reply(line).worker()).or_insert(0_u64) += 1;
    }
    assert_eq!(served.values().sum::<u64>(), count, "{served:?}");
    assert!(!served.contains_key("0"), "{served:?}");
    assert!(scene.counter("migrated") >= count);
}

/// Attaching through it would break its `listen()`.
#[test]
fn a_worker_that_is_bound_and_does_not_listen_yet_is_left_alone() {
    require::cpus(2);
    let scene = Scene::new();
    let early = Spec { index: 0, cpus: vec![cpus()[0]], listen: false, ..Spec::default() };
    let mut early = Worker::start(&scene.netns, &early);
    let mut others = scene.one_per_cpu(&Spec { index: 50, ..Spec::default() }, 1);
    scene.attach(&[]);
    early.tell("listen");
    let status = scene.status();
    assert_eq!(status["listeners"].as_array().unwrap().len(), cpus().len() + 1);
    assert!(status["problems"].to_string().contains("1 listeners joined since"), "{status:#}");
    others[0].kill();
    scene.attach(&[]);
    let tally = burst(&scene.netns, cpus()[0], &here(), 50);
    tally.assert_local(|_| "0".to_owned());
}

/// Workers come and go under load, one at a time, each retired by weight before it goes: no
/// connection is lost.
#[test]
fn workers_are_replaced_one_by_one_under_load() {
    require::cpus(2);
    let (scene, mut workers) = Scene::with_workers(&Spec::default());
    scene.attach(&[]);
    let load = Load::start(&scene.netns, &here(), &cpus(), 2);
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        for (index, cpu) in cpus().into_iter().enumerate() {
            let spec = Spec { index: index as u32, cpus: vec![cpu], ..Spec::default() };
            let next = Worker::start(&scene.netns, &spec);
            let retired = format!("{}=0", workers[index].pid());
            let report = scene.attach(&["--weight", &retired]);
            seen.insert(number(&report["attached"]["program_id"]));
            load.advance(50);
            let mut old = std::mem::replace(&mut workers[index], next);
            old.tell("exit");
            drop(old);
            scene.attach(&[]);
        }
    }
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    assert_eq!(seen.len(), 1, "re-planned in place");
    scene.assert_steered();
}
