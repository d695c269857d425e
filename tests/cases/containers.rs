//! The manifests and the image of `deploy/`, as a container runtime runs them.

use std::fs;
use std::time::Duration;

use reuseport_tests::binary::Cli;
use reuseport_tests::bpffs::Bpffs;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::container::{Podman, Profile};
use reuseport_tests::metrics::Metrics;
use reuseport_tests::netns::Netns;
use reuseport_tests::scene::{PORT, place};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually};
use serde_json::Value;

const STEER: &str = "localhost/reuseport-steer:test";
const WORKER: &str = "localhost/worker:test";
const PATIENCE: Duration = Duration::from_secs(30);

/// A manifest of ours, with what is different here put in: each a text that must be there.
fn manifest(name: &str, bpffs: &Bpffs, changes: &[(&str, &str)]) -> String {
    let path = format!("{}/../deploy/kubernetes/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let bpffs = format!("path: {}\n", bpffs.path().display());
    let ours = [("path: /sys/fs/bpf\n", bpffs.as_str()), ("reuseport-steer:0.1.0", STEER)];
    for (from, to) in ours.iter().chain(changes) {
        assert!(text.contains(from), "{path} has no {from:?}");
        text = text.replace(from, to);
    }
    text
}

/// The sidecar's manifest, around workers of ours.
fn sidecar(pod: &str, bpffs: &Bpffs) -> String {
    let each = |(index, cpu): (usize, u32)| {
        format!(
            "(busybox sleep 1000 | steer-test-worker index={index} addr=0.0.0.0 port={PORT} \
             listeners=1 style=epoll cpus={cpu} backlog=511) & "
        )
    };
    let workers: String = cpus().into_iter().enumerate().map(each).collect();
    let command = format!("command: [\"/bin/busybox\", \"sh\", \"-c\", \"{workers} wait\"]\n");
    let theirs = "command: [\"/bin/sh\", \"-c\", \"taskset -c 0 pgbouncer /etc/pgbouncer/0.ini & \
                  taskset -c 1 pgbouncer /etc/pgbouncer/1.ini & wait\"]\n";
    let changes = [
        ("name: pgbouncer\n", &*format!("name: {pod}\n")),
        ("pgbouncer:1.24", WORKER),
        (theirs, &command),
        // A busy machine may well keep a worker from accepting, which is not what is tested here.
        ("\"6432\"", &format!("\"{PORT}\", \"--spill\", \"off\"")),
    ];
    manifest("sidecar.yaml", bpffs, &changes)
}

/// What the sidecar's own `status` says of its group.
fn status(podman: &Podman, pod: &str) -> Value {
    let container = format!("{pod}-reuseport-steer");
    let port = PORT.to_string();
    let args = ["/reuseport-steer", "status", "--port", &port, "--json"];
    let text = podman.exec(&container, &args);
    serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))[0]
        .clone()
}

/// The pod that the DaemonSet starts on each node: this podman knows no DaemonSet.
fn daemonset(pod: &str, bpffs: &Bpffs) -> String {
    let text = manifest("daemonset.yaml", bpffs, &[]);
    let (_, template) = text.split_once("  template:\n").expect("a template");
    let lines =
        template.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)));
    let named = format!("metadata:\n  name: {pod}\n");
    let spec = lines.collect::<String>().replacen("metadata:\n", &named, 1);
    format!("apiVersion: v1\nkind: Pod\n{spec}")
}

fn assert_local(netns: &Netns) {
    let target = Target::plain("127.0.0.1:8080");
    for cpu in cpus() {
        burst(netns, cpu, &target, 30).assert_local(place);
    }
}

fn all_seated(status: &Value) -> bool {
    let listeners = status["listeners"].as_array().map_or(&[][..], Vec::as_slice);
    let seated = listeners.iter().filter(|listener| listener["slot"].is_u64()).count();
    seated == cpus().len() && status["steering"]["in_force"] == true
}

/// Steered groups: the directories that are not an agent's lock.
fn groups(bpffs: &Bpffs) -> usize {
    bpffs.pins().iter().filter(|name| name.starts_with("tcp")).count()
}

/// Capabilities in force of a process, as `/proc` has them.
fn capabilities(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("CapEff");
    u64::from_str_radix(line.trim(), 16).expect("a mask")
}

#[test]
fn a_sidecar_steers_with_what_its_manifest_grants() {
    let bpffs = Bpffs::new();
    let mut podman = Podman::new(Profile::Current);
    podman.build_steer(STEER);
    podman.build_worker(WORKER);
    podman.play(&sidecar("one", &bpffs), &["one"]);
    let agent = "one-reuseport-steer";
    let steered = eventually(PATIENCE, || all_seated(&status(&podman, "one")));
    assert!(steered, "{:#}\n{}", status(&podman, "one"), podman.logs(agent));
    let granted = 1 << 39 | 1 << 38 | 1 << 19;
    assert_eq!(capabilities(podman.pid(agent)), granted, "BPF, PERFMON, SYS_PTRACE");
    let netns = podman.netns("one-server");
    assert_local(&netns);

    // All workers anew: another group, which the agent attaches to by itself.
    podman.kill("one-server");
    podman.start("one-server");
    let steered = eventually(PATIENCE, || all_seated(&status(&podman, "one")));
    assert!(steered, "{:#}\n{}", status(&podman, "one"), podman.logs(agent));
    assert_local(&netns);

    // Steering needs no agent.
    podman.kill(agent);
    assert_local(&netns);
}

