//! `trace`, over groups whose behaviour is known.

use std::thread::{scope, sleep};
use std::time::Duration;

use reuseport_tests::binary;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::leak::Baseline;
use reuseport_tests::process::must;
use reuseport_tests::terminal::Terminal;
use reuseport_tests::tracer::Tracer;
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually, require};
use serde_json::Value;

use crate::scene::{Scene, refused};

mod drops;
mod fast_open;
mod shown;

const PAUSE: Duration = Duration::from_millis(300);

fn start(scene: &Scene, args: &[&str]) -> Tracer {
    Tracer::start(&scene.netns, 8080, args)
}

fn connect(scene: &Scene, cpu: u32, count: u32) {
    connect_to(scene, "127.0.0.1:8080", cpu, count);
}

fn connect_to(scene: &Scene, address: &str, cpu: u32, count: u32) {
    let tally = burst(&scene.netns, cpu, &Target::plain(address), count);
    assert_eq!((tally.answered(), tally.failed()), (u64::from(count), 0), "{tally}");
}

/// Waits until so many connections wait for the one worker.
fn wait_for_queue(scene: &Scene, connections: u32) {
    let mut last = String::new();
    let reached = eventually(Duration::from_secs(20), || {
        last = must(scene.netns.command("ss").args(["-Hltn", "sport = :8080"]));
        last.split_whitespace().nth(1) == Some(&connections.to_string())
    });
    assert!(reached, "{last}");
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// Asserts that every one of so many connections was seen come and go, and nothing else.
fn assert_all(summary: &Value, connections: u32) {
    let total = &summary["total"];
    assert_eq!(
        (&total["accepted"], &summary["queued"]),
        (&connections.into(), &connections.into())
    );
    assert_eq!(total["unseen"], 0, "{summary:#}");
    let locality = total["locality"].as_object().expect("an object");
    let sum: u64 = locality.values().map(|it| it.as_u64().expect("a number")).sum();
    assert_eq!(sum, u64::from(connections), "{summary:#}");
    for (what, lost) in summary["lost"].as_object().expect("an object") {
        assert_eq!(*lost, 0, "{what}: {summary:#}");
    }
}

#[test]
fn steered_connections_stay_on_their_cpu() {
    require::cpus(2);
    let scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    let tracer = start(&scene, &["--json"]);
    for cpu in cpus() {
        connect(&scene, cpu, 40);
    }
    let summary = tracer.stop().json();
    let all = 40 * cpus().len() as u32;
    assert_all(&summary, all);
    assert_eq!(summary["total"]["locality"]["same"], all, "{summary:#}");
    let group = &summary["groups"][0];
    assert_eq!(group["group"]["address"], "0.0.0.0:8080");
    for (worker, (place, &cpu)) in scene.workers.iter().zip(cpus().iter().enumerate()) {
        let listener = &group["listeners"][place];
        assert_eq!(listener["cookie"], worker.cookies()[0], "{summary:#}");
        assert_eq!((&listener["accepted"], &listener["dropped"]), (&40.into(), &0.into()));
        let pair = serde_json::json!([{"received": cpu, "accepted": cpu, "connections": 40}]);
        assert_eq!(listener["pairs"], pair, "{summary:#}");
        let on_cpu = &summary["cpus"][place];
        assert_eq!((&on_cpu["received"], &on_cpu["accepted"]), (&40.into(), &40.into()));
    }
    // Times of this world: something between a microsecond and a second.
    for what in ["wait", "handshake"] {
        let times = &summary["total"][what];
        let [p50, p90, p99, max] =
            ["p50_us", "p90_us", "p99_us", "max_us"].map(|name| number(&times[name]));
        assert!(0.5 < p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{summary:#}");
    }
}

#[test]
fn the_hash_sends_half_of_them_elsewhere() {
    require::cpus(2);
    let scene = Scene::new();
    let tracer = start(&scene, &["--json"]);
    for cpu in cpus() {
        connect(&scene, cpu, 200);
    }
    let summary = tracer.stop().json();
    let all = 200 * cpus().len() as u32;
    assert_all(&summary, all);
    let same = number(&summary["total"]["locality"]["same"]) / f64::from(all);
    let fair = 1.0 / scene.workers.len() as f64;
    assert!((same - fair).abs() < 0.15, "{same} on one CPU: {summary:#}");
}

/// While the worker is stopped, connections wait for it.
#[test]
fn a_worker_that_stands_still_is_seen_in_the_waits() {
    let scene = Scene::of(&[Spec::default()]);
    let tracer = start(&scene, &["--json"]);
    connect(&scene, cpus()[0], 5);
    scene.workers[0].freeze();
    scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| connect(&scene, cpus()[0], 1));
        }
        wait_for_queue(&scene, 3);
        sleep(PAUSE);
        scene.workers[0].thaw();
    });
    let summary = tracer.stop().json();
    assert_all(&summary, 8);
    let wait = &summary["total"]["wait"];
    let least = PAUSE.as_micros() as f64;
    assert!(number(&wait["p90_us"]) >= least && number(&wait["max_us"]) >= least, "{summary:#}");
    assert!(number(&wait["p50_us"]) < least, "{summary:#}");
    let listener = &summary["groups"][0]["listeners"][0];
    assert_eq!(listener["deepest_queue"], 3, "{summary:#}");
}

