//! Whether `trace` sees what is known to happen, whichever way it sees accepts.

use std::fs;
use std::thread::{scope, sleep};
use std::time::Duration;

use aya::programs::FExit;
use aya::{Btf, Ebpf, EbpfLoader};
use reuseport_common::observe::PROGRAM_ACCEPTED;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::cpus;
use reuseport_tests::tracer::Tracer;
use serde_json::{Value, json};

use crate::checks::btf;
use crate::scene::{ADDRESS, Scene};

/// How long a worker stands still: more than the emulation takes for a connection.
const PAUSE: Duration = Duration::from_secs(2);
/// More programs than a kernel lets run at one function (38 or 40).
const CROWD: usize = 64;
const NO_BTF: &str = "no BTF";

fn start(scene: &Scene, args: &[&str]) -> Tracer {
    Tracer::start(&scene.netns, 8080, args)
}

fn hook(summary: &Value) -> &str {
    summary["hook"].as_str().expect("a hook")
}

/// Asserts that so many connections were seen come and go and nothing was lost, and that their times
/// are times; how many stayed on their CPU.
fn assert_all(summary: &Value, answered: u64) -> u64 {
    let total = &summary["total"];
    assert_eq!((&total["accepted"], &total["unseen"]), (&answered.into(), &0.into()), "{summary}");
    assert_eq!(summary["queued"], answered, "{summary}");
    for (what, lost) in summary["lost"].as_object().expect("an object") {
        assert_eq!(*lost, 0, "{what}: {summary}");
    }
    let locality = total["locality"].as_object().expect("an object");
    let sum: u64 = locality.values().filter_map(Value::as_u64).sum();
    assert_eq!(sum, answered, "{summary}");
    for what in ["wait", "handshake"] {
        let times = ["p50_us", "p90_us", "p99_us", "max_us"].map(|it| total[what][it].as_f64());
        let ordered = times.is_sorted() && times[0] > Some(0.0) && times[3] < Some(60e6);
        assert!(ordered, "{what}: {summary}");
    }
    locality["same"].as_u64().expect("a number")
}

/// Traces connections to workers that are steered to.
fn steered(scene: &Scene) -> (Value, u64) {
    scene.attach(&[]);
    let tracer = start(scene, &["--json"]);
    let answered = scene.assert_local(ADDRESS);
    (tracer.stop().json(), answered)
}

/// How accepts are seen depends on the kernel; what is seen must not: each worker gets what its CPU
/// receives, and nothing else.
pub(crate) fn whole() -> String {
    if btf() == "no" {
        return NO_BTF.to_owned();
    }
    let scene = Scene::new();
    let (summary, answered) = steered(&scene);
    assert_eq!(assert_all(&summary, answered), answered, "{summary}");
    let listeners = summary["groups"][0]["listeners"].as_array().expect("listeners");
    assert_eq!(listeners.len(), scene.workers.len(), "{summary}");
    let each = answered / cpus().len() as u64;
    for (worker, cpu) in scene.workers.iter().zip(cpus()) {
        let listener = listeners.iter().find(|it| it["cookie"] == worker.cookies()[0]);
        let pairs = json!([{"received": cpu, "accepted": cpu, "connections": each}]);
        assert_eq!(listener.expect("the worker's")["pairs"], pairs, "{summary}");
    }
    format!("{answered} of {answered}, by {}", hook(&summary))
}

/// Where as many programs as may run at the end of the kernel's function do already.
pub(crate) fn by_syscalls() -> String {
    if btf() == "no" {
        return NO_BTF.to_owned();
    }
    let crowd = crowd();
    let scene = Scene::new();
    let (summary, answered) = steered(&scene);
    drop(crowd);
    assert_without_function(&summary, answered)
}

/// Where the kernel was told not to run what is attached to its functions.
pub(crate) fn without_ftrace() -> String {
    const SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";
    if btf() == "no" {
        return NO_BTF.to_owned();
    }
    if fs::write(SWITCH, "0").is_err() {
        return "no such setting".to_owned();
    }
    let scene = Scene::new();
    let (summary, answered) = steered(&scene);
    fs::write(SWITCH, "1").expect("set it back");
    assert_without_function(&summary, answered)
}

