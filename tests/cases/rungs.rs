//! The rungs below eBPF: each steers, is named, and is undone; what a server set itself stays.

use reuseport_tests::binary::{Cli, Outcome};
use reuseport_tests::client::{Target, burst, datagrams};
use reuseport_tests::hostile::{Deed, Stranger, attach_classic};
use reuseport_tests::load::Load;
use reuseport_tests::observe::threads;
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, require};
use serde_json::{Value, json};

use crate::scene::{Scene, refused};

const NOBODY: u32 = 65534;
/// Some other user.
const SERVER: u32 = 33;

/// Workers of another user, one for each CPU.
fn others() -> Scene {
    require::cpus(2);
    let spec = Spec { user: Some((SERVER, SERVER)), ..Spec::default() };
    Scene::of(&vec![spec; cpus().len()])
}

impl Scene {
    /// A run by an ordinary user who may take listeners, and nothing else.
    fn taker(&self, verb: &str, more: &[&str]) -> Cli<'_> {
        self.cli(verb, more).uid(NOBODY).capabilities(&["sys_ptrace"])
    }

    /// `--rung` of `attach`, as that user; the report of the one group.
    fn puts_on(&self, rung: &str) -> Value {
        self.taker("attach", &["--rung", rung, "--json"]).run().ok().json()[0].clone()
    }

    /// What `status` says, as that user.
    fn told(&self) -> Value {
        self.taker("status", &["--json"]).run().ok().json()[0].clone()
    }

    /// CPUs that the listeners prefer, in their order.
    fn preferred(&self) -> Vec<Value> {
        let status = self.told();
        let listeners = status["listeners"].as_array().expect("listeners").clone();
        listeners.iter().map(|listener| listener["incoming_cpu"].clone()).collect()
    }
}

fn problems(status: &Value) -> String {
    status["problems"].to_string()
}

fn no_cpu(scene: &Scene) {
    assert!(scene.preferred().iter().all(Value::is_null), "{:?}", scene.preferred());
}

#[test]
fn incoming_cpu_takes_the_right_to_take_listeners_and_nothing_else() {
    let scene = others();
    no_cpu(&scene);
    // By default a refusal is one, and names what would do.
    let words = ["Permission denied", "--rung auto", "incoming-cpu"];
    scene.refuses(&scene.taker("attach", &[]), 5, &words);
    no_cpu(&scene);
    let report = scene.puts_on("auto");
    assert_eq!(report["rung"]["rung"], "incoming-cpu", "{report:#}");
    let ebpf = &report["rung"]["passed_over"][0];
    assert_eq!((&ebpf["rung"], &ebpf["kind"]), (&json!("ebpf"), &json!("not_permitted")));
    assert_eq!(report["applied"], json!({"set": cpus().len(), "left": 0}));
    assert_eq!(report["attached"], Value::Null);
    scene.steered();
    assert_eq!(scene.preferred(), cpus().iter().map(|&cpu| json!(cpu)).collect::<Vec<_>>());
    let status = scene.told();
    assert_eq!(status["rung"]["rung"], "incoming-cpu", "{status:#}");
    assert_eq!(status["rung"]["ours"], true, "{status:#}");
    assert!(status["rung"]["why"].to_string().contains("by us"), "{status:#}");
    // Why not a better one is what the same command would come to now.
    let auto = &status["rung"]["auto"];
    assert_eq!(auto["rung"], "incoming-cpu", "{status:#}");
    assert_eq!(auto["passed_over"].as_array().map(Vec::len), Some(1), "{status:#}");
    let why = &auto["passed_over"][0];
    assert_eq!((&why["rung"], &why["kind"]), (&json!("ebpf"), &json!("not_permitted")));
    let seen = scene.taker("status", &[]).run().ok();
    for words in ["would take incoming-cpu (no ebpf: ", "CAP_BPF is missing"] {
        assert!(seen.stdout.contains(words), "{words}: {seen}");
    }
    // Who may look sees that it is not a program, and that eBPF is to be had by now.
    let seen = scene.cli("status", &[]).run().ok();
    for words in [
        "rung incoming-cpu: no program is attached",
        "would take ebpf\n",
        "(why incoming-cpu was taken when it was attached is not remembered)",
    ] {
        assert!(seen.stdout.contains(words), "{words}: {seen}");
    }
    // Again: the same.
    assert_eq!(scene.puts_on("auto")["rung"], report["rung"]);
    scene.steered();
    let detached = scene.taker("detach", &["--json"]).run().ok().json();
    assert_eq!(detached[0]["outcome"], "detached", "{detached:#}");
    no_cpu(&scene);
    scene.hashed();
    // Now it is not known any more whether there is something to detach.
    refused(&scene.taker("detach", &[]), 5, &["Permission denied"]);
    assert!(scene.bpffs.pins().is_empty());
}

