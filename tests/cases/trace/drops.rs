//! What was dropped, as far as the kernel's count tells.

use std::thread::sleep;
use std::time::Duration;

use reuseport_tests::binary::Cli;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::cpus;
use reuseport_tests::hostile::seccomp;
use reuseport_tests::worker::Spec;
use serde_json::Value;

use super::{PAUSE, number, start, wait_for_queue};
use crate::scene::Scene;

/// More clients than the queue of the one worker takes, which accepts nothing meanwhile.
fn overflow(scene: &Scene, target: Target) {
    scene.workers[0].freeze();
    burst(&scene.netns, cpus()[0], &target.timeout(Duration::from_millis(100)), 6);
    scene.workers[0].thaw();
    wait_for_queue(scene, 0);
    sleep(PAUSE);
}

fn statistic(scene: &Scene, name: &str) -> u32 {
    let text = scene.netns.run("nstat", &["-asz", name]);
    let value = text.lines().find_map(|it| it.strip_prefix(name));
    let value = value.and_then(|it| it.split_whitespace().next());
    value.and_then(|it| it.parse::<f64>().ok()).unwrap_or_else(|| panic!("{name}: {text}")) as u32
}

/// A queue for two connections, and nobody who accepts.
#[test]
fn a_full_queue_drops() {
    let scene = Scene::of(&[Spec { backlog: 1, ..Spec::default() }]);
    let tracer = start(&scene, &["--json"]);
    overflow(&scene, Target::plain("127.0.0.1:8080"));
    let summary = tracer.stop().json();
    let listener = &summary["groups"][0]["listeners"][0];
    assert!(number(&listener["dropped"]) >= 1.0, "{summary:#}");
    assert_eq!(listener["defers"], false, "{summary:#}");
    assert_eq!((&listener["backlog"], &listener["deepest_queue"]), (&1.into(), &2.into()));
    assert_eq!(summary["total"]["accepted"], 2, "{summary:#}");
}

/// As PgBouncer's: the kernel drops a segment of every handshake, on purpose, and counts that with the
/// rest.
#[test]
fn what_is_deferred_is_not_called_dropped() {
    let scene = Scene::of(&[Spec { defer: true, backlog: 1, ..Spec::default() }]);
    let tracer = start(&scene, &["--json"]);
    let target = || Target::http("127.0.0.1:8080");
    let tally = burst(&scene.netns, cpus()[0], &target(), 20);
    assert_eq!((tally.answered(), tally.failed()), (20, 0), "{tally}");
    assert!(statistic(&scene, "TcpExtTCPDeferAcceptDrop") >= 20);
    assert_eq!(statistic(&scene, "TcpExtListenDrops"), 0);
    let summary = tracer.stop().json();
    let listener = &summary["groups"][0]["listeners"][0];
    assert_eq!((&listener["dropped"], &listener["defers"]), (&Value::Null, &true.into()));

    // Nor with a queue that is full, and it is said why.
    let tracer = start(&scene, &[]);
    overflow(&scene, target());
    assert!(statistic(&scene, "TcpExtListenDrops") > 0);
    let traced = tracer.stop();
    assert_told(&traced.stdout, "1 listener cannot be told: they defer accepting");
}

/// It takes more than tracing does to ask.
#[test]
fn whom_it_may_not_ask_it_does_not_call_dropping() {
    let scene = Scene::of(&[Spec::default()]);
    let args = ["trace", "--port", "8080", "--netns", "/proc/self/ns/net", "--duration", "300ms"];
    let trace = Cli::new(args).netns(&scene.netns);
    let trace = trace.through(seccomp(libc::EPERM, &[libc::SYS_pidfd_getfd]));
    assert_told(&trace.run().ok().stdout, "1 listener cannot be told: they could not be asked");
    // What listens alone can be asked like the others.
    let alone = Scene::of(&[Spec { reuseport: false, ..Spec::default() }]);
    let tracer = start(&alone, &["--json"]);
    let summary = tracer.stop().json();
    assert_eq!(summary["groups"][0]["listeners"][0]["dropped"], 0, "{summary:#}");
}

/// A dash for its drops, and why.
fn assert_told(stdout: &str, why: &str) {
    let listener = stdout.lines().rfind(|it| it.contains(" of ") && it.ends_with("  -"));
    assert!(listener.is_some() && stdout.contains(why), "{stdout}");
    assert!(!stdout.contains('!'), "{stdout}");
}
