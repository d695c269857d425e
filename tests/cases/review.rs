//! Faults that were there once, each with the scene that showed it.

use std::fs::{self, File};
use std::path::Path;
use std::thread::{scope, sleep};
use std::time::Duration;

use reuseport_tests::client::{Target, burst, connect};
use reuseport_tests::hostile::{Deed, Stranger, flap};
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::process::{self, tool};
use reuseport_tests::scene::number;
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually, require};
use serde_json::{Value, json};

use crate::scene::Scene;

/// The first and the second CPU that we may use.
fn two_cpus() -> [u32; 2] {
    require::cpus(2);
    [cpus()[0], cpus()[1]]
}

fn here() -> Target {
    Target::plain("127.0.0.1:8080").timeout(Duration::from_secs(3))
}

fn bound(index: u32, cpu: u32) -> Spec {
    Spec { index, cpus: vec![cpu], ..Spec::default() }
}

/// `PID=0`.
fn nothing_for(worker: &Worker) -> String {
    format!("{}=0", worker.pid())
}

fn json(scene: &Scene, verb: &str, more: &[&str]) -> Value {
    scene.cli(verb, &[&["--json"], more].concat()).run().ok().json()
}

/// Cookie and slot of each listener, as `status` tells.
fn seats(scene: &Scene) -> Vec<(Value, Value)> {
    let status = json(scene, "status", &[]);
    let listeners = status[0]["listeners"].as_array().expect("listeners").clone();
    listeners.into_iter().map(|it| (it["cookie"].clone(), it["slot"].clone())).collect()
}

/// Old sockets kept their slots by luck only: a slot that was vacated and taken again made the old
/// table point at the wrong worker.
#[test]
fn a_renewal_that_fails_puts_every_socket_back_into_its_slot() {
    let [one, other] = two_cpus();
    let mut scene = Scene::of(&[one, one, other].map(|cpu| bound(0, cpu)));
    scene.cli("attach", &[]).run().ok();
    // Slot 0 is taken by a later socket than slots 1 and 2.
    scene.workers.remove(0).kill();
    scene.workers.push(Worker::start(&scene.netns, &bound(3, other)));
    let hung = nothing_for(&scene.workers[1]);
    scene.cli("attach", &["--weight", &hung]).run().ok();
    scene.workers[1].freeze();

    let late = Worker::start(&scene.netns, &bound(4, one));
    let _stranger = Stranger::start(&scene.netns, &late, Deed::Map);
    scene.workers.push(late);
    let before = seats(&scene);
    let attach = scene.cli("attach", &["--weight", &hung, "--log-misses"]);
    scene.refuses(&attach, 7, &["another program's socket map"]);
    assert_eq!(seats(&scene), before);
    for (cpu, worker) in [(one, "1"), (other, "3")] {
        burst(&scene.netns, cpu, &here(), 40).assert_local(|_| worker.to_owned());
    }
    scene.workers[1].thaw();
    scene.cli("detach", &[]).run().ok();
}

/// Emptying the whole old map first left its program with nobody to choose, and the kernel's hash
/// with the one that hangs; with two on each CPU, both choices of a row can be out at once.
#[test]
fn renewals_give_nothing_to_a_worker_that_hangs() {
    let [one, other] = two_cpus();
    for cpus in [&[one, one, other] as &[u32], &[one, one, one, other, other]] {
        renews_beside_a_worker_that_hangs(cpus);
    }
}

fn renews_beside_a_worker_that_hangs(workers: &[u32]) {
    let specs: Vec<Spec> = workers.iter().map(|&cpu| bound(0, cpu)).collect();
    let scene = Scene::of(&specs);
    let hung = nothing_for(&scene.workers[0]);
    scene.cli("attach", &["--weight", &hung]).run().ok();
    scene.workers[0].freeze();
    let load = Load::start(&scene.netns, &here(), &cpus(), 2);
    load.advance(50);
    for round in 0..20 {
        let log = if round % 2 == 0 { &["--log-misses"] as &[&str] } else { &[] };
        let report = json(&scene, "attach", &[&["--weight", &hung], log].concat());
        assert_eq!(report[0]["attached"]["in_place"], false, "not renewed: {report:#}");
        load.advance(10);
    }
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    assert!(tally.replies.keys().all(|(_, worker)| worker != "0"), "{tally}");
    scene.workers[0].thaw();
    scene.cli("detach", &[]).run().ok();
}

