//! `top` on a real terminal, and as text.

use reuseport_tests::agent::Agent;
use reuseport_tests::binary;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::terminal::Terminal;
use reuseport_tests::{cpus, require};

use crate::scene::Scene;

/// `top` over a scene's group, with its pins.
fn top(scene: &Scene, args: &[&str]) -> Terminal {
    let mut command = scene.netns.command(binary::path());
    command.args(["top", "--interval", "200ms", "--bpffs"]).arg(scene.bpffs.path()).args(args);
    command.env("TERM", "xterm-256color");
    Terminal::start(command, (24, 110))
}

const HERE: [&str; 4] = ["--port", "8080", "--netns", "/proc/self/ns/net"];

fn connect(scene: &Scene, count: u32) {
    let tally = burst(&scene.netns, cpus()[0], &Target::plain("127.0.0.1:8080"), count);
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// The line of a worker.
fn line_of(lines: &[String], pid: u32) -> Option<String> {
    let words = |line: &&String| line.split_whitespace().any(|word| word == pid.to_string());
    lines.iter().take_while(|line| !line.contains("EVENTS")).find(words).cloned()
}

#[test]
fn live_on_a_terminal() {
    require::cpus(2);
    let mut scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    let mut top = top(&scene, &HERE);
    top.shows("steered: policy cpu");
    let [first, second] = [0, 1].map(|place: usize| scene.workers[place].pid());
    top.until(|lines| line_of(lines, first).is_some() && line_of(lines, second).is_some());

    // What comes in is counted where it is served.
    connect(&scene, 40);
    top.until(|lines| {
        let line = line_of(lines, first).unwrap_or_default();
        line.ends_with(" 40") && line_of(lines, second).unwrap_or_default().ends_with(" 0")
    });

    // A pause holds the frame, whatever happens.
    top.keys("p");
    top.shows("PAUSED");
    scene.workers[1].kill();
    connect(&scene, 10);
    let lines = top.lines();
    assert!(line_of(&lines, first).is_some_and(|line| line.ends_with(" 40")), "{lines:#?}");
    assert!(line_of(&lines, second).is_some(), "{lines:#?}");
    top.keys("p");
    top.shows(&format!("{second} is gone from slot"));
    top.until(|lines| line_of(lines, second).is_none());
    top.until(|lines| line_of(lines, first).is_some_and(|line| line.ends_with(" 50")));

    // The arrows choose what is sorted by.
    top.keys("\x1b[C");
    top.shows("WORKER*");
    top.keys("\x1b[D\x1b[D");
    top.shows("SELECTED*");

    // Smaller and larger.
    top.resize((6, 40));
    top.until(|lines| lines.len() == 6 && lines[5].starts_with("q quit  p pause"));
    top.resize((40, 150));
    top.until(|lines| lines.len() == 40 && lines[39].starts_with("q quit  p pause"));
    top.shows("is gone from slot");

    top.keys("q");
    let status = top.given_back();
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[test]
fn gives_the_terminal_back_when_it_is_told_to_end() {
    let scene = Scene::new();
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        let mut top = top(&scene, &HERE);
        top.shows("not steered: the kernel's hash decides");
        top.signal(signal);
        let status = top.given_back();
        assert_eq!(status.code(), Some(0), "signal {signal}: {status:?}");
    }
    // Ctrl-C is a key to it.
    let mut top = top(&scene, &HERE);
    top.shows("not steered");
    top.keys("\x03");
    assert_eq!(top.given_back().code(), Some(0));
}

#[test]
fn ends_with_its_terminal() {
    let scene = Scene::new();
    let mut top = top(&scene, &HERE);
    top.shows("not steered");
    let status = top.hang_up();
    assert!(matches!(status.code(), Some(0 | 1)), "{status:?}");
}

#[test]
fn what_is_wrong_is_said_and_the_terminal_left_alone() {
    let scene = Scene::new();
    let mut nobody = top(&scene, &["--port", "9999", "--netns", "/proc/self/ns/net"]);
    nobody.shows("nobody listens");
    assert_eq!(nobody.given_back().code(), Some(3));
    let mut stranger = top(&scene, &["--agent", "127.0.0.1:9999"]);
    stranger.shows("is an agent running");
    assert_eq!(stranger.given_back().code(), Some(3));
    // Without a terminal there is nothing to draw on.
    scene.cli("top", &[]).run().fails(2).says("--once");
    scene.cli("top", &["--interval", "0s"]).run().fails(2);
    scene.cli("top", &["--agent", "nonsense"]).run().fails(2).says("nonsense");
}

#[test]
fn one_frame_as_text_and_as_json() {
    require::cpus(2);
    let scene = Scene::new();
    scene.cli("attach", &[]).run().ok();
    connect(&scene, 30);
    let frame = scene.cli("top", &["--once", "--interval", "100ms"]).run().ok().stdout;
    let lines: Vec<_> = frame.lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("reuseport-steer top  pins and sockets"), "{frame}");
    assert!(lines[1].starts_with("tcp 0.0.0.0:8080  steered: policy cpu"), "{frame}");
    let line = line_of(&lines, scene.workers[0].pid()).unwrap_or_else(|| panic!("{frame}"));
    assert!(line.ends_with(" 30"), "{frame}");
    assert!(!frame.contains('\x1b'), "{frame:?}");

    let json = scene.cli("top", &["--once", "--interval", "100ms", "--json"]).run().ok().json();
    let counters = &json["snapshot"]["groups"][0]["steering"]["counters"];
    assert_eq!(counters["first"], 30, "{json:#}");
    let rates = &json["rates"]["groups"][0];
    assert_eq!(rates["group"]["address"], "0.0.0.0:8080", "{json:#}");
    assert_eq!(rates["paths"]["first"], 0.0, "{json:#}");
}

/// An agent tells all there is to see, and what it did: no privilege is needed to look at that.
#[test]
fn an_agent_tells_what_it_did() {
    require::cpus(2);
    let mut scene = Scene::new();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = format!("unix:{}/metrics", directory.path().display());
    let agent = Agent::start(&scene.netns, &scene.bpffs, 8080, &["--metrics", &socket]);
    let mut top = top(&scene, &["--agent", &socket]);
    top.shows(&format!("agent {}, up", agent.pid()));
    top.shows("steered: policy cpu");
    top.shows("attached: 2 listeners");
    scene.workers[1].kill();
    top.shows("mapping changed (+0 -1 listeners");
    let own = |lines: &[String]| !lines.iter().any(|line| line.contains("is gone from slot"));
    assert!(own(&top.lines()), "its own words, not those of one who only looks");
    // An agent that ends is missed, and what it told last stays.
    agent.stop();
    let lines = top.shows("is an agent running");
    assert!(line_of(&lines, scene.workers[0].pid()).is_some(), "{lines:#?}");
    top.keys("q");
    assert_eq!(top.given_back().code(), Some(0));
}