#[test]
fn every_connection_is_a_line() {
    require::cpus(2);
    let scene = Scene::of(&[
        Spec { addr: "::", ..Spec::default() },
        Spec { addr: "::", ..Spec::default() },
    ]);
    let tracer = start(&scene, &["--events", "--json"]);
    connect_to(&scene, "127.0.0.1:8080", cpus()[0], 50);
    connect_to(&scene, "[::1]:8080", cpus()[1], 50);
    let mut lines = tracer.stop().lines();
    let last = lines.pop().expect("a summary");
    assert_all(&last["summary"], 100);
    assert_eq!(lines.len(), 100, "{lines:#?}");
    let mut ports = std::collections::BTreeSet::new();
    for line in &lines {
        let client: std::net::SocketAddr =
            line["client"].as_str().expect("a text").parse().unwrap();
        let from = if client.is_ipv4() { cpus()[0] } else { cpus()[1] };
        assert!(client.ip().is_loopback() && ports.insert(client), "{line}");
        assert_eq!(line["received"], from, "{line}");
        let worker = scene.workers.iter().find(|it| line["pid"] == it.pid()).expect("a worker");
        assert_eq!(line["listener"], worker.cookies()[0], "{line}");
        assert_eq!(line["tid"], worker.tids()[0], "{line}");
        assert_eq!(line["server"], "[::]:8080", "{line}");
        assert_eq!(line["distance"] == "same", line["received"] == line["accepted"], "{line}");
        assert!(number(&line["wait_us"]) > 0.0 && number(&line["handshake_us"]) > 0.0, "{line}");
        assert!(number(&line["time"]) > 1.6e9 && number(&line["depth"]) >= 1.0, "{line}");
    }
    assert!(lines.is_sorted_by(|a, b| number(&a["time"]) <= number(&b["time"]) + 1e-3));

    // Without --json the lines are all there is on standard output.
    let tracer = start(&scene, &["--events"]);
    connect(&scene, cpus()[0], 3);
    let traced = tracer.stop();
    assert_eq!(traced.lines().len(), 3);
    assert!(traced.stderr.contains("3 connections in"), "{traced:?}");
}

#[test]
fn what_waited_before_and_who_comes_later() {
    let mut scene = Scene::of(&[Spec::default()]);
    scene.workers[0].freeze();
    scope(|threads| {
        threads.spawn(|| connect(&scene, cpus()[0], 1));
        wait_for_queue(&scene, 1);
        let tracer = start(&scene, &["--json"]);
        scene.workers[0].thaw();
        wait_for_queue(&scene, 0);
        sleep(PAUSE);
        let summary = tracer.stop().json();
        assert_eq!((&summary["total"]["accepted"], &summary["queued"]), (&1.into(), &0.into()));
        assert_eq!(summary["total"]["unseen"], 1, "{summary:#}");
    });

    let mut tracer = start(&scene, &["--interval", "100ms"]);
    let more = Worker::start(&scene.netns, &Spec { index: 1, ..Spec::default() });
    let pid = more.pid().to_string();
    scene.workers.push(more);
    let seen = eventually(Duration::from_secs(20), || tracer.so_far().contains(&pid));
    assert!(seen, "{}", tracer.so_far());
    connect(&scene, cpus()[0], 60);
    let traced = tracer.stop();
    let (_, end) = traced.stdout.rsplit_once("\n\n").expect("a table at the end");
    assert!(end.contains("60 connections in") && end.contains(&pid), "{traced:?}");
    assert!(!end.contains('!'), "{traced:?}");
}

/// Sixteen are traced at most where there was one; the others are told of.
#[test]
fn who_finds_no_room_is_told() {
    let mut scene = Scene::of(&[Spec::default()]);
    let mut tracer = start(&scene, &["--interval", "100ms"]);
    let more = Spec { index: 1, listeners: 17, ..Spec::default() };
    scene.workers.push(Worker::start(&scene.netns, &more));
    let says = "no room for 2 listeners: their connections are not counted";
    let said = eventually(Duration::from_secs(20), || tracer.so_far().contains(says));
    assert!(said, "{}", tracer.so_far());
    let traced = tracer.stop();
    assert!(traced.stdout.trim_end().ends_with("start trace again"), "{traced:?}");
}

