//! What workers are to get: kept in the pins, shown, changed one by one, and what is refused.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use reuseport_tests::binary::Cli;
use reuseport_tests::client::{Target, burst, datagrams};
use reuseport_tests::load::Load;
use reuseport_tests::process::tool;
use reuseport_tests::scene::{Scene, number, place, text};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, require};
use serde_json::{Value, json};

use crate::drain::report;
use crate::review::set_abi;

fn here() -> Target {
    Target::plain("127.0.0.1:8080")
}

/// Weight and role of the listener that the process serves, as `status` tells.
fn intent(scene: &Scene, worker: &Worker) -> (u64, String) {
    let status = scene.status();
    let cookie = worker.cookies()[0];
    let listeners = status["listeners"].as_array().expect("listeners");
    let own = listeners.iter().find(|it| it["cookie"] == cookie).expect("its listener");
    (number(&own["weight"]), text(&own["role"]))
}

fn active(weight: u64) -> (u64, String) {
    (weight, "active".to_owned())
}

#[test]
fn weights_are_kept_until_told_otherwise() {
    let (scene, mut workers) = Scene::with_workers(&Spec::default());
    let pid = workers[0].pid();
    let set = |percent: u32| {
        let weight = format!("{pid}={percent}");
        scene.attach(&["--weight", &weight])
    };
    let weight_of = |report: &Value| number(&report["plan"]["seats"][0]["weight"]);
    assert_eq!(weight_of(&set(300)), 300);
    assert_eq!(intent(&scene, &workers[0]), active(300));
    assert_eq!(weight_of(&scene.attach(&["--dry-run"])), 300);
    assert_eq!(weight_of(&scene.attach(&["--policy", "hash"])), 300, "in place");
    let renewed = scene.attach(&["--log-misses"]);
    assert_eq!(renewed["attached"]["in_place"], false);
    assert_eq!(weight_of(&renewed), 300, "by another program");
    assert_eq!(intent(&scene, &workers[0]), active(300));
    let netns = scene.netns.path().display().to_string();
    let table = Cli::new(["status", "--port", "8080", "--netns", &netns]).netns(&scene.netns);
    let table = table.run().ok();
    let lines = table.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let slots: Vec<_> = lines.skip(1).take(2).collect();
    assert_eq!(slots[0][..3], ["SLOT", "WEIGHT", "ROLE"], "{table}");
    assert_eq!(slots[1][..3], ["0", "300%", "active"], "{table}");
    assert_eq!(weight_of(&set(100)), 100);
    assert_eq!(weight_of(&set(25)), 25);
    // Who takes its seat is another.
    drop(workers.remove(0));
    let next = Worker::start(&scene.netns, &Spec { cpus: vec![cpus()[0]], ..Spec::default() });
    scene.attach(&[]);
    assert_eq!(intent(&scene, &next), active(100));
    workers.insert(0, next);
    scene.assert_steered();
}

/// As the version before left them: another ABI, and a map less.
fn age(pins: &Path) {
    set_abi(pins, 1);
    fs::remove_file(pins.join("SEATS")).expect("remove a pin");
}

#[test]
fn pins_of_the_version_before_are_replaced_under_load() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let first = number(&scene.attach(&[])["attached"]["program_id"]);
    let pins = text(&scene.status()["steering"]["pins"]);
    let load = Load::start(&scene.netns, &here(), &cpus(), 1);
    load.advance(50);
    age(pins.as_ref());
    let said = scene.status()["problems"].to_string();
    assert!(said.contains("another version's (ABI 1, this version speaks 2)"), "{said}");
    let again = scene.attach(&[]);
    assert_ne!(number(&again["attached"]["program_id"]), first);
    load.advance(50);
    scene.assert_steered();

    age(pins.as_ref());
    assert_eq!(scene.detach(), "detached");
    assert!(!Path::new(&pins).exists());
    assert_eq!(scene.status()["attached"]["state"], "nothing");
    load.advance(50);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    // The kernel's own word that nothing was left of the first.
    let loaded = tool("bpftool", &["-j", "prog", "show"]);
    assert!(!loaded.contains(&format!("\"id\":{first},")), "{loaded}");
}

