//! What cannot be launched: a clear error, its exit code, and nothing left.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use reuseport_tests::binary::Cli;
use reuseport_tests::launcher::Launch;
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::servers::{Language, Program, Script};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, require, sys};
use serde_json::{Value, json};

use super::{assert_local, itself, line, plain, textbook};

#[test]
fn command_lines_that_make_no_sense() {
    for (args, says) in [
        (&["--", "true"][..], "--port"),
        (&["--port", "8080"], "COMMAND"),
        (&["--port", "0", "--", "true"], "0"),
        (&["--port", "8080", "--listen", "127.0.0.1:8080", "--", "true"], "cannot be used with"),
        (&["--listen", "8080", "--", "true"], "IP:PORT"),
        (&["--listen", "127.0.0.1:0", "--", "true"], "port 0"),
        (&["--port", "8080", "--workers", "some", "--", "true"], "per-core"),
        (&["--port", "8080", "--workers", "0", "--", "true"], "at least 1"),
        (&["--port", "8080", "--workers", "9999", "--", "true"], "9999 workers are more than"),
        (&["--port", "8080", "--cpus", "0,0", "--", "true"], "CPU 0 is named twice"),
        (&["--port", "8080", "--cpus", "8000", "--", "true"], "CPU 8000 is not one"),
        (&["--port", "8080", "--cpus", "x", "--", "true"], "`x`"),
        (&["--port", "8080", "--cpus", "0", "--workers", "1", "--", "true"], "cannot be used with"),
        (&["--port", "8080", "--place", "far", "--", "true"], "same-llc"),
        (&["--port", "8080", "--stop-timeout", "soon", "--", "true"], "soon"),
        (&["--port", "8080", "--", "true", "%d"], "`%d`"),
    ] {
        let netns = Netns::new();
        let args: Vec<_> = ["run"].into_iter().chain(args.iter().copied()).collect();
        Cli::new(args).netns(&netns).run().fails(2).says(says);
    }
}

#[test]
fn cpus_that_this_process_may_not_use() {
    require::cpus(2);
    let netns = Netns::new();
    let [first, second] = [cpus()[0], cpus()[1]].map(|cpu| cpu.to_string());
    let narrow = ["taskset", "-c", &first];
    let run = |args: &[&str]| {
        let all = ["run", "--port", "8080"].iter().chain(args).chain(&["--", "true"]);
        Cli::new(all.copied()).through(narrow).netns(&netns).run()
    };
    let outside = format!("CPU {second} is not one that this process may run on ({first})");
    run(&["--cpus", &second]).fails(2).says(&outside).says("cpuset");
    run(&["--workers", "2"]).fails(2).says("2 workers are more than the 1 CPUs").says("cpuset");
    let planned = run(&["--dry-run", "--json"]).ok().json();
    assert_eq!(planned.as_array().map(Vec::len), Some(1), "{planned:#}");
}