/// Their places are given to others, and nobody gets what another one counted.
#[test]
fn a_server_that_restarts_often_is_traced_all_the_same() {
    let mut scene = Scene::of(&[Spec::default()]);
    let mut tracer = start(&scene, &["--interval", "100ms"]);
    let mut counted = std::collections::BTreeMap::new();
    for round in 1..=4 {
        // With the first worker's all that there is room for.
        let spec = Spec { index: round, listeners: 15, ..Spec::default() };
        let worker = Worker::start(&scene.netns, &spec);
        let pid = worker.pid().to_string();
        scene.workers.push(worker);
        let seen = eventually(Duration::from_secs(20), || {
            // All of them: in the last table each has a line.
            let text = tracer.so_far();
            text.rsplit("\n\n").any(|table| table.matches(&format!(" {pid} ")).count() == 15)
        });
        assert!(seen, "{}", tracer.so_far());
        let count = 40 * round;
        connect(&scene, cpus()[0], count);
        counted.insert(pid, count);
        scene.workers.pop().expect("a worker").kill();
    }
    let traced = tracer.stop();
    assert!(!traced.stdout.contains("no room"), "{traced:?}");
    let (_, end) = traced.stdout.rsplit_once("\n\n").expect("a table at the end");
    assert!(end.contains(&format!("{} connections in", 40 + 80 + 120 + 160)), "{end}");
    // What the first worker got is in every round; the others' have theirs and no more.
    let accepted = |of: &str| -> u32 {
        let lines = end.lines().filter(|line| line.contains(&format!(" {of} ")));
        let cell = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            words[3].parse::<u32>().unwrap_or_else(|_| panic!("{line}"))
        };
        lines.map(cell).sum()
    };
    let first = accepted(&scene.workers[0].pid().to_string());
    let others: u32 = counted.keys().map(|pid| accepted(pid)).sum();
    assert_eq!(first + others, 400, "{end}");
    for (pid, count) in &counted {
        let own = accepted(pid);
        assert!(own <= *count && own * 2 > *count, "{pid}: {own} of {count}\n{end}");
    }
    assert!(!end.contains('!'), "{end}");
}

/// A reading may take longer than that.
#[test]
fn the_shortest_interval_ends_too() {
    let scene = Scene::of(&[Spec::default()]);
    let tracer = start(&scene, &["--duration", "300ms", "--interval", "1ms"]);
    assert_eq!(tracer.end().code, Some(0));
}

#[test]
fn live_on_a_terminal() {
    let scene = Scene::of(&[Spec::default()]);
    let mut command = scene.netns.command(binary::path());
    command.args(["trace", "--port", "8080", "--netns", "/proc/self/ns/net"]);
    command.args(["--interval", "200ms"]).env("TERM", "xterm-256color");
    let mut terminal = Terminal::start(command, (24, 150));
    terminal.shows("SAME CPU");
    connect(&scene, cpus()[0], 7);
    terminal.shows("tcp 0.0.0.0:8080: 7 connections in");
    terminal.keys("q");
    let status = terminal.given_back();
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[test]
fn what_cannot_be_traced_is_refused() {
    let scene = Scene::of(&[Spec::default()]);
    let here = ["--netns", "/proc/self/ns/net"];
    let cli = |args: &[&str]| {
        let args = ["trace"].into_iter().chain(args.iter().copied()).chain(here);
        binary::Cli::new(args).netns(&scene.netns)
    };
    refused(&cli(&["--port", "8081"]), 3, &["8081"]);
    refused(&cli(&["--port", "8080", "--addr", "127.0.0.9"]), 3, &["127.0.0.9"]);
    refused(&cli(&["--port", "8080", "--udp"]), 2, &["TCP listeners only", "--udp"]);
    for missing in ["bpf", "perfmon"] {
        let rest: Vec<_> =
            ["bpf", "perfmon", "sys_ptrace"].into_iter().filter(|&it| it != missing).collect();
        let name = format!("CAP_{} is missing", missing.to_uppercase());
        refused(&cli(&["--port", "8080"]).capabilities(&rest), 5, &[&name]);
    }
    for wrong in [&["--port", "0"][..], &["--port", "8080", "--duration", "0s"], &[]] {
        cli(wrong).run().fails(2);
    }
}

#[test]
fn nothing_is_left_behind() {
    for killed in [false, true] {
        let before = Baseline::take();
        {
            let scene = Scene::of(&[Spec::default()]);
            let tracer = start(&scene, &["--events"]);
            connect(&scene, cpus()[0], 5);
            if killed {
                tracer.kill();
            } else {
                assert_eq!(tracer.stop().lines().len(), 5);
            }
            connect(&scene, cpus()[0], 5);
        }
        before.assert_same();
    }
}

#[test]
fn it_ends_after_its_time() {
    let scene = Scene::of(&[Spec::default()]);
    let tracer = start(&scene, &["--duration", "500ms", "--interval", "100ms"]);
    connect(&scene, cpus()[0], 5);
    let traced = tracer.end();
    assert_eq!(traced.code, Some(0), "{traced:?}");
    let (tables, end) = traced.stdout.rsplit_once("\n\n").expect("a table at the end");
    assert!(end.contains("5 connections in 0.") && tables.contains("connection"), "{traced:?}");
}
