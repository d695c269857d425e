//! What changes between the look and the grasp: workers that exit, descriptors that come to mean
//! another file, and an `attach` that is stopped while it holds a listener.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use reuseport_tests::binary;
use reuseport_tests::client::{Failure, Target, connect};
use reuseport_tests::cpus;
use reuseport_tests::eventually;
use reuseport_tests::hostile::reuse_descriptor;
use reuseport_tests::netns::Netns;
use reuseport_tests::process::{Reaped, tool};
use reuseport_tests::sys::Become;
use reuseport_tests::worker::{Spec, Worker};
use serde_json::Value;

use crate::scene::Scene;

/// Workers come and go as fast as they start, while `attach` is run again and again.
#[test]
fn workers_that_exit_between_scan_and_grasp() {
    let mut scene = Scene::new();
    let stop = AtomicBool::new(false);
    let mut codes = Vec::new();
    let mut said = Vec::new();
    thread::scope(|scope| {
        let netns = &scene.netns;
        scope.spawn(|| {
            // A thread of its own for each child's life: children end with their thread.
            while !stop.load(Relaxed) {
                let spec = Spec { index: 9, cpus: cpus(), listeners: 4, ..Spec::default() };
                let mut worker = Worker::start(netns, &spec);
                sleep(Duration::from_millis(5));
                worker.kill();
            }
        });
        for _ in 0..25 {
            let outcome = scene.cli("attach", &[]).run();
            // Whoever went away is left out; what is said is said clearly.
            let clean = outcome.code == Some(0)
                || (outcome.code == Some(3) && outcome.stderr.contains("run the command again"))
                // Seen on its way out: nobody serves what it still holds.
                || (outcome.code == Some(4) && outcome.stderr.contains("it cannot be seen who"));
            assert!(clean, "{outcome}");
            codes.push(outcome.code.unwrap_or(-1));
            said.push(outcome.stderr);
        }
        stop.store(true, Relaxed);
    });
    let done = codes.iter().filter(|&&code| code == 0).count();
    assert!(done * 2 > codes.len(), "attach mostly failed: {codes:?} {said:#?}");
    scene.cli("attach", &[]).run().ok();
    scene.steered();
    scene.cli("detach", &[]).run().ok();
    scene.hashed();
    scene.workers.clear();
}

/// One descriptor number that is a listener of the group, another group's listener, and a file in
/// turn: only sockets of the group ever sit in the map.
#[test]
fn a_descriptor_that_is_reused() {
    let scene = Scene::new();
    let flapping = reuse_descriptor(&scene.netns, 8080);
    let mut done = 0;
    for _ in 0..25 {
        let outcome = scene.cli("attach", &[]).run();
        let clean = outcome.code == Some(0)
            || (outcome.code == Some(3) && outcome.stderr.contains("run the command again"))
            || (outcome.code == Some(4) && outcome.stderr.contains("it cannot be seen who"));
        assert!(clean, "{outcome}");
        if outcome.code == Some(0) {
            done += 1;
            flapping.signal(libc::SIGSTOP);
            let strangers: Vec<_> =
                seated(&scene).difference(&listening(&scene)).copied().collect();
            flapping.signal(libc::SIGCONT);
            assert!(strangers.is_empty(), "not of the group, but in the map: {strangers:x?}");
        }
    }
    assert!(done > 0, "attach never worked");
    drop(flapping);
    scene.cli("attach", &[]).run().ok();
    scene.steered();
    scene.cli("detach", &[]).run().ok();
    scene.hashed();
}

/// Cookies in the pinned map, as the kernel gives them.
fn seated(scene: &Scene) -> BTreeSet<u64> {
    let pins = scene.bpffs.pins();
    let map = scene.bpffs.base().join(&pins[0]).join("SOCKETS");
    let map = map.to_str().expect("a path of ours is text").to_owned();
    let dump: Value =
        serde_json::from_str(&tool("bpftool", &["-j", "map", "dump", "pinned", &map]))
            .expect("bpftool's JSON");
    let entries = dump.as_array().expect("a list of entries");
    let value = |entry: &Value| -> Option<u64> {
        let bytes = entry["value"].as_array()?.iter().rev();
        let hex = bytes.map(|byte| byte.as_str().unwrap_or("").replace("0x", ""));
        u64::from_str_radix(&hex.collect::<String>(), 16).ok()
    };
    entries.iter().filter_map(value).filter(|&cookie| cookie != 0).collect()
}

/// Cookies of the sockets that listen on the port, as `ss` tells them.
fn listening(scene: &Scene) -> BTreeSet<u64> {
    let text = scene.netns.run("ss", &["-Htlne", "sport = :8080"]);
    let cookies = text.split_whitespace().filter_map(|word| word.strip_prefix("sk:"));
    cookies.map(|hex| u64::from_str_radix(hex, 16).expect("a cookie")).collect()
}

