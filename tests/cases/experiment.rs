//! `experiment`: finds an answer that is known, says when there is none, and leaves the port as it
//! was, however it ends.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::binary::{self, Cli, Outcome};
use reuseport_tests::client::Target;
use reuseport_tests::leak;
use reuseport_tests::load::Load;
use reuseport_tests::process::Reaped;
use reuseport_tests::servers::{PgBouncer, Postgres};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually, require};
use serde_json::{Value, json};

use crate::scene::{Scene, refused};

/// Longest that anything may take on a busy machine: more is a hang.
const PATIENCE: Duration = Duration::from_mins(3);

const README: &str = include_str!("../../README.md");

/// A few connections to the scene's port.
const CONNECT: &str = "for i in 1 2 3 4; do : <>/dev/tcp/127.0.0.1/8080; done";

/// A load, kept in a directory of its own.
struct Script(tempfile::TempDir);

impl Script {
    /// Made of lines for bash.
    fn new(lines: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("load.sh"), lines).expect("write a script");
        Self(directory)
    }

    /// `$1` is a directory of its own.
    fn command(&self) -> String {
        format!("bash {0}/load.sh {0}", self.path().display())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Scene {
    fn experiment(&self, load: &str, more: &[&str]) -> Cli<'_> {
        let all = ["--load", load].into_iter().chain(more.iter().copied());
        self.cli("experiment", &all.collect::<Vec<_>>()).limit(PATIENCE)
    }

    /// What `status` says of how the group is steered, without what counts up.
    fn steering(&self) -> Value {
        let status = self.cli("status", &["--json"]).run().ok().json()[0].clone();
        let listeners = status["listeners"].as_array().expect("listeners").iter();
        let listeners: Vec<_> = listeners
            .map(|it| json!([it["cookie"], it["weight"], it["role"], it["incoming_cpu"]]))
            .collect();
        json!({
            "rung": status["rung"]["rung"],
            "policy": status["steering"]["policy"],
            "rows": status["steering"]["rows"],
            "listeners": listeners,
            "problems": status["problems"],
        })
    }

    /// Runs an experiment that must fail with `code`, and leave the port on the kernel's hash.
    fn fails(&self, load: &str, more: &[&str], code: i32, words: &[&str]) -> Outcome {
        let metric = ["--metric", "rate = (.*)"];
        let more: Vec<_> = metric.into_iter().chain(more.iter().copied()).collect();
        let outcome = refused(&self.experiment(load, &more), code, words);
        self.unsteered();
        outcome
    }

    fn unsteered(&self) {
        assert_eq!(self.attached()["state"], "nothing");
        let left = self.bpffs.pins();
        assert!(left.is_empty(), "pins or locks are left: {left:?}");
    }

    /// Starts an experiment whose load does not end, waits until it runs, and sends `signal`.
    fn interrupt(&self, compare: &str, signal: i32) {
        let script = Script::new(&format!("{CONNECT}\ntouch $1/runs\nsleep 600 & wait"));
        let bpffs = self.bpffs.path().to_str().expect("a path of ours is text");
        // Whoever runs the tests may ignore some, as `nohup` does, and that is inherited.
        let mut command = self.netns.command("env");
        command.arg("--default-signal").arg(binary::path());
        command.args(["experiment", "--port", "8080", "--netns", "/proc/self/ns/net"]);
        command.args(["--bpffs", bpffs, "--compare", compare, "--load", &script.command()]);
        command.args(["--metric", "x = (.*)"]).stdin(Stdio::null());
        let mut run = Reaped(command.stderr(Stdio::null()).spawn().expect("start the command"));
        let runs = script.path().join("runs");
        assert!(eventually(PATIENCE, || runs.exists() || !run.alive()) && run.alive());
        let meanwhile = self.steering();
        run.signal(signal);
        let status = run.wait(PATIENCE).expect("it ends");
        assert_eq!(status.code(), Some(1), "{status}");
        assert_ne!(
            meanwhile,
            self.steering(),
            "the experiment changed nothing: no proof of anything"
        );
    }
}

