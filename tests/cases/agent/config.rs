//! The configuration file and what a service manager asks: reload, readiness, the watchdog.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use reuseport_tests::agent::Agent;
use reuseport_tests::binary;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::{cpus, eventually, require};

use super::{PATIENCE, two};
use crate::scene::{Scene, refused};

pub(super) const GOOD: &str = "[[target]]\nport = 8080\nnetns = '/proc/self/ns/net'\n";

/// A configuration file.
pub(super) struct File(tempfile::NamedTempFile);

impl File {
    pub(super) fn new(text: &str) -> Self {
        let file = Self(tempfile::NamedTempFile::new().expect("a temporary file"));
        file.write(text);
        file
    }

    pub(super) fn write(&self, text: &str) {
        fs::write(self.0.path(), text).expect("write the configuration");
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Scene {
    /// An agent with this configuration.
    fn agent_of(&self, file: &File, env: &[(&str, &str)]) -> Agent {
        let mut command = self.agent_command(file);
        command.envs(env.iter().copied());
        let mut agent = Agent::of(command);
        agent.wait_for("ready");
        agent
    }

    /// What starts an agent with this configuration.
    pub(super) fn agent_command(&self, file: &File) -> Command {
        let mut command = self.netns.command(binary::path());
        command.args(["agent", "--bpffs"]).arg(self.bpffs.path());
        command.arg("--config").arg(file.path());
        command
    }
}

#[test]
fn a_wrong_file_is_refused_with_its_line_and_changes_nothing() {
    let scene = Scene::new();
    for (text, place) in [
        (format!("{GOOD}prot = 1\n"), ":4:1: unknown field"),
        (format!("{GOOD}policy = 5\n"), ":4:10: invalid type"),
        (format!("{GOOD}[[target.worker]]\nname = 'a'\ncpus = '99999'\n"), ":6:8: CPU 99999"),
        (format!("{GOOD}{GOOD}"), ":5:8: port 8080 is named by another"),
        (format!("\u{feff}{GOOD}"), ":1:1: the file begins with a byte order mark"),
    ] {
        let file = File::new(&text);
        let path = file.path().to_str().expect("a path of ours is text");
        let expected = format!("{path}{place}");
        for more in [&[][..], &["--check"]] {
            let cli = binary::Cli::new(
                ["agent", "--config", path].into_iter().chain(more.iter().copied()),
            );
            refused(&cli.netns(&scene.netns), 2, &[&expected]);
        }
    }
    let file = File::new(GOOD);
    let path = file.path().to_str().expect("a path of ours is text");
    let checked = binary::Cli::new(["agent", "--config", path, "--check"]).run().ok();
    assert!(checked.stdout.contains("the configuration is right: 1 target"), "{checked}");
    // Nobody but root may read it.
    let cli = binary::Cli::new(["agent", "--config", path, "--check"]).uid(65534);
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    refused(&cli, 2, &[path, "Permission denied"]);
    assert_eq!(scene.bpffs.pins(), [""; 0]);
    scene.hashed();
}

#[test]
fn a_reload_takes_a_good_file_and_no_other() {
    require::cpus(2);
    let scene = Scene::new();
    let file = File::new(GOOD);
    let mut agent = scene.agent_of(&file, &[]);
    scene.steered();
    let policy = |status: &serde_json::Value| status["steering"]["policy"].clone();

    file.write(&format!("{GOOD}policy = 'hash'\nprot = 1\n"));
    agent.signal(libc::SIGHUP);
    agent.wait_for("not reloaded, all stays as it is");
    agent.wait_for(":5:1: unknown field");
    scene.steered();

    file.write(&format!("{GOOD}policy = 'hash'\n"));
    agent.signal(libc::SIGHUP);
    scene.becomes("by hash", |status| policy(status) == "hash");
    let tally = burst(&scene.netns, cpus()[0], &Target::plain("127.0.0.1:8080"), 60);
    assert_eq!(tally.by_worker(cpus()[0]).len(), 2, "{tally}");

    // Another port in its place: the first stays as it is, and nobody's.
    file.write(&GOOD.replace("8080", "8081"));
    agent.signal(libc::SIGHUP);
    let released =
        eventually(PATIENCE, || !scene.bpffs.pins().iter().any(|pin| pin.starts_with("agent-")));
    assert!(released, "{:?}", scene.bpffs.pins());
    assert_eq!(policy(&scene.status()), "hash");
    let other = scene.agent(&["--detach-on-exit"]);
    scene.steered();
    other.stop();
    scene.hashed();
    agent.stop();
}

#[test]
fn a_reload_takes_another_rung() {
    require::cpus(2);
    let scene = Scene::new();
    let file = File::new(GOOD);
    let agent = scene.agent_of(&file, &[]);
    scene.steered();
    for (rung, taken) in
        [("incoming-cpu", "incoming-cpu"), ("ebpf", "ebpf"), ("hash", "hash"), ("auto", "ebpf")]
    {
        file.write(&format!("{GOOD}rung = '{rung}'\n"));
        agent.signal(libc::SIGHUP);
        scene.becomes(rung, |status| {
            status["rung"]["rung"] == taken && status["problems"] == serde_json::json!([])
        });
        if taken == "hash" { scene.hashed() } else { scene.steered() }
    }
    let log = agent.stop();
    assert!(!log.contains("cannot be watched"), "{log}");
}

/// CPUs that cannot be seen are told by name.
#[test]
fn workers_are_told_by_name() {
    require::cpus(2);
    let mut scene = Scene::new();
    scene.workers.truncate(1);
    let (file, _turned) = (File::new(""), ());
    let [first, second] = two();
    file.write(&format!("{GOOD}[[target.worker]]\nname = 'steer-test-work'\ncpus = '{second}'\n"));
    scene.workers.push(scene.start(1, second));
    // By what is seen, worker 0 runs on the first CPU; by name, both run on the second.
    let agent = scene.agent_of(&file, &[]);
    for cpu in [first, second] {
        let tally = scene.from(cpu, 100);
        assert_eq!(tally.by_worker(cpu).len(), 2, "both have their part: {tally}");
    }
    agent.stop();
}

#[test]
fn a_service_manager_is_told() {
    let scene = Scene::new();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("bind a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let hear = || {
        let mut bytes = [0; 4096];
        let length = manager.recv(&mut bytes).expect("a message of the agent's");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let until = |word: &str| {
        let mut heard = Vec::new();
        while !heard.last().is_some_and(|last: &String| last.contains(word)) {
            assert!(heard.len() < 1000, "no {word} among {heard:?}");
            heard.push(hear());
        }
        heard
    };
    let file = File::new(&format!("reconcile-interval = '60s'\n{GOOD}"));
    let path = path.to_str().expect("a path of ours is text");
    // Systemd's own words: a fifth of a second.
    let env = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "200000")];
    let agent = scene.agent_of(&file, &env);
    assert!(until("READY=1").len() <= 2);
    // Though it has nothing to do for a minute.
    for _ in 0..3 {
        assert!(until("WATCHDOG=1").len() <= 2);
    }
    agent.signal(libc::SIGHUP);
    let reloading = until("RELOADING=1").pop().expect("a message");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    until("READY=1");
    agent.stop();
    until("STOPPING=1");
}

/// Lines of the log that machines read.
#[test]
fn the_log_can_be_json() {
    require::cpus(2);
    let scene = Scene::new();
    for args in [&["--log-format", "json"][..], &["--json"]] {
        let agent = scene.agent(args);
        let log = agent.stop();
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
        let attached = lines.iter().find(|line| line["topic"] == "mapping").expect("a decision");
        assert_eq!(attached["group"], "tcp 0.0.0.0:8080", "{attached}");
        let words = attached["message"].as_str().expect("words");
        assert!(words.contains(": 2 listeners"), "{attached}");
        assert!(attached["timestamp"].is_string() && attached["level"] == "INFO", "{attached}");
    }
    let file = File::new(GOOD);
    let path = file.path().to_str().expect("a path of ours is text");
    let check = ["agent", "--config", path, "--check", "--json"];
    assert_eq!(binary::Cli::new(check).run().ok().json(), serde_json::json!({ "targets": 1 }));
}

#[test]
fn what_to_keep_is_to_be_told() {
    let outcome = binary::Cli::new(["agent"]).run().fails(2);
    assert!(outcome.stderr.contains("--port") && outcome.stderr.contains("--config"), "{outcome}");
}