/// Who waits for the lock plans for what there is when the lock is had, not for what was before.
#[test]
fn a_plan_is_made_under_the_lock() {
    let mut scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    let path = scene.bpffs.base();
    let base = File::open(&path).expect("the pins' directory");
    base.lock().expect("the lock");
    let late = scope(|scope| {
        let attach = scope.spawn(|| json(&scene, "attach", &[]));
        let waits = eventually(Duration::from_secs(4), || is_waited_for(&path));
        assert!(waits, "attach does not wait for the lock");
        let late = Worker::start(&scene.netns, &bound(2, cpus()[0]));
        base.unlock().expect("unlock");
        let report = attach.join().expect("an attach");
        assert_eq!(report[0]["slots"].as_array().map(Vec::len), Some(3), "{report:#}");
        late
    });
    scene.workers.push(late);
    assert!(seats(&scene).iter().all(|(_, slot)| slot.is_number()), "{:?}", seats(&scene));
    scene.cli("detach", &[]).run().ok();
}

/// Whether a child of ours waits for the lock: it has the directory open.
fn is_waited_for(base: &Path) -> bool {
    process::children(std::process::id()).into_iter().any(|child| {
        let open = fs::read_dir(format!("/proc/{child}/fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path == base)
    })
}

/// Pinned for one group, a worker is where it is for the other too.
#[test]
fn pinning_over_two_groups_is_one_decision() {
    let [one, _] = two_cpus();
    let both = Spec { addr: "127.0.0.1,::1", listeners: 2, cpus: cpus(), ..Spec::default() };
    let netns = Netns::new();
    let mut workers = vec![Worker::start(&netns, &Spec { addr: "127.0.0.1", ..bound(9, one) })];
    for index in [10, 20] {
        workers.push(Worker::start(&netns, &Spec { index, ..both.clone() }));
    }
    let scene = Scene { workers, netns, ..Scene::of(&[]) };
    let reports = json(&scene, "attach", &["--pin"]);
    assert_eq!(reports.as_array().map(Vec::len), Some(2), "{reports:#}");
    for address in ["127.0.0.1:8080", "[::1]:8080"] {
        let target = Target::plain(address);
        for cpu in two_cpus() {
            for _ in 0..20 {
                let reply = connect(&scene.netns, cpu, &target).expect("an answer");
                assert_eq!(reply.field("cpu"), i64::from(cpu), "{address} {}", reply.0);
            }
        }
    }
    let status = json(&scene, "status", &[]);
    for group in status.as_array().expect("groups") {
        assert_eq!(group["problems"], json!([]), "{group:#}");
    }
    scene.cli("detach", &[]).run().ok();
}

/// All groups or none: one that is refused late takes those before it back.
#[test]
fn a_group_that_fails_leaves_the_others_as_they_were() {
    let spec = |addr| Spec { addr, ..Spec::default() };
    let scene = Scene::of(&["127.0.0.1", "127.0.0.1", "::1", "::1"].map(spec));
    let states = || -> Vec<(Value, Value)> {
        let groups = json(&scene, "status", &[]);
        let groups = groups.as_array().expect("groups").clone();
        groups.into_iter().map(|it| (it["attached"].clone(), it["steering"].clone())).collect()
    };
    for refused in [2, 0] {
        let _stranger = Stranger::start(&scene.netns, &scene.workers[refused], Deed::Map);
        scene.refuses(&scene.cli("attach", &[]), 7, &["another program's socket map"]);
        for (attached, steering) in states() {
            assert_eq!((attached, steering), (json!({"state": "nothing"}), Value::Null));
        }
    }
    // One that was steered before stays so.
    let _stranger = Stranger::start(&scene.netns, &scene.workers[2], Deed::Map);
    scene.cli("attach", &["--addr", "127.0.0.1"]).run().ok();
    let before = states();
    scene.refuses(&scene.cli("attach", &[]), 7, &["another program's socket map"]);
    let programs = |states: &[(Value, Value)]| -> Vec<_> {
        states.iter().map(|(_, it)| (it["program_id"].clone(), it["in_force"].clone())).collect()
    };
    assert_eq!(programs(&states()), programs(&before));
    scene.cli("detach", &["--addr", "127.0.0.1"]).run().ok();
}

/// On a bpffs that containers share, from one that cannot look into the others.
#[test]
fn pins_of_a_group_that_cannot_be_seen_are_kept() {
    const PORT: u16 = 8126;
    let start = |netns: &Netns| {
        Worker::one_per_cpu(netns, &cpus(), &Spec { port: PORT, ..Spec::default() })
    };
    let mut scene = Scene::of(&[]);
    let there = Netns::new();
    let blind = |verb: &str| {
        let caps = ["bpf", "sys_ptrace", "perfmon", "dac_read_search"];
        scene.cli_at(PORT, verb, &[]).netns(&there).capabilities(&caps).run().ok()
    };
    let first = start(&scene.netns);
    let attach = || scene.cli_at(PORT, "attach", &["--json"]).run().ok().json();
    let program = number(&attach()[0]["attached"]["program_id"]);
    let pins = scene.bpffs.pins();
    assert_eq!(pins.len(), 1, "{pins:?}");
    // All replaced, one after the other: the program lives, nobody sits in its map.
    let second = start(&scene.netns);
    drop(first);
    blind("detach");
    assert_eq!(scene.bpffs.pins(), pins, "after detach where nobody listens");
    let workers = start(&there);
    blind("attach");
    assert!(scene.bpffs.pins().contains(&pins[0]), "after attach: {:?}", scene.bpffs.pins());
    blind("detach");
    assert_eq!(scene.bpffs.pins(), pins, "after detach");
    let again = attach();
    assert_eq!(number(&again[0]["attached"]["program_id"]), program, "{again:#}");
    drop(workers);

    // Another version's pins do not tell whose they are: the group may live elsewhere.
    set_abi(&scene.bpffs.base().join(&pins[0]), 0x7f);
    blind("detach");
    scene.cli_at(PORT, "detach", &[]).netns(&there).run().ok();
    assert_eq!(scene.bpffs.pins(), pins, "another version's");
    scene.cli_at(PORT, "attach", &[]).run().ok();
    scene.cli_at(PORT, "detach", &[]).run().ok();
    scene.workers = second;
}

/// Makes pins say that they are of another ABI.
pub(crate) fn set_abi(pins: &Path, abi: u8) {
    let config = pins.join("CONFIG");
    let config = config.to_str().expect("a path of ours is text");
    let dump = tool("bpftool", &["-j", "map", "dump", "pinned", config]);
    let dump: Value = serde_json::from_str(&dump).expect("JSON of bpftool");
    let mut bytes: Vec<String> = dump[0]["value"]
        .as_array()
        .expect("bytes")
        .iter()
        .map(|byte| byte.as_str().map_or_else(|| byte.to_string(), str::to_owned))
        .collect();
    bytes[0] = abi.to_string();
    let head = ["map", "update", "pinned", config, "key", "0", "0", "0", "0", "value"];
    let all: Vec<&str> = head.into_iter().chain(bytes.iter().map(String::as_str)).collect();
    tool("bpftool", &all);
}

/// A listener that is down at the very moment is as good as one that went away.
#[test]
fn listeners_that_shut_down_and_listen_again() {
    let scene = Scene::of(&vec![Spec::default(); 4]);
    let _flapping = [2, 3].map(|index: usize| flap(&scene.netns, &scene.workers[index]));
    for round in 0..30 {
        let log = if round % 2 == 0 { &["--log-misses"] as &[&str] } else { &[] };
        scene.cli("attach", log).run().ok();
    }
    scene.cli("detach", &[]).run().ok();
}

/// A group that died and came back is another one to its counters.
#[test]
fn a_restart_of_the_whole_group_begins_to_count_anew() {
    let mut scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    let steering = || json(&scene, "status", &[])[0]["steering"].clone();
    scene.steered();
    let before = steering();
    let sum = |steering: &Value| -> u64 {
        steering["counters"].as_object().expect("counters").values().filter_map(Value::as_u64).sum()
    };
    assert!(sum(&before) > 0, "{before:#}");
    scene.workers = Vec::new();
    // The time is told in seconds.
    sleep(Duration::from_millis(1100));
    let specs = cpus().into_iter().zip(0..).map(|(cpu, index)| bound(index, cpu));
    scene.workers = specs.map(|spec| Worker::start(&scene.netns, &spec)).collect();
    scene.cli("attach", &[]).run().ok();
    let after = json(&scene, "status", &[])[0]["steering"].clone();
    assert_eq!(sum(&after), 0, "{after:#}");
    assert!(number(&after["attached_at"]) > number(&before["attached_at"]), "{after:#}");
    scene.steered();
    scene.cli("detach", &[]).run().ok();
}

/// Who lacks the power to see what is attached is told so each time.
#[test]
fn what_could_not_be_verified_is_said() {
    let scene = Scene::new();
    let attach = || scene.cli("attach", &[]).capabilities(&["bpf", "sys_ptrace"]).run().ok().stdout;
    let first = attach();
    assert!(first.contains("could not be seen whether another program was attached"), "{first}");
    let again = attach();
    assert!(again.contains("could not be verified that program"), "{again}");
    scene.steered();
    let sighted = scene.cli("attach", &[]).run().ok().stdout;
    assert!(!sighted.contains("could not be"), "{sighted}");
    scene.cli("detach", &[]).run().ok();
}