/// An `attach` that was started and may be stopped.
fn start(scene: &Scene) -> Reaped {
    let mut command = scene.netns.command_as(binary::path(), Become::default());
    command.args(["attach", "--port", "8080", "--netns", "/proc/self/ns/net", "--bpffs"]);
    command.arg(scene.bpffs.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Reaped(command.spawn().expect("start attach"))
}

/// Sockets of `worker`'s listeners, as `/proc/PID/fd` shows them.
fn listeners(worker: &Worker) -> BTreeSet<String> {
    let link = |fd| fs::read_link(format!("/proc/{}/fd/{fd}", worker.pid()));
    let links = worker.fds().into_iter().map(|fd| link(fd).expect("the worker's listener"));
    links.map(|link| link.display().to_string()).collect()
}

/// How many of `sockets` process `pid` has open.
fn held(pid: u32, sockets: &BTreeSet<String>) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|file| sockets.contains(&file.display().to_string()))
        .count()
}

fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn connected(netns: &Netns) -> Result<(), Failure> {
    let target = Target::plain("127.0.0.1:8080").timeout(Duration::from_secs(2));
    connect(netns, cpus()[0], &target).map(drop)
}

/// Stopped at any instant, `attach` mostly holds no listener; and when it is killed then, the dead
/// workers' port refuses instead of letting clients hang.
#[test]
fn an_attach_that_is_stopped_holds_nothing() {
    let mut scene = Scene::new();
    let sockets: BTreeSet<_> = scene.workers.iter().flat_map(listeners).collect();
    assert_eq!(held(scene.workers[0].pid(), &sockets), 1, "the look sees nothing");
    let began = Instant::now();
    start(&scene).wait(Duration::from_secs(30)).expect("attach ends");
    let whole = began.elapsed().as_micros() as u64;
    scene.cli("detach", &[]).run().ok();
    let (mut stopped, mut holding, mut most) = (0, 0, 0);
    for round in 0..60_u64 {
        let mut attach = start(&scene);
        // Spread over a whole run, in an order that has nothing to do with it.
        sleep(Duration::from_micros(whole * (round * 37 % 60) / 60));
        attach.signal(libc::SIGSTOP);
        let is_stopped = eventually(Duration::from_secs(5), || {
            matches!(state(attach.pid()), Some('T' | 'Z') | None)
        });
        assert!(is_stopped, "attach does not stop");
        if state(attach.pid()) == Some('T') {
            stopped += 1;
            let count = held(attach.pid(), &sockets);
            holding += usize::from(count > 0);
            most = most.max(count);
        }
        // Half of them are killed there, the others go on.
        if round % 2 == 0 {
            attach.kill();
        } else {
            attach.signal(libc::SIGCONT);
            let ended = attach.wait(Duration::from_secs(30)).expect("attach ends");
            assert!(ended.success(), "after SIGCONT: {ended:?}");
        }
    }
    assert!(stopped >= 20, "attach was too fast to be stopped: {stopped} of 60");
    assert!(holding * 10 <= stopped, "held a listener {holding} times of {stopped}");
    assert!(most <= 1, "held {most} listeners at once");
    // Whatever the killed ones left is put right by the next.
    scene.cli("attach", &[]).run().ok();
    assert_eq!(scene.bpffs.pins().len(), 1, "{:?}", scene.bpffs.pins());
    scene.steered();

    let mut attach = start(&scene);
    sleep(Duration::from_millis(10));
    attach.signal(libc::SIGSTOP);
    attach.kill();
    for worker in &mut scene.workers {
        worker.kill();
    }
    assert_eq!(connected(&scene.netns), Err(Failure::Refused));
    scene.cli("detach", &[]).run().ok();
    assert!(scene.bpffs.pins().is_empty());
}

/// A process that has the dead worker's id, and a listener of another group where the worker had its.
fn impostor(scene: &Scene, pid: u32) -> Option<Worker> {
    for _ in 0..100 {
        // The next process gets the next id, unless another on this machine is faster.
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("set the last id");
        let worker = Worker::start(&scene.netns, &Spec { port: 8081, ..Spec::default() });
        if worker.pid() == pid {
            return Some(worker);
        }
    }
    None
}