#[test]
fn a_known_answer_is_found_and_nothing_is_left() {
    require::cpus(2);
    let scene = Scene::new();
    let pins = scene.bpffs.base();
    // Half as much again while our program's pins are there; what stands in for noise follows from
    // the number of runs before, so that the seed alone decides.
    let script = Script::new(&format!(
        "{CONNECT}
         echo >> $1/runs
         noise=$(( $(wc -l < $1/runs) * 7 % 10 ))
         if compgen -G '{}/tcp4-*' > $1/null
         then echo \"rate = $((1500 + noise)), wait = $((100 + noise)) us\" >&2
         else echo \"rate = $((1000 + noise)), wait = $((200 + noise)) us\"
         fi",
        pins.display()
    ));
    let more = ["--compare", "hash,cpu,hash", "--rounds", "8", "--seed", "3"];
    let metrics = ["--metric", "rate = ([0-9]+)", "--metric", "latency<=wait = ([0-9]+) us"];
    let run = scene.experiment(&script.command(), &[&more[..], &metrics, &["--json"]].concat());
    let outcome = run.run().ok();
    for part in ["2 listeners", "is not steered now", "hash, cpu, hash in turn", "Seed 3"] {
        assert!(outcome.stderr.contains(part), "{part:?}: {outcome}");
    }
    let report = outcome.json();
    assert_eq!(report["schema"], "reuseport-steer/experiment/1");
    assert_eq!((&report["rounds"], &report["seed"]), (&json!(8), &json!(3)));
    assert_eq!(report["found"], json!({"rung": "hash", "policy": null, "weights": []}));
    let names: Vec<_> =
        report["metrics"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["rate", "latency"]);
    for (metric, least, most) in [(0, 1.47, 1.53), (1, 0.48, 0.56)] {
        let [cpu, again] = [0, 1].map(|it| &report["metrics"][metric]["compared"][it]);
        assert_eq!(cpu["verdict"], "helps", "{cpu:#}");
        for bound in cpu["ratio"]["ci95"].as_array().unwrap() {
            assert!((least..most).contains(&bound.as_f64().unwrap()), "{cpu:#}");
        }
        assert_eq!(again["verdict"], "cannot_tell", "{again:#}");
        assert!(again["more_rounds"].is_u64(), "{again:#}");
    }
    // The program's own word: it was in force, and in its rounds only.
    assert_eq!(report["arms"][1]["selections"], 32, "{:#}", report["arms"]);
    assert_eq!(report["arms"][1]["locality"], 1.0, "{:#}", report["arms"]);
    assert_eq!(report["arms"][0]["selections"], Value::Null);
    assert_eq!(report["arms"][2]["control"], true);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 24);
    let orders: std::collections::BTreeSet<String> = runs
        .chunks(3)
        .map(|round| round.iter().map(|run| run["arm"].to_string()).collect())
        .collect();
    assert!(orders.len() > 1, "the order is random: {orders:?}");
    scene.unsteered();
    scene.hashed();
}

/// Of a load that prints nothing, the kernel knows.
#[test]
fn what_the_kernel_saw_is_a_figure_too() {
    require::cpus(2);
    let scene = Scene::new();
    let load = Script::new(&format!("{CONNECT}\nsleep 0.2"));
    let metrics = ["kernel:/total/accepted", "wait<=kernel:/total/wait/p99_us"];
    let more = ["--rounds", "6", "--metric", metrics[0], "--metric", metrics[1], "--json"];
    let report = scene.experiment(&load.command(), &more).run().ok().json();
    let runs = report["runs"].as_array().expect("runs");
    let values = |metric: usize| runs.iter().map(move |it| it["values"][metric].as_f64().unwrap());
    assert_eq!(runs.len(), 12);
    // A worker of a busy machine may accept the last ones in the next run.
    let accepted: f64 = values(0).sum();
    assert!((44.0..=52.0).contains(&accepted), "4 in each run: {runs:#?}");
    assert!(values(1).all(|wait| wait > 0.0 && wait < 10e6), "{runs:#?}");
    let script = load.command();
    let missing = ["--metric", "kernel:/total/wait/p98_us"];
    refused(&scene.experiment(&script, &missing), 9, &["p98_us", "trace --json"]);
    scene.unsteered();
}

#[test]
fn what_it_found_is_restored_when_a_signal_ends_it() {
    require::cpus(2);
    let scene = Scene::new();
    let nothing = scene.steering();
    scene.interrupt("cpu,random", libc::SIGINT);
    assert_eq!(scene.steering(), nothing);
    scene.unsteered();

    let weight = format!("{}=25", scene.workers[1].pid());
    scene.cli("attach", &["--policy", "round-robin", "--weight", &weight]).run().ok();
    let steered = scene.steering();
    assert_eq!(steered["policy"], "round-robin");
    scene.interrupt("hash,incoming-cpu", libc::SIGTERM);
    assert_eq!(scene.steering(), steered);
    scene.interrupt("cpu,random", libc::SIGHUP);
    assert_eq!(scene.steering(), steered);
    scene.cli("detach", &[]).run().ok();

    scene.cli("attach", &["--rung", "incoming-cpu"]).run().ok();
    let preferred = scene.steering();
    assert_eq!(preferred["rung"], "incoming-cpu");
    scene.interrupt("hash,cpu", libc::SIGQUIT);
    assert_eq!(scene.steering(), preferred);
    scene.cli("detach", &[]).run().ok();
    assert_eq!(scene.steering(), nothing);
}

