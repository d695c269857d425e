//! Command lines that are wrong, and what the command says about itself.

use std::fs;
use std::process::{Command, Stdio};

use reuseport_tests::binary::{self, Cli};
use reuseport_tests::process::{must, tool};

use crate::scene::{Scene, refused};

fn run(args: &[&str]) -> Cli<'static> {
    Cli::new(args)
}

#[test]
fn ports_that_are_none() {
    for verb in ["attach", "detach", "status", "log"] {
        for port in ["0", "70000", "-1", "http", "", "80 ", "8080,8081"] {
            let port = format!("--port={port}");
            refused(&run(&[verb, &port]), 2, &["--port", "--help"]);
        }
    }
    for verb in ["attach", "detach", "log"] {
        refused(&run(&[verb]), 2, &["--port", "required"]);
    }
    refused(&run(&["attach", "--port", "1", "--port", "2"]), 2, &["--port", "multiple times"]);
}

#[test]
fn words_that_mean_nothing() {
    refused(&run(&["atach", "--port", "80"]), 2, &["atach", "attach"]);
    refused(&run(&["attach", "--port", "80", "--polcy", "cpu"]), 2, &["--polcy", "--policy"]);
    refused(&run(&["attach", "--port", "80", "--policy", "queue"]), 2, &["queue", "round-robin"]);
    refused(&run(&["attach", "--port", "80", "extra"]), 2, &["extra"]);
    refused(&run(&["attach", "--port", "80", "--addr", "localhost"]), 2, &["--addr", "localhost"]);
    refused(&run(&["attach", "--port", "80", "--addr", "10.0.0.0/8"]), 2, &["--addr"]);
    refused(&run(&["attach", "--port", "80", "--pid", "0"]), 2, &["--pid"]);
    refused(&run(&["attach", "--port", "80", "--pid", "1", "--netns", "x"]), 2, &["--netns"]);
    refused(&run(&["attach", "--port", "80", "--bpffs", ""]), 2, &["--bpffs"]);
    refused(&run(&["completions", "tcsh"]), 2, &["tcsh", "bash"]);
    let outcome = run(&[]).run().fails(2);
    assert!(outcome.stderr.contains("attach"), "{outcome}");
}

#[test]
fn workers_orders_and_weights_that_cannot_be_read() {
    for (option, value, word) in [
        ("--worker", "1", "PID"),
        ("--worker", "x=1", "`x`"),
        ("--worker", "0=1", "`0`"),
        ("--worker", "1=", "no CPU"),
        ("--worker", "1=99999", "8191"),
        ("--worker", "1=3-1", "3-1"),
        ("--worker", "1/x=1", "`x`"),
        ("--order", "", "no CPU"),
        ("--order", "0,,1", "--order"),
        ("--order", "99999", "8191"),
        ("--order", "a", "`a`"),
        ("--weight", "1=-5", "-5"),
        ("--weight", "1=half", "half"),
        ("--weight", "1=99999", "10000"),
    ] {
        let value = format!("{option}={value}");
        refused(&run(&["attach", "--port", "80", &value]), 2, &[option, word]);
    }
}

#[test]
fn workers_orders_and_weights_that_fit_nothing() {
    let scene = Scene::new();
    let pids: Vec<String> = scene.workers.iter().map(|it| it.pid().to_string()).collect();
    let attach = |more: &[&str]| scene.cli("attach", more);
    let said = |option: &str, worker: &str, value: &str| format!("{option}={worker}={value}");
    // 1 is no worker of ours; the pids that could have been meant are named.
    let stranger = said("--worker", "1", "0");
    scene.refuses(&attach(&[&stranger]), 2, &["--worker 1", &pids[0], &pids[1]]);
    let thread = said("--worker", &format!("{}/1", pids[0]), "0");
    // A thread that is not there may still be meant for a listener nobody is known to serve.
    let outcome = attach(&[&thread, "--dry-run"]).run();
    assert!(matches!(outcome.code, Some(0 | 2)), "{outcome}");
    let absent = said("--worker", &pids[0], "8000");
    scene.refuses(&attach(&[&absent]), 2, &["no CPU 8000"]);
    scene.refuses(&attach(&["--order", "0,8000"]), 2, &["no CPU 8000"]);
    scene.refuses(&attach(&["--order", "0,0,0"]), 2, &["--order names 3 CPUs", "2 listeners"]);
    scene.refuses(&attach(&["--order", "0"]), 2, &["--order names 1 CPUs", "2 listeners"]);
    scene.refuses(&attach(&["--order", "0-99"]), 2, &["--order"]);
    scene.refuses(&attach(&["--weight", "1=50"]), 2, &["--weight 1"]);
    let none = [said("--weight", &pids[0], "0"), said("--weight", &pids[1], "0")];
    scene.refuses(&attach(&[&none[0], &none[1]]), 2, &["weight 0", "above 0"]);
    scene.hashed();
}