/// The kernel may leave a run out while another is under way on that CPU; then it is told.
fn assert_without_function(summary: &Value, answered: u64) -> String {
    assert_eq!(hook(summary), "syscalls", "{summary}");
    let number = |value: &Value| value.as_u64().expect("a number");
    let (total, missed) = (&summary["total"], number(&summary["lost"]["missed"]));
    let accepted = number(&total["accepted"]);
    assert!(accepted <= answered && accepted + missed >= answered, "{summary}");
    assert_eq!(
        number(&total["locality"]["same"]),
        accepted - number(&total["unseen"]),
        "{summary}"
    );
    match missed {
        0 => format!("{accepted} of {answered}"),
        _ => format!("{accepted} of {answered}, {missed} runs left out"),
    }
}

/// Programs at the end of the function, until the kernel takes no more. They look for a port that
/// nobody has.
fn crowd() -> Vec<Ebpf> {
    let (name, function) = PROGRAM_ACCEPTED;
    let btf = Btf::from_sys_fs().expect("the kernel's BTF");
    let mut crowd = Vec::new();
    while crowd.len() < CROWD {
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader.btf(None).load(reuseport_ebpf::OBSERVE).expect("maps");
        let program: &mut FExit =
            ebpf.program_mut(name).expect("the program").try_into().expect("its kind");
        program.load(function, &btf).expect("load it");
        if program.attach().is_err() {
            return crowd;
        }
        crowd.push(ebpf);
    }
    panic!("{CROWD} programs at {function}, and still room");
}

/// By the kernel's hash: what stays on its CPU is what the workers say so of.
pub(crate) fn hashed() -> String {
    if btf() == "no" {
        return NO_BTF.to_owned();
    }
    let scene = Scene::new();
    let tracer = start(&scene, &["--json"]);
    let tally = scene.connect(ADDRESS, 50);
    let summary = tracer.stop().json();
    let local: u64 = cpus()
        .into_iter()
        .filter_map(|cpu| tally.by_worker(cpu).get(cpu.to_string().as_str()).copied())
        .sum();
    let same = assert_all(&summary, tally.answered());
    assert_eq!(same, local, "{tally}: {summary}");
    format!("{same} of {}, as the workers say", tally.answered())
}

/// Connections wait for a worker that stands still, and for no other reason so long.
pub(crate) fn waits() -> String {
    if btf() == "no" {
        return NO_BTF.to_owned();
    }
    let (scene, _) = Scene::steered();
    let tracer = start(&scene, &["--json"]);
    let cpu = cpus()[0];
    let connect = |count| burst(&scene.netns, cpu, &Target::plain(ADDRESS), count);
    assert_eq!(connect(30).answered(), 30);
    scene.workers[0].freeze();
    scope(|threads| {
        let client = threads.spawn(|| connect(1));
        sleep(PAUSE);
        scene.workers[0].thaw();
        assert_eq!(client.join().expect("a client").failed(), 0);
    });
    let summary = tracer.stop().json();
    assert_all(&summary, 31);
    let wait = &summary["total"]["wait"];
    let millis = |name: &str| wait[name].as_f64().expect("a time") / 1000.0;
    // The client may be late by as much as the emulation is busy.
    let pause = PAUSE.as_secs_f64() * 1000.0;
    let (half, most) = (millis("p50_us"), millis("max_us"));
    assert!(half < pause / 4.0 && most > pause / 2.0, "{summary}");
    format!("{:.1} s for one held up for 2 s", most / 1000.0)
}

/// A line for each connection, with who accepted it where.
pub(crate) fn events() -> String {
    if btf() == "no" {
        return NO_BTF.to_owned();
    }
    let (scene, _) = Scene::steered();
    let tracer = start(&scene, &["--events", "--json"]);
    let answered = scene.assert_local(ADDRESS);
    let mut lines = tracer.stop().lines();
    let summary = lines.pop().expect("a summary")["summary"].take();
    assert_all(&summary, answered);
    assert_eq!(lines.len() as u64, answered, "{summary}");
    for line in &lines {
        let worker = scene.workers.iter().find(|it| line["pid"] == it.pid()).expect("a worker");
        assert_eq!(line["listener"], worker.cookies()[0], "{line}");
        assert_eq!(
            (&line["distance"], &line["received"]),
            (&json!("same"), &line["accepted"]),
            "{line}"
        );
        assert_eq!(line["server"], "0.0.0.0:8080", "{line}");
        let client = line["client"].as_str().expect("an address");
        assert!(client.starts_with("127.0.0.1:") && line["wait_us"].as_f64() > Some(0.0), "{line}");
    }
    format!("{answered} lines of {answered}")
}