/// The worker that was seen is gone when its listener is to be taken, and its id is another's.
#[test]
fn a_process_id_that_comes_to_mean_another() {
    let mut scene = Scene::new();
    let began = Instant::now();
    start(&scene).wait(Duration::from_secs(30)).expect("attach ends");
    let whole = began.elapsed().as_micros() as u64;
    let (mut stopped, mut replaced) = (0, 0);
    for round in 0..20_u64 {
        // Everybody is to be taken anew.
        scene.cli("detach", &[]).run().ok();
        let mut attach = start(&scene);
        sleep(Duration::from_micros(whole * (round * 7 % 20) / 20));
        attach.signal(libc::SIGSTOP);
        let is_stopped = eventually(Duration::from_secs(5), || {
            matches!(state(attach.pid()), Some('T' | 'Z') | None)
        });
        assert!(is_stopped, "attach does not stop");
        stopped += u32::from(state(attach.pid()) == Some('T'));
        let pid = scene.workers[1].pid();
        scene.workers[1].kill();
        let impostor = impostor(&scene, pid);
        replaced += u32::from(impostor.is_some());
        attach.signal(libc::SIGCONT);
        let ended = attach.wait(Duration::from_secs(30)).expect("attach ends");
        // Of a group of one there is nothing to steer, and one that is on its way out is nobody's.
        assert!(matches!(ended.code(), Some(0 | 3 | 4)), "round {round}: {ended:?}");
        if scene.bpffs.pins().iter().any(|pin| pin.starts_with("tcp")) {
            let strangers: Vec<_> =
                seated(&scene).difference(&listening(&scene)).copied().collect();
            assert!(strangers.is_empty(), "not of the group, but in the map: {strangers:x?}");
        }
        drop(impostor);
        let spec = Spec { index: 1, cpus: vec![cpus()[1 % cpus().len()]], ..Spec::default() };
        scene.workers[1] = Worker::start(&scene.netns, &spec);
    }
    assert!(stopped >= 5 && replaced >= 5, "{stopped} stopped, {replaced} replaced");
    scene.cli("attach", &[]).run().ok();
    scene.steered();
}

/// System calls that never wait for anybody.
const SWIFT: [&str; 12] = [
    "fcntl",
    "close",
    "getsockopt",
    "setsockopt",
    "getsockname",
    "getpeername",
    "bpf",
    "mmap",
    "munmap",
    "mremap",
    "brk",
    "madvise",
];

/// While a duplicate is held, a worker that dies leaves its clients hanging: nothing that could wait
/// is done meanwhile, neither by `attach` nor by the agent that takes a newcomer.
#[test]
fn nothing_waits_while_a_listener_is_held() {
    let mut scene = Scene::new();
    let traced = |verb: &str| {
        let trace = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut strace = scene.netns.command("strace");
        strace.args(["-f", "-o"]).arg(trace.path()).arg(binary::path());
        strace.args([verb, "--port", "8080", "--netns", "/proc/self/ns/net", "--bpffs"]);
        strace.arg(scene.bpffs.path());
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        (Reaped(strace.spawn().expect("start strace")), trace)
    };
    let (mut attach, trace) = traced("attach");
    attach.wait(Duration::from_mins(1)).expect("attach ends");
    let held = |trace: &tempfile::NamedTempFile| {
        while_held(&fs::read_to_string(trace.path()).expect("a trace"))
    };
    assert!(held(&trace) >= 2, "the trace does not show that listeners are taken");
    scene.cli("detach", &[]).run().ok();

    let (mut strace, trace) = traced("agent");
    let taken = |more: usize| {
        let taken = eventually(Duration::from_mins(1), || held(&trace) >= more);
        assert!(taken, "{} listeners were taken", held(&trace));
        held(&trace)
    };
    let before = taken(2);
    let late = Spec { index: 2, cpus: cpus(), ..Spec::default() };
    let late = Worker::start(&scene.netns, &late);
    taken(before + 1);
    // What strace started ends with it.
    for pid in reuseport_tests::process::children(strace.pid()) {
        reuseport_tests::sys::kill(pid, libc::SIGTERM).expect("end the agent");
    }
    strace.wait(Duration::from_mins(1)).expect("the agent ends");
    scene.workers.push(late);
    scene.cli("detach", &[]).run().ok();
}

/// How many listeners were taken and closed by a trace, none with anything between that waits.
fn while_held(trace: &str) -> usize {
    // The descriptor that each thread holds.
    let mut held: BTreeMap<&str, &str> = BTreeMap::new();
    let mut done = 0;
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let name = call.strip_prefix("<... ").unwrap_or(call);
        let name = name.split([' ', '(']).next().unwrap_or_default();
        if name == "pidfd_getfd" {
            let result = call.rsplit_once(" = ").map(|(_, result)| result);
            if let Some(fd) = result.filter(|result| result.parse::<u32>().is_ok()) {
                held.insert(thread, fd);
            }
        } else if let Some(fd) = held.get(thread) {
            assert!(SWIFT.contains(&name), "with a listener in hand: {line}");
            let closed = call.strip_prefix("close(").and_then(|it| it.split([')', ' ']).next());
            if closed == Some(fd) {
                held.remove(thread);
                done += 1;
            }
        }
    }
    done
}