/// The last word on a worker counts, and workers may share a CPU.
#[test]
fn overlapping_orders_are_a_choice() {
    let scene = Scene::new();
    let plan = |more: &[&str]| {
        let more = [&["--dry-run", "--json"], more].concat();
        scene.cli("attach", &more).run().ok().json()
    };
    let seats = plan(&["--order", "0,0"])[0]["plan"]["seats"].clone();
    assert_eq!(seats[0]["home"], seats[1]["home"], "{seats}");
    let homes = |order: &str| {
        let seats = plan(&["--order", order])[0]["plan"]["seats"].clone();
        [seats[0]["home"].clone(), seats[1]["home"].clone()]
    };
    let mut reverse = homes("0,1");
    reverse.reverse();
    assert_eq!(homes("1,0"), reverse, "an order is not a set");
    scene.hashed();
}

#[test]
fn every_verb_explains_itself() {
    for verb in [
        "attach",
        "detach",
        "status",
        "top",
        "trace",
        "metrics",
        "demo",
        "experiment",
        "log",
        "completions",
        "man",
    ] {
        let long = run(&[verb, "--help"]).run().ok();
        assert!(long.stdout.contains("Examples:"), "{long}");
        assert!(long.stdout.contains(&format!("reuseport-steer {verb}")), "{long}");
        assert!(run(&[verb, "-h"]).run().ok().stdout.contains("Usage:"), "{verb}");
    }
    let all = run(&["--help"]).run().ok().stdout;
    for code in 0..=7 {
        assert!(all.contains(&format!("\n  {code}  ")), "exit code {code} is not explained: {all}");
    }
    for need in ["CAP_BPF", "CAP_SYS_PTRACE", "CAP_PERFMON", "CAP_SYS_ADMIN"] {
        assert!(all.contains(need), "{need} is not explained: {all}");
    }
    assert!(run(&["--version"]).run().ok().stdout.starts_with("reuseport-steer "));
}

#[test]
fn completions_are_taken_by_their_shells() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete -c")] {
        let text = run(&["completions", shell]).run().ok().stdout;
        assert!(text.contains(word) && text.contains("takeover"), "{shell}: {text}");
        let file = directory.path().join(shell);
        fs::write(&file, text).expect("write completions");
        // The others are not on every machine.
        if shell == "bash" {
            tool("bash", &["-n", file.to_str().expect("a path of ours is text")]);
        }
    }
}

#[test]
fn manual_pages_are_well_formed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_str().expect("a path of ours is text");
    run(&["man", path]).run().ok();
    let page = directory.path().join("reuseport-steer.1");
    assert_eq!(run(&["man"]).run().ok().stdout, fs::read_to_string(page).expect("the page"));
    let mut pages = 0;
    for entry in fs::read_dir(path).expect("the directory").flatten() {
        let text = fs::read_to_string(entry.path()).expect("a page");
        assert!(text.lines().any(|line| line.starts_with(".TH ")), "{:?}", entry.path());
        let mut groff = Command::new("groff");
        let output = groff.args(["-man", "-ww", "-z"]).arg(entry.path()).output().expect("groff");
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "{:?}: {warnings}", entry.path());
        pages += 1;
    }
    assert!(pages >= 8, "{pages} pages");
    refused(&run(&["man", "/proc/self/status/x"]), 1, &["/proc/self/status/x"]);
}

/// `| head -0` closes the pipe before anything is written.
#[test]
fn a_reader_that_went_away_is_no_failure() {
    for args in [&["completions", "bash"][..], &["man"], &["--help"], &["status"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(binary::path());
        let output = command.args(args).stdout(Stdio::from(writer)).output().expect("run it");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{args:?}: {output:?}");
    }
    let path = binary::path();
    must(Command::new("sh").args(["-c", &format!("{} man | head -0", path.display())]));
}

/// The code is the same, stdout stays empty, and the error is for people.
#[test]
fn json_changes_nothing_about_errors() {
    let scene = Scene::new();
    let nobody = scene.cli_at(8099, "attach", &["--json"]);
    scene.refuses(&nobody, 3, &["nobody listens", "8099"]);
    refused(&run(&["status", "--json", "--bpffs", "/proc"]), 6, &["mount -t bpf"]);
    refused(&run(&["attach", "--json"]), 2, &["--port"]);
    let groups = scene.cli("attach", &["--json", "--dry-run"]).run().ok().json();
    assert_eq!(groups[0]["plan"]["seats"].as_array().map(Vec::len), Some(2), "{groups}");
}
