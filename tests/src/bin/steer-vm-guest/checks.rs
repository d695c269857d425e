//! What is tried, in the order of the table's rows.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use reuseport_tests::binary::{Cli, path};
use reuseport_tests::client::{Target, burst};
use reuseport_tests::cpus;
use reuseport_tests::process::tool;
use reuseport_tests::sys;
use reuseport_tests::worker::Spec;
use serde_json::Value;

use crate::migration;
use crate::rungs;
use crate::scene::{ADDRESS, PORT, Scene};
use crate::tracing;

/// A check says what it found.
type Check = fn() -> String;

/// Names are the table's.
pub(crate) const ALL: [(&str, Check); 29] = [
    ("kernel", kernel),
    ("CPUs", || cpus().len().to_string()),
    ("BTF", btf),
    ("without inet_diag", without_inet_diag),
    ("attach", attach),
    ("steered to the receiving CPU's worker", steers),
    ("the same over IPv6", steers_v6),
    ("from outside the network namespace", from_outside),
    ("status counts every connection", counts),
    ("attached program visible", owner),
    ("foreign program left alone", foreign),
    ("re-plan in place", replans),
    ("worker killed: second choice", second_choice),
    ("queued connections of a killed worker", migration::of_a_killed_worker),
    ("log of what cannot be steered", misses_logged),
    ("without CAP_PERFMON", without_perfmon),
    ("unprivileged_bpf_disabled=1", unprivileged_disabled),
    ("RLIMIT_MEMLOCK of 64 KiB", memlock),
    ("SO_INCOMING_CPU in a group", incoming_cpu),
    ("without CAP_BPF: --rung auto", rungs::auto),
    ("without CAP_BPF: --rung incoming-cpu", rungs::incoming_cpu),
    ("without CAP_BPF: --rung classic-bpf", rungs::classic_bpf),
    ("trace sees every connection", tracing::whole),
    ("trace where no function can be hooked", tracing::by_syscalls),
    ("trace with kernel.ftrace_enabled=0", tracing::without_ftrace),
    ("trace of the kernel's hash: on the receiving CPU", tracing::hashed),
    ("trace of a worker that stands still", tracing::waits),
    ("trace --events", tracing::events),
    ("detach", detaches),
];

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn kernel() -> String {
    read("/proc/version").split_whitespace().nth(2).expect("a release").to_owned()
}

pub(crate) fn btf() -> String {
    let there = Path::new("/sys/kernel/btf/vmlinux").exists();
    if there { "yes" } else { "no" }.to_owned()
}

/// A kernel whose module for listing sockets is missing: the error must name it. Loads it then.
fn without_inet_diag() -> String {
    let scene = Scene::new();
    let run = scene.cli("attach", &[]).run();
    let modules: Vec<_> = read("/modules/order").lines().map(str::to_owned).collect();
    for module in &modules {
        tool("insmod", &[&format!("/modules/{module}")]);
    }
    if run.code == Some(0) {
        return "built in".to_owned();
    }
    assert!(!modules.is_empty(), "no modules to load: {run}");
    run.fails(6).says("modprobe");
    "named in the error".to_owned()
}

fn attach() -> String {
    let (scene, report) = Scene::steered();
    let attached = &report["attached"];
    let status = scene.status();
    assert_eq!(status["steering"]["in_force"], true, "{status}");
    assert_eq!(status["steering"]["program_id"], attached["program_id"], "{status}");
    let program = if migrates(&report) { "select_or_migrate" } else { "select" };
    let notices = report["notices"].as_array().map_or(0, Vec::len);
    if notices == 0 { program.to_owned() } else { format!("{program}, {}", report["notices"]) }
}

pub(crate) fn migrates(report: &Value) -> bool {
    report["attached"]["migrates"].as_bool().expect("attached.migrates")
}

fn steers() -> String {
    let (scene, _) = Scene::steered();
    let answered = scene.assert_local(ADDRESS);
    format!("100 % of {answered}")
}