#[test]
fn clients_lose_nothing_by_it() {
    require::cpus(2);
    let scene = Scene::new();
    let weight = format!("{}=50", scene.workers[0].pid());
    scene.cli("attach", &["--weight", &weight]).run().ok();
    let steered = scene.steering();
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &cpus(), 2);
    load.advance(100);
    let more = ["--compare", "hash,cpu,incoming-cpu", "--rounds", "6", "--warmup", "0"];
    let outcome = scene.experiment("echo x = 1", &[&more[..], &["--metric", "x = (.*)"]].concat());
    let outcome = outcome.run().ok();
    load.advance(100);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    assert!(tally.answered() > 200, "{tally}");
    assert_eq!(scene.steering(), steered);
    // A figure that never changes has an answer, too.
    assert!(outcome.stdout.contains("x: cpu cannot be told apart: +0.0 to +0.0 %"), "{outcome}");
    assert!(outcome.stderr.contains("steered, policy cpu"), "{outcome}");
    assert!(outcome.stderr.contains("at 50 %"), "{outcome}");
}

#[test]
fn a_load_that_gives_no_figure_ends_it() {
    require::cpus(2);
    let scene = Scene::new();
    let connect = |then: &str| Script::new(&format!("{CONNECT}\n{then}"));
    let of = |then: &str, more: &[&str], words: &[&str]| {
        let script = connect(then);
        scene.fails(&script.command(), more, 9, words)
    };
    of("echo no such host >&2; exit 3", &[], &["load command failed", "status: 3", "no such host"]);
    of("echo hello", &[], &["--metric rate", "not in what the load printed", "hello"]);
    of("echo rate = fast", &[], &["--metric rate", "`fast` is not a finite number"]);
    of("sleep 600", &["--timeout", "200ms"], &["killed after 0.2 s (--timeout)"]);
    scene.fails("no-such-program", &[], 9, &["127", "not found"]);
    // It runs well, and connects elsewhere.
    scene.fails("echo rate = 1", &[], 9, &["made no connection to tcp 0.0.0.0:8080"]);
    // In the middle: what was found is in force again, and the load's failure is told.
    let later = connect("echo >> $1/runs; echo rate = 1; [ $(wc -l < $1/runs) -lt 7 ]");
    scene.fails(&later.command(), &[], 9, &["load command failed", "status: 1"]);
}

#[test]
fn who_else_steers_meanwhile_ends_it() {
    require::cpus(2);
    let scene = Scene::new();
    let bpffs = scene.bpffs.path().to_str().expect("a path of ours is text");
    let verb = |verb: &str| {
        let here = format!("--port 8080 --netns /proc/self/ns/net --bpffs {bpffs}");
        let line = format!("{} {verb} {here} >&2", binary::path().display());
        Script::new(&format!("{CONNECT}\n{line}\necho rate = 1"))
    };
    // In whichever mode it happens first.
    let words = ["after a run of the load ", "not in force any more"];
    scene.fails(&verb("attach").command(), &["--compare", "hash,random"], 7, &words);
    scene.fails(&verb("detach").command(), &["--compare", "random,random"], 7, &words);

    // Whom an operator drained stays so.
    let load = verb("drain --slot 0");
    let more = ["--metric", "rate = (.*)", "--compare", "cpu,random"];
    let drained = scene.experiment(&load.command(), &more);
    refused(&drained, 7, &["drained meanwhile", "left as it is now"]);
    let status = scene.cli("status", &["--json"]).run().ok().json()[0].clone();
    let roles: Vec<_> =
        status["listeners"].as_array().expect("listeners").iter().map(|it| &it["role"]).collect();
    assert!(roles.contains(&&json!("drained")), "{status:#}");
    scene.cli("detach", &[]).run().ok();

    // What was steered before is steered again, and without whom was drained.
    scene.cli("attach", &[]).run().ok();
    refused(&scene.experiment(&load.command(), &more), 7, &["drained meanwhile"]);
    let steered = scene.steering();
    assert_eq!(steered["policy"], "cpu", "{steered:#}");
    assert!(steered["listeners"].to_string().contains("drained"), "{steered:#}");
    scene.cli("detach", &[]).run().ok();
}

