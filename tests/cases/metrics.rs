//! Metrics, read by `promtool` and compared with what was sent; by an agent, also while others
//! pester it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::binary::Cli;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::metrics::Metrics;
use reuseport_tests::tracer::Tracer;
use reuseport_tests::traffic::{Pace, Plan, Traffic};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually, require};

use crate::scene::Scene;

const PATIENCE: Duration = Duration::from_mins(1);

fn connect(scene: &Scene, cpu: u32, count: u32) {
    let tally = burst(&scene.netns, cpu, &Target::plain("127.0.0.1:8080"), count);
    assert_eq!((tally.answered(), tally.failed()), (u64::from(count), 0), "{tally}");
}

fn metrics(scene: &Scene) -> Metrics {
    Metrics::of(&scene.cli("metrics", &[]).run().ok().stdout)
}

#[test]
fn they_say_what_came_and_where_it_went() {
    require::cpus(2);
    let scene = Scene::new();
    let unsteered = metrics(&scene);
    assert_eq!(unsteered.value("groups", &[("state", "unsteered")]), 1);
    assert_eq!(unsteered.value("listeners", &[("seated", "false")]), 2);
    assert_eq!(unsteered.find("slots", &[]), None);

    scene.cli("attach", &[]).run().ok();
    for (cpu, count) in cpus().into_iter().zip([30, 12]) {
        connect(&scene, cpu, count);
    }
    let told = metrics(&scene);
    let group = [("group", "tcp 0.0.0.0:8080"), ("port", "8080")];
    assert_eq!(told.value("steered", &group), 1);
    assert_eq!(told.value("groups", &[("state", "steered")]), 1);
    assert_eq!(told.value("listeners", &[("seated", "true")]), 2);
    assert_eq!(told.value("problems", &group), 0);
    assert_eq!(told.value("foreign_program", &group), 0);
    for (place, (cpu, count)) in cpus().into_iter().zip([30, 12]).enumerate() {
        let worker = format!("steer-test-work {}", scene.workers[place].pid());
        let info = told.all("worker_info", &[("worker", &worker), ("cpus", &cpu.to_string())]);
        assert_eq!(info.len(), 1, "{told:#?}");
        let slot = [("slot", info[0].0["slot"].as_str())];
        let first = [("path", "first"), slot[0]];
        assert_eq!(told.value("selections_total", &first), count);
        assert_eq!(told.value("local_selections_total", &slot), count);
        assert_eq!(told.value("accept_queue_length", &slot), 0);
        assert!(told.value("accept_queue_limit", &slot) >= 1);
    }
    for path in ["second", "spilled", "migrated"] {
        assert_eq!(told.sum("selections_total", &[("path", path)]), 0, "{path}");
    }
    assert_eq!(told.sum("misses_total", &[]), 0);
    assert_eq!(told.all("misses_total", &[]).len(), 4);
    // Without an agent there is nothing to tell of one.
    assert_eq!(told.find("agent_ticks_total", &[]), None);
}

#[test]
fn a_dead_worker_is_a_second_choice_and_its_slot_begins_anew() {
    require::cpus(2);
    let mut scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    let (first, second) = (cpus()[0], cpus()[1]);
    connect(&scene, second, 20);
    scene.workers[1].kill();
    connect(&scene, second, 5);
    let told = metrics(&scene);
    assert_eq!(told.sum("selections_total", &[("path", "second")]), 5);
    assert_eq!(told.sum("selections_total", &[("path", "first")]), 20, "its slot still tells");
    assert!(told.value("problems", &[]) >= 1);
    let spec = Spec { index: 1, cpus: vec![second], ..Spec::default() };
    scene.workers[1] = Worker::start(&scene.netns, &spec);
    scene.cli("attach", &[]).run().ok();
    connect(&scene, second, 3);
    connect(&scene, first, 4);
    let told = metrics(&scene);
    let worker = format!("steer-test-work {}", scene.workers[1].pid());
    let info = told.all("worker_info", &[("worker", &worker)]);
    let slot = info[0].0["slot"].as_str();
    assert_eq!(told.value("selections_total", &[("path", "first"), ("slot", slot)]), 3);
}

