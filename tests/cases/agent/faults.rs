//! What befalls a machine beside the workers: CPUs that go offline, a pause, servers that show little
//! of who serves, namespaces that are closed. A busy machine keeps workers from accepting now and then,
//! which is not what is tested here: nobody is evicted.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::thread::sleep;
use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::binary::{self, Cli};
use reuseport_tests::netns::Netns;
use reuseport_tests::require;
use reuseport_tests::worker::{Spec, Style, Worker};
use serde_json::{Value, json};

use super::two;
use crate::scene::{Scene, refused};

/// The first choices of a CPU's row.
fn first(status: &Value, cpu: u32) -> Value {
    status["steering"]["rows"][cpu as usize]["first"].clone()
}

/// Taking a CPU offline is the whole machine's to bear: the agent alone is told so.
#[test]
fn a_cpu_that_goes_offline_leaves_its_worker_to_the_others() {
    require::cpus(2);
    let scene = Scene::new();
    let [here, gone] = two();
    let online = tempfile::NamedTempFile::new().expect("a temporary file");
    // Always as long: what is written over is never seen by half.
    let tell = |list: &str| {
        let file = File::options().write(true).open(online.path()).expect("open the list");
        file.write_all_at(format!("{list:<16}\n").as_bytes(), 0).expect("write the list");
    };
    tell(&format!("{here},{gone}"));
    let mut command = scene.netns.command("unshare");
    let script = "mount --bind \"$1\" /sys/devices/system/cpu/online && shift && exec \"$@\"";
    command.args(["--mount", "/bin/sh", "-c", script, "sh"]).arg(online.path());
    command.arg(binary::path());
    let args = ["--reconcile-interval", "100ms", "--spill", "off"];
    let mut agent = Agent::spawn_with(command, &scene.bpffs, 8080, &args);
    agent.wait_for("ready");
    scene.steered();
    let status = scene.status();
    let (own, other) = (first(&status, here), first(&status, gone));
    assert_ne!(own, other, "{status:#}");
    for _ in 0..2 {
        tell(&here.to_string());
        // It may run nowhere else, so the kernel lets it run anywhere: both take part of what comes.
        let both = json!([0, 1]);
        let shared = |status: &Value| [here, gone].iter().all(|cpu| first(status, *cpu) == both);
        scene.becomes("shared", shared);
        tell(&format!("{here},{gone}"));
        scene.becomes("apart", |status| first(status, here) == own && first(status, gone) == other);
    }
    scene.steered();
    agent.stop();
}

/// A machine that is suspended or moved: whatever happened meanwhile is seen at once afterwards.
#[test]
fn a_pause_is_made_up_for() {
    require::cpus(2);
    let mut scene = Scene::new();
    let agent = scene.agent(&["--reconcile-interval", "600s", "--spill", "off"]);
    scene.steered();
    for keeps_one in [true, false] {
        agent.signal(libc::SIGSTOP);
        if keeps_one {
            scene.workers.remove(0);
            scene.workers.insert(0, scene.start(0, two()[0]));
        } else {
            scene.workers.clear();
            scene.workers = vec![scene.start(0, two()[0]), scene.start(1, two()[1])];
        }
        sleep(Duration::from_secs(2));
        agent.signal(libc::SIGCONT);
        scene.healed();
        scene.steered();
    }
    agent.stop();
}

/// Threads that sleep in accept(2), and no epoll set that would show what they wait for.
#[test]
fn servers_without_epoll_are_kept_right() {
    require::cpus(2);
    let threads =
        Spec { style: Style::Accept, listeners: 2, cpus: two().to_vec(), ..Spec::default() };
    let mut scene = Scene::of(std::slice::from_ref(&threads));
    let agent = scene.agent(&["--generation-timeout", "600s", "--spill", "off"]);
    scene.becomes("steered", |status| status["problems"] == json!([]));
    scene.steered();
    scene.workers.clear();
    scene.workers.push(Worker::start(&scene.netns, &threads));
    scene.becomes("steered again", |status| {
        status["steering"]["in_force"] == true && status["problems"] == json!([])
    });
    scene.steered();
    agent.stop();
}

/// Whoever may not enter the server's namespace is told so, and what to do; nothing is changed.
#[test]
fn a_namespace_that_is_closed_is_named() {
    let scene = Scene::new();
    let outside = Netns::new();
    let bpffs = scene.bpffs.path().to_str().expect("a path of ours is text").to_owned();
    let pid = scene.workers[0].pid().to_string();
    for verb in ["agent", "status", "attach"] {
        let args = [verb, "--port", "8080", "--bpffs", &bpffs, "--pid", &pid];
        let cli = Cli::new(args).netns(&outside).capabilities(&["bpf", "perfmon", "sys_ptrace"]);
        refused(&cli, 5, &["cannot enter another network namespace", "CAP_SYS_ADMIN", "nsenter"]);
        // And who does not say which it is, where it was looked.
        let cli = Cli::new(&args[..5]).netns(&outside);
        let cli =
            cli.capabilities(&["bpf", "perfmon", "sys_ptrace"]).limit(Duration::from_secs(20));
        if verb != "agent" {
            refused(&cli, 3, &["more could not be entered: CAP_SYS_ADMIN is missing"]);
        }
    }
    assert_eq!(scene.bpffs.pins(), [""; 0]);
    scene.hashed();
}
