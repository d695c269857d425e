//! Which worker is chosen, by policy, weight and what is left of the group.

use std::collections::BTreeMap;
use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::bpffs::Bpffs;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::scene::{Scene, number};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually, require};
use serde_json::{Value, json};

fn here() -> Target {
    Target::plain("127.0.0.1:8080")
}

/// `count` workers with indices from 0, the `i`th bound to the `i`th CPU, again from the first when
/// they run out.
fn workers(scene: &Scene, count: u32) -> Vec<Worker> {
    let cpu = |index: u32| cpus()[index as usize % cpus().len()];
    let spec = |index| Spec { index, cpus: vec![cpu(index)], ..Spec::default() };
    (0..count).map(|index| Worker::start(&scene.netns, &spec(index))).collect()
}

/// Answers to `count` connections from one CPU, by worker.
fn shares(scene: &Scene, cpu: u32, count: u32) -> BTreeMap<u32, u64> {
    let tally = burst(&scene.netns, cpu, &here(), count);
    assert_eq!(tally.failed(), 0, "{tally}");
    let by_worker = tally.by_worker(cpu).into_iter();
    by_worker.map(|(worker, count)| (worker.parse().unwrap(), count)).collect()
}

#[test]
fn hash_and_random_give_everybody_the_same() {
    let scene = Scene::new();
    let _workers = workers(&scene, 4);
    for policy in ["hash", "random"] {
        scene.attach(&["--policy", policy]);
        for cpu in cpus() {
            // 100 each, and 50 is more than five standard deviations from it.
            let shares = shares(&scene, cpu, 400);
            let even = |worker| shares.get(worker).is_some_and(|count| (50..=150).contains(count));
            assert!([0, 1, 2, 3].iter().all(even), "{policy} from CPU {cpu}: {shares:?}");
        }
    }
    let status = scene.status();
    assert_eq!(status["steering"]["policy"], "random");
    assert_eq!(status["steering"]["counters"]["first"], 800 * cpus().len());
}

#[test]
fn round_robin_takes_turns_on_each_cpu() {
    let scene = Scene::new();
    let _workers = workers(&scene, 4);
    scene.attach(&["--policy", "round-robin"]);
    let rows = scene.status()["steering"]["rows"].as_array().unwrap().len() as u32;
    let count = rows * 400_u32.div_ceil(rows);
    for cpu in cpus() {
        let shares = shares(&scene, cpu, count);
        let expected: BTreeMap<u32, u64> = (0..4).map(|it| (it, u64::from(count) / 4)).collect();
        assert_eq!(shares, expected, "from CPU {cpu}");
    }
}

#[test]
fn weights_are_shares() {
    let scene = Scene::new();
    let workers = workers(&scene, 4);
    let weight = |worker: usize, percent: u32| format!("{}={percent}", workers[worker].pid());
    let (triple, none) = (weight(0, 300), weight(1, 0));
    let given = ["--weight", &triple, "--weight", &none];
    // Exactly 3:0:1:1 in turn; about that by chance: 240 and 80 of 400, give or take 50.
    let turns = [&["--policy", "round-robin"], given.as_slice()].concat();
    scene.attach(&turns);
    let rows = scene.status()["steering"]["rows"].as_array().unwrap().len() as u32;
    let rounds = 100_u32.div_ceil(rows);
    let expected = |part: u32| u64::from(rows * rounds * part / 5);
    for cpu in cpus() {
        let exact = BTreeMap::from([(0, expected(3)), (2, expected(1)), (3, expected(1))]);
        assert_eq!(shares(&scene, cpu, rows * rounds), exact, "from CPU {cpu}");
    }
    for policy in ["hash", "random"] {
        scene.attach(&[&["--policy", policy], given.as_slice()].concat());
        for cpu in cpus() {
            let shares = shares(&scene, cpu, 400);
            assert!((190..=290).contains(&shares[&0]), "{policy}: {shares:?}");
            assert_eq!(shares.get(&1), None, "{policy}: {shares:?}");
            assert!((30..=130).contains(&shares[&2]), "{policy}: {shares:?}");
        }
    }
}