#[test]
fn auto_says_what_the_better_rung_lacks() {
    let scene = others();
    let auto = ["--rung", "auto", "--json"];
    let says = |scene: &Scene, cli: Cli<'_>, word: &str| {
        let report = cli.run().ok().json()[0].clone();
        assert_eq!(report["rung"]["rung"], "incoming-cpu", "{report:#}");
        let why = report["rung"]["passed_over"][0]["why"].to_string();
        assert!(why.contains(word), "{why} does not say {word:?}");
        scene.steered();
        scene.taker("detach", &[]).run().ok();
    };
    says(&scene, scene.cli("attach", &auto).capabilities(&["sys_ptrace"]), "CAP_BPF is missing");
    let filter = reuseport_tests::hostile::seccomp(libc::ENOSYS, &[libc::SYS_bpf]);
    says(&scene, scene.cli("attach", &auto).through(filter), "no bpf system call");
    let words = ["attach", "--port", "8080", "--netns", "/proc/self/ns/net", "--bpffs", "/proc"];
    let elsewhere = Cli::new(words.iter().chain(&auto)).netns(&scene.netns);
    says(&scene, elsewhere, "/proc is not a mounted");
    // Where nothing is in the way it is eBPF.
    let report = scene.cli("attach", &auto).run().ok().json()[0].clone();
    assert_eq!(report["rung"], json!({"rung": "ebpf", "passed_over": []}));
    assert_eq!(scene.attached()["state"], "program");
    scene.cli("detach", &[]).run().ok();
    // Last: from here on the base directory is that user's.
    let scene = others();
    scene.bpffs.owned_by(NOBODY);
    says(&scene, scene.taker("attach", &auto), "CAP_BPF is missing");
}

#[test]
fn without_the_right_to_take_listeners_no_rung_is_to_be_had() {
    let scene = others();
    for rung in ["auto", "incoming-cpu", "classic-bpf", "hash"] {
        let cli = scene.cli("attach", &["--rung", rung]).capabilities(&["dac_override"]);
        scene.refuses(&cli, 5, &["CAP_SYS_PTRACE is missing"]);
    }
    let filter = reuseport_tests::hostile::seccomp(libc::EPERM, &[libc::SYS_pidfd_getfd]);
    for rung in ["auto", "incoming-cpu", "classic-bpf"] {
        let cli = scene.cli("attach", &["--rung", rung]).through(filter.clone());
        scene.refuses(&cli, 5, &["seccomp"]);
    }
    no_cpu(&scene);
    scene.hashed();
}

#[test]
fn a_dry_run_changes_nothing() {
    let scene = others();
    for (rung, named) in [("auto", "incoming-cpu"), ("incoming-cpu", "incoming-cpu")] {
        let run = scene.taker("attach", &["--rung", rung, "--dry-run"]).run().ok();
        assert!(run.stdout.contains("nothing was changed"), "{run}");
        assert!(run.stdout.contains(&format!("rung {named}")), "{run}");
    }
    scene.taker("attach", &["--rung", "classic-bpf", "--dry-run"]).run().ok();
    scene.cli("attach", &["--rung", "hash", "--dry-run"]).run().ok();
    no_cpu(&scene);
    scene.hashed();
}