fn steers_v6() -> String {
    let scene = Scene::with(&Spec { addr: "::", ..Spec::default() });
    scene.attach(&[]);
    // A dual-stack listener serves both.
    let answered = scene.assert_local("[::1]:8080") + scene.assert_local(ADDRESS);
    format!("100 % of {answered}")
}

fn from_outside() -> String {
    let scene = Scene::new();
    let cli = |verb| Cli::new([verb, "--port", PORT, "--json"]);
    cli("attach").run().ok();
    scene.assert_local(ADDRESS);
    let status = cli("status").run().ok().json()[0].clone();
    assert_eq!(status["steering"]["in_force"], true, "{status}");
    cli("detach").run().ok();
    let socket = sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0).expect("a socket");
    match sys::netns_cookie(socket.as_fd()) {
        Ok(_) => "yes".to_owned(),
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{error}");
            "yes, by its inode (no SO_NETNS_COOKIE)".to_owned()
        }
    }
}

fn counts() -> String {
    let (scene, _) = Scene::steered();
    let answered = scene.assert_local(ADDRESS);
    let status = scene.status();
    let counters = &status["steering"]["counters"];
    for (name, expected) in [("first", answered), ("local", answered), ("second", 0)] {
        assert_eq!(counters[name], expected, "{name}: {counters}");
    }
    format!("{answered} of {answered}")
}

fn owner() -> String {
    let (scene, report) = Scene::steered();
    let attached = scene.status()["attached"].clone();
    if attached["state"] == "program" {
        assert_eq!(attached["id"], report["attached"]["program_id"]);
        return "yes".to_owned();
    }
    format!("no: {}", attached["why"].as_str().unwrap_or("no reason"))
}

/// Somebody else's program is one that our pins do not speak of.
fn foreign() -> String {
    let (scene, _) = Scene::steered();
    let other = "/run/other-bpffs";
    fs::create_dir_all(other).expect("a directory");
    tool("mount", &["-t", "bpf", "bpf", other]);
    let refused = scene.cli("attach", &["--bpffs", other]).run();
    let taken = scene.cli("attach", &["--bpffs", other, "--takeover", "--json"]).run();
    tool("umount", &[other]);
    refused.fails(7).says("--takeover");
    assert_eq!(taken.ok().json()[0]["attached"]["in_place"], false);
    scene.assert_local(ADDRESS);
    "yes".to_owned()
}

fn replans() -> String {
    let (scene, before) = Scene::steered();
    let order = cpus();
    let after = scene.attach(&["--policy", "hash"]);
    let again = scene.attach(&[]);
    for report in [&after, &again] {
        assert_eq!(report["attached"]["program_id"], before["attached"]["program_id"]);
        assert_eq!(report["attached"]["in_place"], true);
    }
    let answered = scene.assert_local(ADDRESS);
    assert_eq!(answered, 50 * order.len() as u64);
    "yes".to_owned()
}

fn second_choice() -> String {
    let (mut scene, _) = Scene::steered();
    let [first, .., last] = cpus()[..] else { return "needs two CPUs".to_owned() };
    scene.workers.pop().expect("a worker").kill();
    let tally = burst(&scene.netns, last, &Target::plain(ADDRESS), 50);
    assert_eq!((tally.answered(), tally.failed()), (50, 0), "{tally}");
    let status = scene.status();
    let counters = &status["steering"]["counters"];
    assert_eq!(counters["second"], 50, "{counters}");
    assert_eq!(counters["no_socket"], 0, "{counters}");
    burst(&scene.netns, first, &Target::plain(ADDRESS), 50).assert_local(|cpu| cpu.to_string());
    "100 % of 50".to_owned()
}

fn without_perfmon() -> String {
    let scene = Scene::new();
    let few = ["bpf", "net_admin", "sys_ptrace", "sys_resource", "dac_override"];
    scene.cli("attach", &[]).capabilities(&few).run().ok();
    scene.assert_local(ADDRESS);
    let state = scene.cli("status", &["--json"]).capabilities(&few).run().ok().json()[0].clone();
    assert_eq!(state["attached"]["state"], "unknown", "{state}");
    assert_eq!(state["steering"]["in_force"], true, "{state}");
    scene.cli("detach", &[]).capabilities(&few).run().ok();
    let logs = scene.cli("attach", &["--log-misses"]).capabilities(&few).run();
    if logs.code == Some(0) {
        return "steers".to_owned();
    }
    logs.fails(5).says("CAP_PERFMON");
    "steers; --log-misses asks for it".to_owned()
}