#[test]
fn the_same_port_in_two_pods_is_two_groups() {
    let bpffs = Bpffs::new();
    let mut podman = Podman::new(Profile::Current);
    podman.build_steer(STEER);
    podman.build_worker(WORKER);
    for pod in ["red", "blue"] {
        podman.play(&sidecar(pod, &bpffs), &[pod]);
    }
    for pod in ["red", "blue"] {
        let steered = eventually(PATIENCE, || all_seated(&status(&podman, pod)));
        let log = podman.logs(&format!("{pod}-reuseport-steer"));
        assert!(steered, "{pod}: {:#}\n{log}", status(&podman, pod));
    }
    assert_eq!(groups(&bpffs), 2, "{:?}", bpffs.pins());
    for pod in ["red", "blue"] {
        assert_local(&podman.netns(&format!("{pod}-server")));
    }
    // From the host it takes to say which is meant.
    let port = PORT.to_string();
    let path = bpffs.path().to_str().expect("text");
    let detach = ["detach", "--port", &port, "--bpffs", path];
    Cli::new(detach).run().fails(3).says("--pid");
    let pid = podman.pid("red-server").to_string();
    Cli::new(detach.into_iter().chain(["--pid", &pid])).run().ok();
}

/// As it stands: on the node's network, of which a namespace of ours takes the place, with all
/// processes in sight.
#[test]
fn a_daemonset_steers_servers_on_the_nodes_network() {
    const DAEMONSET_PORT: u16 = 6432;
    let bpffs = Bpffs::new();
    let host = Netns::new();
    let start = |(index, cpu): (u32, u32)| {
        let spec = Spec { index, cpus: vec![cpu], port: DAEMONSET_PORT, ..Spec::default() };
        Worker::start(&host, &spec)
    };
    let mut workers: Vec<_> = (0..).zip(cpus()).map(start).collect();
    let mut podman = Podman::new(Profile::Current);
    podman.build_steer(STEER);
    podman.share_processes();
    podman.play_on(&host, &daemonset("node", &bpffs), &["node"]);
    let agent = "node-reuseport-steer";
    assert_eq!(podman.netns(agent).inode(), host.inode(), "not on the host's network");
    let granted = 1 << 39 | 1 << 38 | 1 << 19;
    assert_eq!(capabilities(podman.pid(agent)), granted, "BPF, PERFMON, SYS_PTRACE");
    let port = DAEMONSET_PORT.to_string();
    let status = || {
        let args = ["/reuseport-steer", "status", "--port", &port, "--json"];
        let text = podman.exec_on(&host, agent, &args);
        serde_json::from_str::<Value>(&text).expect("JSON")[0].clone()
    };
    let target = Target::plain(&format!("127.0.0.1:{port}"));
    let steered = || {
        // A busy machine keeps a worker from accepting now and then, and it is steered around.
        let local = |cpu| burst(&host, cpu, &target, 30).locality(place) >= 1.0;
        all_seated(&status()) && cpus().into_iter().all(local)
    };
    assert!(eventually(PATIENCE, steered), "{:#}\n{}", status(), podman.logs(agent));
    // It sees the node's processes by their ids, and heals.
    let served = status()["listeners"][0]["served"].to_string();
    assert!(served.contains(&workers[0].pid().to_string()), "{served}");
    workers[0].kill();
    workers[0] = start((0, cpus()[0]));
    assert!(eventually(PATIENCE, steered), "{:#}\n{}", status(), podman.logs(agent));
    podman.kill(agent);
    assert_eq!(groups(&bpffs), 1, "{:?}", bpffs.pins());
}

/// The profile that Debian 12 packages lets nobody but `CAP_SYS_ADMIN` have bpf(2).
#[test]
fn where_the_runtime_forbids_bpf_the_next_rung_is_taken() {
    let bpffs = Bpffs::new();
    let mut podman = Podman::new(Profile::Packaged);
    podman.build_steer(STEER);
    podman.build_worker(WORKER);
    podman.play(&sidecar("old", &bpffs), &["old"]);
    let agent = "old-reuseport-steer";
    let incoming_cpu = || status(&podman, "old")["rung"]["rung"] == "incoming-cpu";
    let log = || podman.logs(agent);
    assert!(eventually(PATIENCE, incoming_cpu), "{:#}\n{}", status(&podman, "old"), log());
    assert_local(&podman.netns("old-server"));
    // Why, to whomever asks.
    assert!(log().contains("not ebpf: "), "{}", log());
    assert!(log().contains("seccomp"), "{}", log());
    let told = status(&podman, "old")["rung"].clone();
    assert_eq!(told["ours"], true, "{told}");
    let why = told["why"].as_str().expect("words");
    assert!(why.contains("SO_INCOMING_CPU is set on") && why.contains("cannot be seen"), "{why}");
    let port = PORT.to_string();
    let told = podman.exec(agent, &["/reuseport-steer", "metrics", "--port", &port]);
    let told = Metrics::of(&told);
    assert_eq!(told.value("rung", &[("rung", "incoming-cpu")]), 1);
    assert_eq!(told.value("steered", &[]), 1);
    assert_eq!(groups(&bpffs), 0, "{:?}", bpffs.pins());
}