/// Weights of workers on one CPU share out that CPU's connections; one of weight 0 gets none, and
/// the CPU that it leaves goes to the others.
#[test]
fn weights_count_on_each_cpu_by_itself() {
    require::cpus(2);
    let scene = Scene::new();
    let count = cpus().len() as u32;
    let workers = workers(&scene, 2 * count);
    let weight = format!("{}=300", workers[0].pid());
    scene.attach(&["--weight", &weight]);
    let uneven = shares(&scene, cpus()[0], 400);
    assert_eq!(uneven.keys().copied().collect::<Vec<_>>(), [0, count], "only local ones");
    assert!((230..=370).contains(&uneven[&0]), "not three quarters: {uneven:?}");
    let even = shares(&scene, cpus()[1], 400);
    assert!((130..=270).contains(&even[&1]), "not half: {even:?}");

    let nobody = [0, count].map(|index| format!("{}=0", workers[index as usize].pid()));
    scene.attach(&["--weight", &nobody[0], "--weight", &nobody[1]]);
    let elsewhere = shares(&scene, cpus()[0], 200);
    assert!(!elsewhere.contains_key(&0) && !elsewhere.contains_key(&count), "{elsewhere:?}");
}

#[test]
fn more_workers_than_cpus_share_them_and_stay_local() {
    let scene = Scene::new();
    let each = 4;
    let places = cpus().len() as u32;
    let _workers = workers(&scene, places * each);
    scene.attach(&[]);
    for (index, cpu) in (0..).zip(cpus()) {
        let shares = shares(&scene, cpu, 400);
        let local: Vec<u32> = (0..each).map(|round| round * places + index).collect();
        assert_eq!(shares.keys().copied().collect::<Vec<_>>(), local, "from CPU {cpu}: {shares:?}");
    }
}

#[test]
fn a_cpu_without_a_worker_borrows_some() {
    require::cpus(2);
    let scene = Scene::new();
    let first = cpus()[0];
    let spec = |index| Spec { index, cpus: vec![first], ..Spec::default() };
    let _workers = [0, 1].map(|index| Worker::start(&scene.netns, &spec(index)));
    scene.attach(&[]);
    for cpu in cpus() {
        let shares = shares(&scene, cpu, 200);
        assert!(shares.len() == 2 && shares.values().all(|&it| it > 40), "{cpu}: {shares:?}");
    }
    let counters = &scene.status()["steering"]["counters"];
    assert_eq!(counters["first"], 200 * cpus().len());
    assert_eq!(counters["local"], 200, "only those from the workers' own CPU");
}

/// The program runs for the SYN and again for the ACK that brings the cookie back.
#[test]
fn syn_cookies_run_it_twice_and_end_at_the_right_worker() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    scene.attach(&[]);
    scene.assert_steered();
    let before = scene.counter("runs");
    assert_eq!(before, 30 * cpus().len() as u64, "one run each without cookies");
    scene.netns.sysctl("net/ipv4/tcp_syncookies", "2");
    scene.assert_steered();
    assert_eq!(scene.counter("runs") - before, 60 * cpus().len() as u64);
    assert_eq!(scene.counter("runs"), scene.counter("local"));
}

#[test]
fn a_dead_worker_s_part_falls_to_second_choices_then_to_the_hash() {
    require::cpus(2);
    let (scene, mut workers) = Scene::with_workers(&Spec::default());
    scene.attach(&[]);
    // Joins later: in the group, and in no slot.
    let late = Spec { index: 77, cpus: vec![cpus()[0]], ..Spec::default() };
    let _late = Worker::start(&scene.netns, &late);

    workers[0].kill();
    let shares_of_dead = shares(&scene, cpus()[0], 100);
    assert!(!shares_of_dead.contains_key(&77), "only who has a slot: {shares_of_dead:?}");
    assert_eq!(scene.counter("second"), 100);
    assert_eq!(scene.counter("no_socket"), 0);
    let status = scene.status();
    let slots: Vec<_> =
        status["listeners"].as_array().unwrap().iter().map(|it| &it["slot"]).collect();
    assert!(slots.contains(&&json!(null)) && !slots.contains(&&json!(0)), "{slots:?}");
    let said = status["problems"].to_string();
    assert!(said.contains("joined since") && said.contains("empty slots (0)"), "{said}");

    for worker in &mut workers[1..] {
        worker.kill();
    }
    for cpu in cpus() {
        assert_eq!(shares(&scene, cpu, 50), BTreeMap::from([(77, 50)]), "by hash");
    }
    assert_eq!(scene.counter("no_socket"), 50 * cpus().len() as u64);
    assert_eq!(scene.counter("second"), 100);
}