#[test]
fn what_cannot_be_drained_or_weighed() {
    require::cpus(2);
    let (scene, workers) = Scene::with_workers(&Spec::default());
    let pids: Vec<String> = workers.iter().map(|worker| worker.pid().to_string()).collect();
    let none: Vec<String> = pids.iter().map(|pid| format!("{pid}=0")).collect();
    let none: Vec<&str> = none.iter().map(String::as_str).collect();
    // Not steered yet.
    for (verb, args) in [("drain", ["--pid", &pids[0]]), ("undrain", ["--slot", "0"])] {
        let _ = scene.run(verb, &args).fails(3).says("not steered").says("attach");
    }
    let _ = scene.run("weight", &[&format!("{}=50", pids[0])]).fails(3).says("not steered");

    scene.attach(&[]);
    let before = scene.status();
    let nobody = std::process::id().to_string();
    let thread = format!("{}/{}", pids[0], pids[1]);
    for (verb, args, code, words) in [
        ("drain", &["--pid", nobody.as_str()] as &[&str], 2, "serves none"),
        ("drain", &["--pid", &thread], 2, "serves none"),
        ("undrain", &["--slot", "63"], 2, "slot 63"),
        ("drain", &["--slot", "4000000000"], 2, "slot 4000000000"),
        ("weight", &[&format!("{nobody}=50")], 2, "serves none"),
        ("weight", &[&format!("{}=50", pids[0]), &format!("{nobody}=50")], 2, "serves none"),
        ("weight", none.as_slice(), 4, "nobody would be left"),
        ("drain", &[], 2, "--pid"),
        ("drain", &["--pid", &pids[0], "--slot", "0"], 2, "--slot"),
        ("drain", &["--pid", &pids[0], "--no-wait", "--timeout", "1"], 2, "--no-wait"),
        ("drain", &["--pid", "0"], 2, "`0`"),
        ("drain", &["--pid", "1/x"], 2, "`x`"),
        ("drain", &["--slot=-1"], 2, "--slot"),
        ("weight", &[], 2, "PERCENT"),
        ("weight", &["1=x"], 2, "`x`"),
        ("weight", &["1"], 2, "PID"),
    ] {
        let _ = scene.run(verb, args).fails(code).says(words);
    }
    let after = scene.status();
    for what in ["rows", "generation", "program_id"] {
        assert_eq!(after["steering"][what], before["steering"][what], "{what}");
    }
    scene.assert_steered();

    // The last one.
    scene.run("drain", &["--pid", &pids[0]]).ok();
    for pid in &pids[1..pids.len() - 1] {
        scene.run("drain", &["--pid", pid]).ok();
    }
    let last = pids.last().expect("a worker");
    let _ = scene.run("drain", &["--pid", last]).fails(4).says("nobody would be left");
    let _ = scene.run("weight", &[&format!("{last}=0")]).fails(4).says("nobody would be left");
    let _ = scene.run("attach", &["--weight", &format!("{last}=0")]).fails(2).says("undrain");
    let tally = burst(&scene.netns, cpus()[0], &here(), 30);
    tally.assert_local(|_| place(*cpus().last().expect("a CPU")));
    scene.detach();
    let _ = scene.run("drain", &["--pid", last]).fails(3).says("not steered");
}