#[test]
fn what_the_server_set_itself_is_left_alone() {
    require::cpus(2);
    let [first, second, ..] = cpus()[..] else { unreachable!("two CPUs are required") };
    let own = Spec { incoming_cpu: Some(first), ..Spec::default() };
    let scene = Scene::of(&[own, Spec::default()]);
    let servers = vec![json!(first), Value::Null];
    assert_eq!(scene.preferred(), servers);
    let status = scene.told();
    assert_eq!(
        (&status["rung"]["rung"], &status["rung"]["ours"]),
        (&json!("incoming-cpu"), &json!(false))
    );
    let report = scene.puts_on("incoming-cpu");
    assert_eq!(report["applied"], json!({"set": 1, "left": 1}));
    assert!(report["notices"].to_string().contains("left alone"), "{report:#}");
    scene.steered();
    let why = scene.told()["rung"]["why"].to_string();
    assert!(why.contains("1 of them by the server itself"), "{why}");
    let refused = scene.taker("attach", &["--rung", "classic-bpf"]).run().fails(6);
    assert!(refused.stderr.contains("sets SO_INCOMING_CPU on its listeners itself"), "{refused}");
    assert_eq!(scene.preferred(), [json!(first), json!(second)]);
    let detached = scene.taker("detach", &[]).run().ok();
    assert!(detached.stdout.contains("set on 1 listeners by the server itself"), "{detached}");
    assert_eq!(scene.preferred(), servers);
}

#[test]
fn workers_that_came_or_moved_are_told_and_put_right() {
    let mut scene = others();
    let [first, second, ..] = cpus()[..] else { unreachable!("two CPUs are required") };
    scene.puts_on("incoming-cpu");
    scene.workers[1].kill();
    // Whoever is there no more takes nothing away: the hash serves its CPU.
    let tally = burst(&scene.netns, second, &Target::plain("127.0.0.1:8080"), 20);
    assert_eq!((tally.answered(), tally.failed()), (20, 0), "{tally}");
    let spec =
        Spec { index: 1, cpus: vec![second], user: Some((SERVER, SERVER)), ..Spec::default() };
    scene.workers[1] = Worker::start(&scene.netns, &spec);
    assert!(problems(&scene.told()).contains("1 listeners have no CPU"), "{:#}", scene.told());
    scene.puts_on("incoming-cpu");
    scene.steered();
    for tid in threads(scene.workers[1].pid()) {
        reuseport_tests::sys::pin(tid as i32, &[first]).expect("pin a worker");
    }
    assert!(problems(&scene.told()).contains("it moved"), "{:#}", scene.told());
    scene.puts_on("incoming-cpu");
    let tally = burst(&scene.netns, first, &Target::plain("127.0.0.1:8080"), 60);
    assert_eq!(tally.by_worker(first).len(), 2, "those on one CPU share it: {tally}");
    scene.taker("detach", &[]).run().ok();
}

/// What can be done about a worker that hangs, or is to go.
#[test]
fn a_worker_of_weight_0_loses_its_cpu() {
    let scene = others();
    let [first, second, ..] = cpus()[..] else { unreachable!("two CPUs are required") };
    let weight = format!("{}=0", scene.workers[1].pid());
    let attach = |rung: &str| {
        scene.taker("attach", &["--rung", rung, "--weight", &weight]).run().ok();
        burst(&scene.netns, second, &Target::plain("127.0.0.1:8080"), 60)
    };
    // It keeps its part of what is hashed, and that is all that is left of its CPU.
    scene.puts_on("incoming-cpu");
    let tally = attach("incoming-cpu");
    assert_eq!((tally.failed(), tally.by_worker(second).len()), (0, cpus().len()), "{tally}");
    assert_eq!(scene.preferred()[..2], [json!(first), Value::Null]);
    let tally = attach("classic-bpf");
    assert_eq!((tally.failed(), tally.by_worker(second).get("1")), (0, None), "{tally}");
    // That is what there is in the place of draining.
    let pid = scene.workers[1].pid().to_string();
    let words = ["not steered, or not by eBPF", "--weight PID=0"];
    let here = ["--pid", &pid, "--netns", "/proc/self/ns/net"];
    scene.refuses(&scene.cli("drain", &here), 3, &words);
    scene.taker("detach", &[]).run().ok();
}