#[test]
fn a_dry_run_shows_the_placement_and_starts_nothing() {
    require::cpus(2);
    let netns = Netns::new();
    let run = |args: &[&str]| {
        let all = ["run", "--port", "8080", "--dry-run"].iter().chain(args);
        let missing = ["--", "/nonexistent/program", "%i"];
        Cli::new(all.chain(&missing).copied()).netns(&netns).run().ok()
    };
    let table = run(&["--workers", "per-cpu"]).stdout;
    assert!(table.contains("WORKER  CPU  CORE  LLC  NODE  SHARES CORE WITH"), "{table}");
    assert_eq!(table.lines().count(), 1 + cpus().len(), "{table}");
    let list: Vec<String> = cpus().iter().rev().map(u32::to_string).collect();
    let planned = run(&["--json", "--cpus", &list.join(",")]).json();
    let planned = planned.as_array().expect("a list").clone();
    for ((worker, cpu), seat) in (0u32..).zip(cpus().into_iter().rev()).zip(&planned) {
        assert_eq!((&seat["worker"], &seat["cpu"]), (&worker.into(), &cpu.into()), "{seat:#}");
    }
    // On any machine: who comes second is a sibling where there is one, and a core of its own where
    // there are two.
    let core = |cpu: &Value| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(path).expect("siblings")
    };
    let cores: BTreeSet<String> = cpus().iter().map(|&cpu| core(&cpu.into())).collect();
    for (place, shares) in [
        ("core", cores.len() == 1),
        ("sibling", cores.len() < cpus().len()),
        ("same-llc", cores.len() == 1),
    ] {
        let planned = run(&["--json", "--workers", "2", "--place", place]).json();
        let [first, second] = [&planned[0], &planned[1]];
        assert_ne!(first["cpu"], second["cpu"], "{place}: {planned:#}");
        assert_eq!(core(&first["cpu"]) == core(&second["cpu"]), shares, "{place}: {planned:#}");
        assert_eq!(first["core"] == second["core"], shares, "{place}: {planned:#}");
        let shared_with = if shares { json!([1]) } else { json!([]) };
        assert_eq!(first["core_shared_with"], shared_with, "{place}: {planned:#}");
    }
    for place in ["core", "sibling", "same-llc"] {
        let planned = run(&["--json", "--workers", "per-core", "--place", place]).json();
        assert_eq!(planned.as_array().map(Vec::len), Some(cores.len()), "{place}: {planned:#}");
    }
}

#[test]
fn programs_that_are_not_there() {
    let netns = Netns::new();
    let run = |program: &str| Launch::new(&netns, line(&["--port", "8080"], &[program]));
    run("no-such-program").fails(127, &["start `no-such-program`", "No such file", "PATH"]);
    run("/nonexistent/%i").fails(127, &["/nonexistent/0", "that file is not there"]);
    run("/etc/passwd").fails(126, &["/etc/passwd", "Permission denied"]);
    let given = line(&["--listen", "127.0.0.1:8080"], &["no-such-program"]);
    Launch::new(&netns, given).fails(127, &["no-such-program"]);
}

#[test]
fn programs_that_end_at_once() {
    let netns = Netns::new();
    let run = |words: &[&str]| Launch::new(&netns, line(&["--port", "8080"], words));
    run(&["sh", "-c", "echo oops >&2; exit 42"])
        .fails(42, &["[0] oops", "worker 0", "exited with status 42 before it was up"]);
    run(&["true"]).fails(8, &["exited with status 0", "background"]);
    run(&["sh", "-c", "kill -KILL $$"]).fails(137, &["ended by SIGKILL"]);
    // To the background, in a session of its own: found all the same.
    run(&["sh", "-c", "setsid sleep 1000 & exit 0"]).fails(8, &["foreground"]);
}

#[test]
fn programs_that_never_listen() {
    let netns = Netns::new();
    let options = ["--port", "8080", "--listen-timeout", "500ms"];
    let sleep = &["sleep", "1000"];
    let says = ["does not listen on port 8080 after 500ms", "--listen-timeout"];
    Launch::new(&netns, line(&options, sleep)).fails(8, &says);
    let options = ["--listen", "127.0.0.1:8080", "--listen-timeout", "500ms"];
    let says = ["not seen accepting", "LISTEN_FDS", "--port"];
    Launch::new(&netns, line(&options, sleep)).fails(8, &says);
    // On another port than it says.
    let program = Program::build(Language::C);
    let path = program.path();
    let elsewhere = [path.as_str(), "8081"];
    let options = ["--port", "8080", "--listen-timeout", "500ms"];
    Launch::new(&netns, line(&options, &elsewhere)).fails(8, &["configured for"]);
}

#[test]
fn programs_that_listen_without_reuseport() {
    let netns = Netns::new();
    let script = Script::without_reuseport();
    let path = script.path();
    let words = ["/usr/bin/python3", &path, "8080"];
    let says = ["listens without SO_REUSEPORT", "so_reuseport = 1", "--listen"];
    Launch::new(&netns, line(&["--port", "8080"], &words)).fails(4, &says);
}