#[test]
fn a_worker_that_joined_gets_its_seat_with_the_next_attach() {
    require::cpus(2);
    let (scene, mut workers) = Scene::with_workers(&Spec::default());
    let first = scene.attach(&[]);
    workers[0].kill();
    workers[0] = Worker::start(&scene.netns, &Spec { cpus: vec![cpus()[0]], ..Spec::default() });
    let again = scene.attach(&[]);
    assert_eq!(again["attached"]["program_id"], first["attached"]["program_id"]);
    assert_eq!(again["attached"]["generation"], 1, "the table names its slot already");
    assert_eq!(again["attached"]["in_place"], true);
    scene.assert_steered();
    assert_eq!(scene.counter("second"), 0);
}

#[test]
fn a_listener_keeps_its_seat_through_listen_and_loses_it_by_close() {
    let scene = Scene::new();
    let mut workers = scene.one_per_cpu(&Spec { listeners: 2, ..Spec::default() }, 10);
    scene.attach(&[]);
    let seats = || -> BTreeMap<u64, Option<u64>> {
        let status = scene.status();
        let listeners = status["listeners"].as_array().unwrap().iter();
        listeners.map(|it| (number(&it["cookie"]), it["slot"].as_u64())).collect()
    };
    let before = seats();
    assert!(before.len() == 2 * cpus().len() && before.values().all(Option::is_some), "{before:?}");

    // Another backlog, by a second listen(2).
    workers[0].tell("relisten");
    assert_eq!(seats(), before);
    let backlogs = scene.status()["listeners"].to_string();
    assert!(backlogs.contains("\"backlog\":7"), "the backlog did not change: {backlogs}");

    let closed = workers[0].cookies()[0];
    workers[0].tell("close first");
    let gone = eventually(Duration::from_secs(5), || !seats().contains_key(&closed));
    assert!(gone, "{:?}", seats());
    let expected: BTreeMap<_, _> =
        before.clone().into_iter().filter(|(cookie, _)| *cookie != closed).collect();
    assert_eq!(seats(), expected, "the others keep theirs");
    let own = shares(&scene, cpus()[0], 50);
    assert_eq!(own.keys().copied().collect::<Vec<_>>(), [1], "its sibling is next: {own:?}");

    // Its slot is free for whoever comes next.
    let more = Spec { index: 50, cpus: vec![cpus()[0]], ..Spec::default() };
    let late = Worker::start(&scene.netns, &more);
    scene.attach(&[]);
    assert_eq!(seats()[&late.cookies()[0]], before[&closed]);
}

/// Which of them gets a connection that comes by the device is up to the order of listening: that is
/// told, and both are steered.
#[test]
fn groups_bound_to_a_device_are_told_apart() {
    require::cpus(2);
    let scene = Scene::new();
    let mut all = workers(&scene, 2);
    for (index, cpu) in (0..).zip(cpus()) {
        let spec = Spec { index, cpus: vec![cpu], device: Some("lo"), ..Spec::default() };
        all.push(Worker::start(&scene.netns, &spec));
    }
    let bpffs = Bpffs::new();
    let mut agent = Agent::start(&scene.netns, &bpffs, 8080, &["--detach-on-exit"]);
    agent.wait_for("is bound to a device and tcp 0.0.0.0:8080 is not");
    let log = agent.stop();
    assert_eq!(log.matches("is bound to a device").count(), 1, "{log}");
    let said = scene.run("attach", &[]).ok();
    assert!(said.stdout.contains("is bound to a device and tcp 0.0.0.0:8080 is not"), "{said}");
    let groups = scene.status_all();
    let devices: Vec<u64> = groups.iter().map(|it| number(&it["group"]["device"])).collect();
    assert_eq!(devices, [0, 1], "{groups:#?}");
    let warned = |it: &Value| it["problems"].to_string().contains("is bound to a device");
    assert_eq!(groups.iter().map(warned).collect::<Vec<_>>(), [true, false], "{groups:#?}");
    for cpu in cpus() {
        burst(&scene.netns, cpu, &here(), 30).assert_local(reuseport_tests::scene::place);
    }
}