/// The setting of most distributions; it cannot be taken back before the next boot.
fn unprivileged_disabled() -> String {
    fs::write("/proc/sys/kernel/unprivileged_bpf_disabled", "1").expect("set the sysctl");
    without_perfmon()
}

/// With all workers but one gone the table's choices are mostly empty: those misses are logged,
/// and served by the last worker.
fn misses_logged() -> String {
    let mut scene = Scene::new();
    scene.attach(&["--log-misses"]);
    scene.assert_local(ADDRESS);
    scene.workers.truncate(1);
    let tally = scene.connect(ADDRESS, 10);
    assert_eq!(tally.failed(), 0, "{tally}");
    let status = scene.status();
    let missed = status["steering"]["counters"]["no_socket"].as_u64().expect("a counter");
    assert_eq!(status["steering"]["logs"], true, "{status}");
    assert!(cpus().len() < 3 || missed > 0, "{status}");
    let logged = |seconds: u32| {
        let log = format!("timeout {seconds} {} log --port {PORT}", path().display());
        let log = Cli::new(["sh", "-c", &log]).binary("/bin/busybox").netns(&scene.netns).run();
        let lines = log.stdout.lines().filter(|line| line.starts_with("miss ")).count() as u64;
        (lines, log)
    };
    let (mut lines, mut log) = logged(3);
    if lines < missed {
        // On a busy machine it may not even have begun.
        let (more, again) = logged(30);
        (lines, log) = (lines + more, again);
    }
    assert_eq!(lines, missed, "{log}");
    "yes".to_owned()
}

/// Kernels before 5.11 charge maps to the limit: with the right to raise it nobody need know, and
/// without it the error must name it.
fn memlock() -> String {
    let scene = Scene::new();
    let limited = || {
        let command = path().display().to_string();
        let script = format!("ulimit -l 64; exec {command} attach --port {PORT}");
        Cli::new(["sh", "-c", &script]).binary("/bin/busybox").netns(&scene.netns)
    };
    limited().run().ok();
    scene.assert_local(ADDRESS);
    scene.cli("detach", &[]).run().ok();
    let few = ["bpf", "perfmon", "net_admin", "sys_ptrace"];
    let run = limited().capabilities(&few).run();
    if run.code == Some(0) {
        return "not charged".to_owned();
    }
    run.fails(6).says("RLIMIT_MEMLOCK");
    "raised; named in the error where it cannot be".to_owned()
}

/// The kernel's own means, without BPF.
fn incoming_cpu() -> String {
    let args = ["demo", "--incoming-cpu", "--rounds", "1", "--seconds", "0.5", "--json"];
    let report = Cli::new(args).run().ok().json();
    let steered = &report["pairs"][0]["after"];
    let share = steered["locality"].as_f64().expect("a locality");
    assert_eq!(report["errors"], 0, "{report}");
    let word = if share > 0.999 { "honoured" } else { "ignored" };
    format!("{word} ({:.0} % local)", share * 100.0)
}

fn detaches() -> String {
    let (scene, _) = Scene::steered();
    scene.cli("detach", &[]).run().ok();
    let status = scene.status();
    assert_eq!(status["steering"], Value::Null, "{status}");
    assert!(
        matches!(status["attached"]["state"].as_str(), Some("nothing" | "unknown")),
        "{status}"
    );
    let tally = scene.connect(ADDRESS, 50);
    assert_eq!(tally.failed(), 0, "{tally}");
    let pins = fs::read_dir("/sys/fs/bpf/reuseport-steer").into_iter().flatten().count();
    assert_eq!(pins, 0, "pins left");
    "yes".to_owned()
}