#[test]
fn what_cannot_be_an_experiment_is_refused() {
    require::cpus(2);
    let mut scene = Scene::new();
    let refuses = |scene: &Scene, more: &[&str], code: i32, words: &[&str]| {
        scene.refuses(&scene.experiment("echo x = 1; exit 5", more), code, words);
    };
    let x = ["--metric", "x = (.*)"];
    let with = |more: &[&'static str]| [&x[..], more].concat();
    refuses(&scene, &with(&["--rounds", "5"]), 2, &["5 rounds: expected 6 to 10000"]);
    refuses(&scene, &with(&["--compare", "cpu"]), 2, &["name two or more"]);
    refuses(&scene, &with(&["--compare", "cpu,best"]), 2, &["best"]);
    refuses(&scene, &[], 2, &["--metric"]);
    refuses(&scene, &["--metric", "x = .*"], 2, &["one group in parentheses"]);
    refuses(&scene, &["--metric", "x = (.*"], 2, &["--metric"]);
    refuses(&scene, &["--metric", "json:x"], 2, &["JSON pointer"]);
    refuses(&scene, &with(&["--addr", "127.0.0.9"]), 3, &["127.0.0.9"]);
    let elsewhere = scene.cli_at(8081, "experiment", &["--load", "true", "--metric", "x(.)"]);
    scene.refuses(&elsewhere, 3, &["8081"]);
    // What is attached cannot be seen, so it could not be put back.
    let blind = scene.experiment("true", &x).capabilities(&["sys_ptrace"]);
    scene.refuses(&blind, 5, &["it cannot be seen how it is steered"]);
    // Others' work.
    scene.cli("attach", &[]).run().ok();
    let slot = ["--slot", "1"];
    scene.cli("drain", &slot).run().ok();
    refuses(&scene, &x, 7, &["drained", "undrain"]);
    scene.cli("undrain", &slot).run().ok();
    scene.cli("detach", &[]).run().ok();
    {
        let agent = Agent::start(&scene.netns, &scene.bpffs, 8080, &["--detach-on-exit"]);
        let pid = agent.pid().to_string();
        refused(&scene.experiment("true", &x), 7, &["agent", &pid]);
        scene.steered();
    }
    scene.cli("detach", &[]).run().ok();
    let own = Spec { incoming_cpu: Some(cpus()[0]), port: 8082, ..Spec::default() };
    let others = [0, 1].map(|index| {
        let cpus = vec![cpus()[index as usize]];
        Worker::start(&scene.netns, &Spec { index, cpus, ..own.clone() })
    });
    let of_servers = scene.cli_at(8082, "experiment", &["--load", "true", "--metric", "x(.)"]);
    scene.refuses(&of_servers, 7, &["the server sets SO_INCOMING_CPU"]);
    drop(others);
    // One listener is no group.
    scene.workers.pop();
    scene.refuses(&scene.experiment("true", &x), 4, &["only one listener"]);
}

/// The README's command, as it is typed there.
#[test]
fn pgbench_through_two_pgbouncers_gets_an_answer() {
    require::cpus(2);
    let typed = README.lines().find_map(|line| line.strip_prefix("# reuseport-steer experiment "));
    let typed = typed.expect("the README has the command");
    leak::scene(|netns| {
        let postgres = Postgres::start(netns, 5432);
        let _bouncers = PgBouncer::one_per_cpu(netns, &postgres, 6432, &cpus());
        let here = "--netns /proc/self/ns/net";
        let line = format!("exec {} experiment {typed} {here}", binary::path().display());
        let outcome = Cli::new(["-c", &line]).binary("/bin/sh").netns(netns).limit(PATIENCE).run();
        let outcome = outcome.ok();
        println!("{}", outcome.stdout);
        let lines = || outcome.stdout.lines();
        let says = lines().find_map(|line| line.strip_prefix("tps: cpu ")).expect("an answer");
        let answers = ["helps: ", "hurts: ", "cannot be told apart: "];
        assert!(answers.iter().any(|answer| says.starts_with(answer)), "{says}");
        let local = "100.0 % to a worker of the receiving CPU.";
        assert!(
            lines().any(|line| line.starts_with("cpu: ") && line.ends_with(local)),
            "{outcome}"
        );
    });
}