/// Slots are a group's own: with several groups on the port one must be named, and a process that
/// serves in all of them is drained in all of them.
#[test]
fn a_slot_of_several_groups_is_ambiguous() {
    let scene = Scene::new();
    let mut both = scene.one_per_cpu(&Spec::default(), 1);
    both.extend(scene.one_per_cpu(&Spec { addr: "::", v6only: true, ..Spec::default() }, 1));
    let spec = Spec { addr: "0.0.0.0,::", v6only: true, listeners: 2, ..Spec::default() };
    let pid = Worker::start(&scene.netns, &spec);
    scene.attach_all(&[]);
    let _ = scene.run("drain", &["--slot", "0"]).fails(3).says("several groups").says("--addr");
    let one = report(&scene, "drain", &["--slot", "0", "--addr", "::"]);
    assert!(text(&one["group"]["address"]).starts_with("[::]"), "{one:#}");
    let all = scene.run("drain", &["--pid", &pid.pid().to_string(), "--no-wait"]).ok().json();
    assert_eq!(all.as_array().map(Vec::len), Some(2), "{all:#}");
    assert_eq!(all[0]["seats"][0]["drained"], Value::Null);
}

/// Sockets without an accept queue: nothing new, and what was received is waited for.
#[test]
fn udp_sockets_are_drained_too() {
    require::cpus(2);
    let scene = Scene::udp();
    let spec = Spec { udp: true, ..Spec::default() };
    let mut workers = scene.one_per_cpu(&spec, 1);
    // Other programs on this machine cannot be told from this group's.
    scene.attach(&["--takeover"]);
    let pid = workers[0].pid().to_string();
    let send = |count| datagrams(&scene.netns, cpus()[0], &here(), count);
    send(20).assert_local(place);
    let drained = report(&scene, "drain", &["--pid", &pid]);
    assert_eq!(drained["seats"][0]["drained"], "empty", "{drained:#}");
    send(20).assert_local(|_| "1".to_owned());
    report(&scene, "undrain", &["--pid", &pid]);
    send(20).assert_local(place);

    workers[0].freeze();
    scene.netns.run_in(|| {
        reuseport_tests::sys::pin(0, &[cpus()[0]]).expect("run on a CPU");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.send_to(b"?", here().address).expect("send");
    });
    let late = scene.run("drain", &["--pid", &pid, "--timeout", "1"]).fails(1);
    let _late = late.says("gets nothing new");
    workers[0].thaw();
    let drained = report(&scene, "drain", &["--pid", &pid]);
    assert_eq!(drained["seats"][0]["drained"], "empty", "{drained:#}");
    assert_eq!(number(&workers[0].tell("stats")["accepted"][0]), 41);
}

/// A canary: a tenth of the normal share, with a hash that is as good as chance.
#[test]
fn weight_is_the_share_of_connections() {
    let scene = Scene::new();
    let spec = |index| Spec { index, ..Spec::default() };
    let workers: Vec<_> = (0..3).map(|index| Worker::start(&scene.netns, &spec(index))).collect();
    scene.attach(&["--policy", "hash"]);
    let canary = format!("{}=10", workers[0].pid());
    let done = report(&scene, "weight", &[&canary]);
    assert_eq!((&done["seats"][0]["weight"], &done["changed"]), (&json!(10), &json!(true)));
    let share = |count: u32| {
        let tally = burst(&scene.netns, cpus()[0], &here(), count);
        assert_eq!(tally.failed(), 0, "{tally}");
        tally.by_worker(cpus()[0]).get("0").copied().unwrap_or(0)
    };
    // Five standard deviations of a binomial distribution: wrong once in two million runs.
    let within = |count: u32, part: f64| {
        let (n, got) = (f64::from(count), share(count) as f64);
        let bound = 5.0 * (n * part * (1.0 - part)).sqrt();
        println!("weight: {got} of {n}, due {:.1} give or take {bound:.1}", n * part);
        assert!((got - n * part).abs() < bound, "{got} of {n} is not {part} of all");
    };
    within(4000, 10.0 / 210.0);
    report(&scene, "weight", &[&format!("{}=50%", workers[0].pid())]);
    within(2000, 50.0 / 250.0);
    report(&scene, "weight", &[&format!("{}=0", workers[0].pid())]);
    assert_eq!(share(500), 0);
    report(&scene, "weight", &[&format!("{}=100", workers[0].pid())]);
    within(2000, 1.0 / 3.0);
    assert_eq!(report(&scene, "weight", &[&format!("{}=100", workers[0].pid())])["changed"], false);
}