#[test]
fn a_lower_rung_is_told_as_what_it_is() {
    require::cpus(2);
    let scene = Scene::new();
    scene.cli("attach", &["--rung", "incoming-cpu"]).run().ok();
    let told = metrics(&scene);
    assert_eq!(told.value("groups", &[("state", "steered")]), 1);
    assert_eq!(told.value("steered", &[]), 1);
    for (rung, is) in [("ebpf", 0), ("incoming-cpu", 1), ("classic-bpf", 0), ("hash", 0)] {
        assert_eq!(told.value("rung", &[("rung", rung)]), is, "{rung}");
    }
    // It has no slots and counts nothing; queues are the listeners' own.
    assert_eq!(told.find("slots", &[]), None);
    assert_eq!(told.all("selections_total", &[]), []);
    assert_eq!(told.all("accept_queue_length", &[]).len(), 2);
    let frame = scene.cli("top", &["--once", "--interval", "100ms"]).run().ok().stdout;
    assert!(frame.contains("\n  rung incoming-cpu: "), "{frame}");
    scene.cli("detach", &[]).run().ok();
    let told = metrics(&scene);
    assert_eq!(told.value("rung", &[("rung", "hash")]), 1);
    assert_eq!(told.value("steered", &[]), 0);
}

#[test]
fn a_file_for_the_textfile_collector_is_replaced_whole() {
    let scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("reuseport-steer.prom");
    fs::write(&file, "old").expect("write a file");
    let path = file.to_str().expect("a path of ours is text");
    let outcome = scene.cli("metrics", &["--output", path]).run().ok();
    assert_eq!(outcome.stdout, "");
    let told = Metrics::of(&fs::read_to_string(&file).expect("read the file"));
    assert_eq!(told.value("groups", &[("state", "steered")]), 1);
    assert_eq!(file.metadata().expect("stat").permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1, "nothing is left over");
    scene.cli("metrics", &["--output", "/nonexistent/x.prom"]).run().fails(1).says("/nonexistent");
}

/// An agent that tells its metrics on a socket file.
struct Told {
    agent: Agent,
    directory: tempfile::TempDir,
}

impl Told {
    fn start(scene: &Scene) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = format!("unix:{}/metrics", directory.path().display());
        let agent = Agent::start(&scene.netns, &scene.bpffs, 8080, &["--metrics", &socket]);
        Self { agent, directory }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).expect("connect to the agent")
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("metrics")
    }

    fn scrape(&self) -> Metrics {
        Metrics::of(&get(self.connect(), "/metrics"))
    }
}

/// The body of a good answer.
pub(crate) fn get(mut stream: UnixStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    body.to_owned()
}

/// Replaces the second worker.
fn replace(scene: &mut Scene) {
    scene.workers[1].kill();
    let spec = Spec { index: 1, cpus: vec![cpus()[1]], ..Spec::default() };
    scene.workers[1] = Worker::start(&scene.netns, &spec);
}

/// An agent looks for itself, and `top` shows what it tells.
#[test]
fn an_agent_tells_what_a_trace_sees() {
    let scene = Scene::of(&[Spec::default()]);
    let told = Told::start(&scene);
    assert_eq!(told.scrape().find("traced_connections_total", &[]), None);
    let tracer = Tracer::start(&scene.netns, 8080, &[]);
    connect(&scene, cpus()[0], 9);
    let same = [("distance", "same")];
    let seen = eventually(PATIENCE, || told.scrape().sum("traced_connections_total", &same) == 9);
    assert!(seen, "{:#?}", told.scrape());
    let socket = format!("unix:{}", told.socket().display());
    let top = Cli::new(["top", "--once", "--interval", "100ms", "--agent", &socket]).run().ok();
    let line = format!("trace (process {}): 9 connections accepted, 100.00 %", tracer.pid());
    assert!(top.stdout.contains(&line), "{top}");
    tracer.kill();
    let forgotten = || told.scrape().all("traced_connections_total", &[]).is_empty();
    assert!(eventually(PATIENCE, forgotten), "{:#?}", told.scrape());
}