#[test]
fn a_port_that_somebody_else_uses() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    for reuseport in [true, false] {
        let other = Worker::start(&netns, &Spec { reuseport, ..Spec::default() });
        let pid = other.pid().to_string();
        let says = ["port 8080 is in use", &pid, "0.0.0.0:8080"];
        Launch::new(&netns, textbook(&[], &program)).fails(7, &says);
        let words = &["true"];
        let given = line(&["--listen", "127.0.0.1:8080"], words);
        Launch::new(&netns, given).fails(7, &says);
    }
    // On another address than ours: no conflict.
    let _other = Worker::start(&netns, &Spec { addr: "127.0.0.2", ..Spec::default() });
    let words = &["true"];
    Launch::new(&netns, line(&["--listen", "127.0.0.1:8080"], words)).fails(8, &["status 0"]);
    // Nor with one of the other family, unless that takes ours too.
    let netns_v6 = Netns::new();
    let worker = |addr, v6only| Worker::start(&netns_v6, &Spec { addr, v6only, ..Spec::default() });
    let given = || Launch::new(&netns_v6, line(&["--listen", "0.0.0.0:8080"], words));
    let _sixth = worker("::1", true);
    given().fails(8, &["status 0"]);
    let _any = worker("::", false);
    given().fails(7, &["port 8080 is in use", "[::]:8080"]);
    // Bound, and not listening: the kernel refuses it to the launcher.
    let bound = netns.run_in(|| {
        let socket = sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0).expect("a socket");
        sys::bind(socket.as_fd(), "0.0.0.0:8082".parse().expect("an address")).expect("bind");
        socket
    });
    Launch::new(&netns, line(&["--listen", "0.0.0.0:8082"], words)).fails(7, &["0.0.0.0:8082"]);
    drop(bound);
    Launch::new(&netns, line(&["--listen", "10.9.8.7:8080"], words)).fails(3, &["10.9.8.7"]);
}

/// With SO_REUSEPORT on both sides, the kernel still keeps users apart. Whoever cannot see into the
/// other's process is told that somebody is there.
#[test]
fn a_port_that_another_user_listens_on() {
    let netns = Netns::new();
    let _other = Worker::start(&netns, &Spec::default());
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    for options in [&["--port", "8080"][..], &["--listen", "0.0.0.0:8080"]] {
        let options = [options, &["--rung", "auto"]].concat();
        let launch = Launch::new(&netns, line(&options, &["true"])).through(nobody);
        launch.fails(7, &["port 8080 is in use", "a process that we cannot see", "0.0.0.0:8080"]);
    }
}

/// The limit on open files: for the launcher's listeners and the pipes of its copies.
#[test]
fn more_copies_than_descriptors() {
    let netns = Netns::new();
    let script = Script::given();
    let path = script.path();
    let words = ["/usr/bin/python3", &path];
    let limited = ["prlimit", "--nofile=12"];
    for options in [&["--listen", "127.0.0.1:8080"][..], &["--port", "8080"]] {
        let options = [options, &["--workers", "1"]].concat();
        let launch = Launch::new(&netns, line(&options, &words)).through(limited);
        launch.fails(6, &["Too many open files", "ulimit -n"]);
    }
}

#[test]
fn without_the_power_to_steer() {
    require::cpus(2);
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let powerless = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"];
    let powerless: Vec<_> = powerless.into_iter().chain(["--"]).collect();
    let launch = Launch::new(&netns, textbook(&[], &program)).through(&powerless);
    launch.fails(5, &["CAP_BPF", "--rung auto"]);
    // With less, where that is asked for.
    let launch =
        Launch::new(&netns, textbook(&["--workers", "per-cpu", "--rung", "auto"], &program))
            .through(&powerless);
    let mut launcher = launch.up();
    let steered = ["rung incoming-cpu", "not ebpf: "];
    assert!(steered.iter().all(|words| launcher.errors().contains(words)), "{}", launcher.said());
    assert_local(&netns, &launcher, &plain(), itself);
    let load = Load::start(&netns, &plain(), &cpus(), 2);
    load.advance(50);
    launcher.signal(libc::SIGHUP);
    launcher.wait_for("rolling restart: done");
    load.advance(50);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{}", launcher.said());
    assert_local(&netns, &launcher, &plain(), itself);
    launcher.stop();
}