#[test]
fn other_protocols_and_families() {
    require::cpus(2);
    let place = |cpu: u32| cpus().iter().position(|&it| it == cpu).expect("ours").to_string();
    for rung in ["incoming-cpu", "classic-bpf"] {
        let scene = Scene::of(&vec![Spec { addr: "::", ..Spec::default() }; cpus().len()]);
        scene.puts_on(rung);
        for (cpu, address) in
            cpus().iter().flat_map(|&cpu| [(cpu, "[::1]:8080"), (cpu, "127.0.0.1:8080")])
        {
            burst(&scene.netns, cpu, &Target::plain(address), 20).assert_local(place);
        }
        scene.taker("detach", &[]).run().ok();
    }
    let scene = Scene::of(&vec![Spec { udp: true, ..Spec::default() }; cpus().len()]);
    scene.taker("attach", &["--udp", "--rung", "incoming-cpu"]).run().ok();
    for cpu in cpus() {
        datagrams(&scene.netns, cpu, &Target::plain("127.0.0.1:8080"), 20).assert_local(place);
    }
    let refused = scene.taker("attach", &["--udp", "--rung", "classic-bpf"]).run().fails(2);
    assert!(refused.stderr.contains("order of UDP sockets"), "{refused}");
    scene.taker("detach", &["--udp"]).run().ok();
}

#[test]
fn options_that_take_ebpf_are_refused() {
    let scene = others();
    for policy in ["hash", "random", "round-robin"] {
        for rung in ["incoming-cpu", "classic-bpf"] {
            let cli = scene.taker("attach", &["--rung", rung, "--policy", policy]);
            scene.refuses(&cli, 2, &["--rung", rung, "no policy but cpu"]);
        }
        let report = scene.taker("attach", &["--rung", "auto", "--policy", policy, "--json"]);
        let report = report.run().ok().json()[0].clone();
        assert_eq!(report["rung"]["rung"], "hash", "{report:#}");
        assert_eq!(report["rung"]["passed_over"].as_array().map(Vec::len), Some(3), "{report:#}");
    }
    // Of a group that nobody steers it is told too, and on eBPF there is nothing to tell.
    assert_eq!(scene.told()["rung"]["auto"]["rung"], "incoming-cpu");
    scene.cli("attach", &[]).run().ok();
    let status = scene.cli("status", &["--json"]).run().ok().json()[0].clone();
    assert_eq!(status["rung"]["auto"], Value::Null, "{status:#}");
    scene.cli("detach", &[]).run().ok();
    no_cpu(&scene);
    scene.hashed();
}