#[test]
fn an_agent_tells_what_it_did() {
    require::cpus(2);
    let mut scene = Scene::new();
    let told = Told::start(&scene);
    connect(&scene, cpus()[0], 7);
    let fresh =
        eventually(PATIENCE, || told.scrape().sum("selections_total", &[("path", "first")]) >= 7);
    assert!(fresh, "what came is not told");
    let before = told.scrape();
    assert_eq!(before.value("heals_total", &[]), 1, "the first attach");
    replace(&mut scene);
    let healed = eventually(PATIENCE, || {
        let now = told.scrape();
        now.value("heals_total", &[]) >= 2 && now.value("problems", &[]) == 0
    });
    assert!(healed, "{}", told.agent.log());
    let after = told.scrape();
    // The kernel tells when listeners come and go, here.
    assert!(after.value("heal_seconds_count", &[]) >= 1, "{after:#?}");
    let took: f64 = after.all("heal_seconds_sum", &[])[0].1.parse().expect("seconds");
    assert!(took > 0.0, "{took} s");
    let ticks = |scrape: &Metrics| scrape.value("agent_ticks_total", &[]);
    assert!(ticks(&after) > ticks(&before), "no tick is counted");
    // A worker that takes the seat of the one before at once needs no other plan.
    let plans = |scrape: &Metrics| scrape.value("plan_generation", &[]);
    assert!(plans(&after) >= plans(&before), "plans are counted down");
    assert_eq!(after.value("agent_tick_failures_total", &[]), 0, "{}", told.agent.log());
    assert_eq!(after.value("agent_unseen_targets", &[]), 0);
    // `top`'s side of it is JSON of the same.
    let state: serde_json::Value =
        serde_json::from_str(&get(told.connect(), "/state")).expect("JSON");
    assert_eq!(state["agent"]["pid"], told.agent.pid());
    let socket = told.socket();
    told.agent.stop();
    assert!(!socket.exists(), "the socket file is left");
    scene.steered();
}

/// What the maps hold, anybody tells; what the agent counts, it alone.
#[test]
fn evictions_and_widened_rows_are_told() {
    require::cpus(2);
    // 200 per second each; together they can do what comes to one of them.
    let spec = Spec { nap: 5000, backlog: 64, ..Spec::default() };
    let scene = Scene::of(&[spec.clone(), spec]);
    let told = Told::start(&scene);
    let none = told.scrape();
    assert_eq!(none.all("evicted", &[]).len(), 2);
    for name in ["evicted", "evictions_total", "widened_rows", "widenings_total"] {
        assert_eq!(none.sum(name, &[]), 0, "{name}");
    }
    let load = |rates: [f64; 2]| {
        let from = cpus().into_iter().zip(rates.map(Pace::Open)).collect();
        let address = "127.0.0.1:8080".parse().expect("an address");
        let lasts = PATIENCE * 10;
        Traffic::start(&scene.netns, &Plan { address, from, lasts, patience: PATIENCE, seed: 1 })
    };
    let traffic = load([50.0, 50.0]);
    scene.workers[1].freeze();
    let out = || metrics(&scene).sum("evicted", &[]) == 1;
    assert!(eventually(PATIENCE, out), "{}", told.agent.log());
    let status = scene.cli("status", &[]).run().ok().stdout;
    for word in ["active, evicted", "is evicted, and second choices serve its rows: its "] {
        assert!(status.contains(word), "{word}: {status}");
    }
    let tells = || told.scrape().sum("evicted", &[]) == 1;
    assert!(eventually(PATIENCE, tells), "{}", told.agent.log());
    let stalled = [("cause", "stalled")];
    assert!(told.scrape().value("evictions_total", &stalled) >= 1, "{}", told.agent.log());
    scene.workers[1].thaw();
    let back = || metrics(&scene).sum("evicted", &[]) == 0;
    assert!(eventually(PATIENCE, back), "{}", told.agent.log());
    drop(traffic);

    let traffic = load([300.0, 1.0]);
    let shared = || told.scrape().value("widened_rows", &[]) == 1;
    assert!(eventually(PATIENCE, shared), "{}", told.agent.log());
    drop(traffic);
    assert!(eventually(PATIENCE, || !shared()), "{}", told.agent.log());
    assert!(told.scrape().value("widenings_total", &[]) >= 1);
    // Without an agent nobody counts.
    let alone = metrics(&scene);
    assert_eq!(alone.find("evictions_total", &[]), None);
    assert_eq!(alone.all("evicted", &[]).len(), 2);
    told.agent.stop();
}

/// Clients that connect and dawdle, in greater number than are served at a time, cost the agent
/// nothing: it heals as ever, and ends when told.
#[test]
fn clients_that_pester_it_do_not_keep_it_from_its_work() {
    require::cpus(2);
    let mut scene = Scene::new();
    let told = Told::start(&scene);
    let mut idle: Vec<UnixStream> = (0..100).map(|_| told.connect()).collect();
    for (place, stream) in idle.iter_mut().enumerate() {
        // Some say nothing, some half of it, some too much.
        let words = ["", "GET /metr", "GET /metrics HTTP/1.1\r\n", "\0\0\0\0"][place % 4];
        let _hung_up = stream.write_all(words.as_bytes());
    }
    let heals = |log: &str| log.matches("mapping changed").count();
    for _ in 0..3 {
        let before = heals(&told.agent.log());
        replace(&mut scene);
        let healed = eventually(PATIENCE, || heals(&told.agent.log()) > before);
        assert!(healed, "{}", told.agent.log());
    }
    let well = eventually(PATIENCE, || {
        let status = scene.cli("status", &["--json"]).run().ok().json();
        status[0]["problems"] == serde_json::json!([])
    });
    assert!(well, "{}", told.agent.log());
    assert_eq!(told.scrape().value("groups", &[("state", "steered")]), 1);
    // Still 100 of them, and it ends at once.
    told.agent.stop();
    scene.steered();
}

#[test]
fn where_it_may_listen() {
    let scene = Scene::new();
    let refused = |address: &str| {
        let mut agent = Agent::spawn(&scene.netns, &scene.bpffs, 8080, &["--metrics", address]);
        (agent.ended(), agent.log())
    };
    let (code, log) = refused("0.0.0.0:9464");
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("--metrics-remote"), "{log}");
    assert_eq!(refused("[::]:9464").0, Some(2));
    assert_eq!(refused("9464").0, Some(2));
    assert_eq!(refused("unix:relative").0, Some(2));
    // Where the workers listen.
    let (code, log) = refused("127.0.0.1:8080");
    assert_eq!(code, Some(7), "{log}");
    let (code, log) = refused("unix:/nonexistent/socket");
    assert_eq!(code, Some(6), "{log}");
    assert!(log.contains("/nonexistent/socket"), "{log}");
    // Nothing was steered by those.
    scene.hashed();
    assert_eq!(scene.bpffs.pins(), [""; 0]);
    let remote = ["--metrics", "0.0.0.0:9464", "--metrics-remote"];
    let agent = Agent::start(&scene.netns, &scene.bpffs, 8080, &remote);
    let text = scene.netns.run_in(|| {
        let mut stream = std::net::TcpStream::connect("127.0.0.1:9464").expect("connect");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    });
    let body = text.split_once("\r\n\r\n").expect("a head and a body").1;
    assert_eq!(Metrics::of(body).value("groups", &[("state", "steered")]), 1);
    agent.stop();
}

/// A socket file that an agent left when it was killed is not in the way of the next.
#[test]
fn a_killed_agents_socket_is_taken_over() {
    let scene = Scene::new();
    let mut told = Told::start(&scene);
    told.agent.kill();
    assert!(Path::new(&told.socket()).exists());
    let socket = format!("unix:{}", told.socket().display());
    let agent = Agent::start(&scene.netns, &scene.bpffs, 8080, &["--metrics", &socket]);
    assert_eq!(told.scrape().value("groups", &[("state", "steered")]), 1);
    agent.stop();
}