#[test]
fn classic_bpf_holds_until_a_member_leaves() {
    require::cpus(2);
    let [first, second, ..] = cpus()[..] else { unreachable!("two CPUs are required") };
    let spec = |cpu| Spec { cpus: vec![cpu], ..Spec::default() };
    let mut scene = Scene::of(&[spec(first), spec(second), spec(first), spec(second)]);
    let answered_by = |scene: &Scene, cpu: u32| -> Vec<String> {
        let tally = burst(&scene.netns, cpu, &Target::plain("127.0.0.1:8080"), 60);
        assert_eq!((tally.answered(), tally.failed()), (60, 0), "{tally}");
        tally.by_worker(cpu).keys().map(|&name| name.to_owned()).collect()
    };
    let report = scene.puts_on("classic-bpf");
    for word in ["until a listener joins or leaves", "CVE-2026-52910", "none has left"] {
        assert!(report["notices"].to_string().contains(word), "{word}: {report:#}");
    }
    assert_eq!(answered_by(&scene, first), ["0", "2"]);
    assert_eq!(answered_by(&scene, second), ["1", "3"]);
    assert_eq!(scene.told()["rung"]["rung"], "classic-bpf");
    assert_eq!(scene.attached()["state"], "classic");

    // The last moves into the gap: those of `first` now go to a worker of `second` too.
    scene.workers[0].kill();
    assert_eq!(answered_by(&scene, first), ["2", "3"]);
    assert!(problems(&scene.told()).contains("to wrong workers"), "{:#}", scene.told());
    let report = scene.puts_on("classic-bpf");
    assert!(!report["notices"].to_string().contains("none has left"), "{report:#}");
    assert_eq!(answered_by(&scene, first), ["2"]);
    assert_eq!(answered_by(&scene, second), ["1", "3"]);
    assert!(!problems(&scene.told()).contains("wrong workers"));

    // Two at once: nobody can tell the order any more, and nobody loses a connection by that.
    scene.workers.drain(..3);
    answered_by(&scene, first);
    answered_by(&scene, second);
    scene.workers.push(Worker::start(&scene.netns, &spec(first)));
    let words = ["--rung classic-bpf", "2 left and 1 joined", "restart of the whole group"];
    scene.refuses(&scene.taker("attach", &["--rung", "classic-bpf"]), 2, &words);
    assert!(problems(&scene.told()).contains("not known any more"), "{:#}", scene.told());
    scene.puts_on("incoming-cpu");
    assert_eq!(scene.attached()["state"], "nothing");
    assert_eq!(answered_by(&scene, first), ["0"]);
    scene.taker("detach", &[]).run().ok();
    no_cpu(&scene);
}

#[test]
fn classic_bpf_of_others_is_left_alone_and_ours_is_known() {
    let scene = others();
    attach_classic(&scene.netns, &scene.workers[0]);
    for rung in ["auto", "incoming-cpu", "classic-bpf"] {
        let words = ["classic BPF program", "--takeover"];
        scene.refuses(&scene.cli("attach", &["--rung", rung]), 7, &words);
    }
    assert_eq!(scene.cli("detach", &["--json"]).run().fails(7).json()[0]["outcome"], "foreign");
    assert_eq!(scene.attached()["state"], "classic");
    scene.cli("attach", &["--rung", "incoming-cpu", "--takeover"]).run().ok();
    assert_eq!(scene.attached()["state"], "nothing");
    scene.steered();
    // Ours needs no leave to be replaced.
    for rung in ["classic-bpf", "ebpf", "classic-bpf", "auto"] {
        scene.cli("attach", &["--rung", rung]).run().ok();
        scene.steered();
    }
    scene.cli("attach", &["--rung", "classic-bpf"]).run().ok();
    // Somebody else's program over it is theirs.
    let _stranger = Stranger::start(&scene.netns, &scene.workers[0], Deed::Program);
    assert_eq!(scene.told()["rung"]["rung"], "classic-bpf", "that user cannot see better");
    assert_eq!(scene.cli("detach", &["--json"]).run().fails(7).json()[0]["outcome"], "foreign");
    assert_eq!(scene.attached()["state"], "program");
    no_cpu(&scene);
}

#[test]
fn the_hash_rung_undoes_every_other() {
    let scene = others();
    for rung in ["ebpf", "incoming-cpu", "classic-bpf"] {
        scene.cli("attach", &["--rung", rung]).run().ok();
        scene.steered();
        let report = scene.cli("attach", &["--rung", "hash", "--json"]).run().ok().json();
        assert_eq!(report[0]["rung"]["rung"], "hash", "{report:#}");
        scene.hashed();
        no_cpu(&scene);
        assert!(scene.bpffs.pins().is_empty());
    }
}

#[test]
fn from_rung_to_rung_under_load() {
    let scene = others();
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 2);
    let ladder = ["ebpf", "incoming-cpu", "classic-bpf", "hash"];
    for (round, &rung) in (0..5).flat_map(|_| &ladder).enumerate() {
        let outcome: Outcome = scene.cli("attach", &["--rung", rung]).run().ok();
        assert!(!outcome.stdout.contains("left alone"), "round {round}: {outcome}");
        load.advance(50);
        if rung != "hash" {
            scene.steered();
        }
    }
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    scene.hashed();
    no_cpu(&scene);
}
