//! How a launch ends, and that nothing is left of it.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use reuseport_tests::launcher::{Launch, Launcher, PATIENCE};
use reuseport_tests::netns::Netns;
use reuseport_tests::process::{children, must};
use reuseport_tests::servers::{Language, Program, Script};
use reuseport_tests::sys::kill;
use reuseport_tests::{cpus, eventually, require};

use super::{ALL, kill_and_wait, line, textbook};

/// A server with a child that would stay.
struct Parent {
    script: Script,
    server: Program,
}

impl Parent {
    fn new() -> Self {
        let script = Script::shell("sleep 1000 & exec \"$1\" 8080");
        Self { script, server: Program::build(Language::C) }
    }

    fn launch<'a>(&self, netns: &'a Netns, options: &[&str]) -> Launcher<'a> {
        let words = [self.script.path(), self.server.path()];
        Launch::new(netns, line(options, &words.each_ref().map(String::as_str))).up()
    }
}

fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[test]
fn each_stop_signal_ends_all_and_is_passed_on() {
    require::cpus(2);
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let tells =
        "for it in TERM INT QUIT; do trap \"echo it was $it; exit\" $it; done; \"$1\" 8080 & wait";
    let script = Script::shell(tells);
    let (path, server) = (script.path(), program.path());
    for (signal, name) in [(libc::SIGTERM, "TERM"), (libc::SIGINT, "INT"), (libc::SIGQUIT, "QUIT")]
    {
        let mut launcher = Launch::new(&netns, line(&ALL, &[&path, &server])).up();
        launcher.signal(signal);
        assert_eq!(launcher.wait(), Some(0), "{}", launcher.said());
        for (worker, _) in (0..).zip(cpus()) {
            let heard = format!("[{worker}] it was {name}\n");
            assert!(launcher.out().contains(&heard), "{}", launcher.said());
        }
        launcher.assert_nothing_left();
    }
}

/// The shell that is the copy ends at once, the server that it waited for in its own time.
#[test]
fn what_a_wrapper_started_ends_in_order() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let orderly = "(trap 'sleep 0.3; echo in order; exit' TERM; \"$1\" 8080 & wait); true";
    let stubborn = "(trap '' TERM; exec \"$1\" 8080); true";
    for (text, timeout, said) in [(orderly, "60m", "in order"), (stubborn, "300ms", "killed")] {
        let script = Script::shell(text);
        let (path, server) = (script.path(), program.path());
        let options = ["--port", "8080", "--workers", "1", "--stop-timeout", timeout];
        let mut launcher = Launch::new(&netns, line(&options, &[&path, &server])).up();
        let before = children(launcher.workers()[&0]);
        launcher.signal(libc::SIGHUP);
        launcher.wait_for("rolling restart: done");
        launcher.wait_for_times(said, 1);
        for pid in before {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{}", launcher.said());
        }
        launcher.signal(libc::SIGTERM);
        assert_eq!(launcher.wait(), Some(0), "{}", launcher.said());
        assert_eq!(launcher.said().matches(said).count(), 2, "{}", launcher.said());
        launcher.assert_nothing_left();
    }
}

#[test]
fn who_ignores_sigterm_is_killed_in_time_or_by_a_second_signal() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let script = Script::shell("trap '' TERM; exec \"$1\" 8080");
    let (path, server) = (script.path(), program.path());
    let words = [path.as_str(), &server];
    for timeout in ["300ms", "60m"] {
        let options = ["--port", "8080", "--workers", "1", "--stop-timeout", timeout];
        let mut launcher = Launch::new(&netns, line(&options, &words)).up();
        launcher.signal(libc::SIGTERM);
        launcher.wait_for("stopping");
        if timeout == "60m" {
            launcher.signal(libc::SIGTERM);
        }
        assert_eq!(launcher.wait(), Some(0), "{}", launcher.said());
        launcher.assert_nothing_left();
    }
}

/// A worker that ends again and again: the first to do so for good says how all ends.
#[test]
fn a_crash_loop_ends_all_with_the_status_of_the_crash() {
    require::cpus(2);
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let broken = "test -e \"$0.broken\" && exit 42; exec \"$1\" 8080";
    let script = Script::shell(broken);
    let (path, server) = (script.path(), program.path());
    let words = [path.as_str(), &server];
    let options = ["--port", "8080", "--workers", "per-cpu", "--max-restarts", "2"];
    let mut launcher = Launch::new(&netns, line(&options, &words)).up();
    std::fs::write(script.beside("script.sh.broken"), "").expect("break it");
    kill(launcher.workers()[&1], libc::SIGKILL).expect("kill a worker");
    assert_eq!(launcher.wait(), Some(42), "{}", launcher.said());
    let errors = launcher.errors();
    for words in ["ended by SIGKILL; starting it again", "worker 1 ended 3 times in a row"] {
        assert!(errors.contains(words), "{words}: {errors}");
    }
    launcher.assert_nothing_left();
}

/// Killed, the launcher can clear up nothing; the kernel ends its children, the guard the rest.
#[test]
fn a_killed_launcher_leaves_no_process() {
    require::cpus(2);
    let netns = Netns::new();
    let parent = Parent::new();
    let mut launcher = parent.launch(&netns, &ALL);
    let family = launcher.family();
    // Itself, its guard, and each worker with a child.
    assert_eq!(family.len(), 2 + 2 * cpus().len(), "{family:?}");
    launcher.signal(libc::SIGKILL);
    assert_eq!(launcher.wait(), None);
    launcher.assert_no_process_left();
    // And the port is free: the next one starts on it.
    let next = parent.launch(&netns, &ALL);
    next.stop();
}

#[test]
fn a_killed_guard_is_replaced() {
    let netns = Netns::new();
    let parent = Parent::new();
    let options = ["--port", "8080", "--workers", "1"];
    let mut launcher = parent.launch(&netns, &options);
    let worker = launcher.workers()[&0];
    let guard = launcher.children().into_iter().find(|&pid| pid != worker);
    kill(guard.expect("a guard"), libc::SIGKILL).expect("kill the guard");
    launcher.wait_for("another one took its place");
    launcher.signal(libc::SIGKILL);
    assert_eq!(launcher.wait(), None);
    launcher.assert_no_process_left();
}

/// What a worker started dies with it, also when it is only restarted.
#[test]
fn the_children_of_a_dead_worker_are_ended() {
    require::cpus(2);
    let netns = Netns::new();
    let parent = Parent::new();
    let mut launcher = parent.launch(&netns, &ALL);
    let child = children(launcher.workers()[&0])[0];
    kill_and_wait(&mut launcher, 0, 2);
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "{}", launcher.said());
    launcher.stop();
}

/// The first process of a container: signals have no default there, and all orphans are its own.
#[test]
fn it_is_a_good_first_process() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    // A grandchild that outlives its parent and ends later is an orphan of the launcher's.
    let script = Script::shell("(sh -c 'sleep 0.2 & exit' &) ; exec \"$1\" 8080");
    let (path, server) = (script.path(), program.path());
    let words = [path.as_str(), &server];
    let options = ["--port", "8080", "--workers", "1"];
    let launch = Launch::new(&netns, line(&options, &words));
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"];
    let mut launcher = launch.through(unshare).up();
    let first = children(launcher.pid())[0];
    let status = std::fs::read_to_string(format!("/proc/{first}/status")).expect("its status");
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("NSpid");
    assert_eq!(inside.split_whitespace().last(), Some("1"), "{status}");
    // Worker, guard, and no zombie in the long run.
    let settled = || {
        let zombie = |&pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|it| it.contains(") Z "))
        };
        let family = children(first);
        family.len() == 2 && !family.iter().any(zombie)
    };
    assert!(eventually(PATIENCE, settled), "{:?}", children(first));
    kill(first, libc::SIGTERM).expect("signal the first process");
    assert_eq!(launcher.wait(), Some(0), "{}", launcher.said());
    launcher.assert_nothing_left();
}

#[test]
fn the_service_manager_is_told() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let hear = || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let launch = Launch::new(&netns, textbook(&["--workers", "1"], &program));
    let launcher = launch.env("NOTIFY_SOCKET", &path).up();
    assert_eq!(hear(), "READY=1");
    let worker = launcher.workers()[&0];
    let environment = std::fs::read(format!("/proc/{worker}/environ")).expect("its environment");
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"));
    launcher.signal(libc::SIGHUP);
    let reloading = hear();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()), "{reloading:?}");
    assert_eq!(hear(), "READY=1");
    launcher.stop();
    assert_eq!(hear(), "STOPPING=1");
}

/// A terminal that is closed sends SIGHUP too, but nobody is there any more to ask for a restart.
#[test]
fn a_closed_terminal_ends_all() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let launch = Launch::new(&netns, textbook(&["--workers", "1"], &program));
    let terminal = ["/usr/bin/python3", "-c", "import pty, sys; pty.spawn(sys.argv[1:])"];
    let mut launcher = launch.env("TERM", "xterm").through(terminal).up();
    // What is written to a terminal has colours.
    launcher.wait_for("ready");
    assert!(launcher.out().contains("\x1b[36m[0]\x1b[0m ready"), "{}", launcher.said());
    launcher.signal(libc::SIGKILL);
    assert_eq!(launcher.wait(), None);
    launcher.assert_no_process_left();
}

/// Who starts it so means it to outlive the session, and no restart at its end.
#[test]
fn a_hangup_that_was_ignored_stays_so() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let launch = Launch::new(&netns, textbook(&["--workers", "1"], &program));
    let mut launcher = launch.through(["nohup"]).up();
    launcher.signal(libc::SIGHUP);
    // Dealt with in order.
    launcher.signal(libc::SIGTERM);
    assert_eq!(launcher.wait(), Some(0), "{}", launcher.said());
    assert!(!launcher.said().contains("rolling restart"), "{}", launcher.said());
    launcher.assert_nothing_left();
}

/// Whoever reads its output may go away: the workers do not care.
#[test]
fn a_closed_output_ends_nobody() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let launch = Launch::new(&netns, textbook(&["--workers", "1"], &program));
    // Its standard output is a pipe that nobody reads.
    let closed = ["sh", "-c", "\"$@\" | true", "sh"];
    let mut launcher = launch.through(closed).up();
    let worker = launcher.workers()[&0];
    std::thread::sleep(Duration::from_millis(50));
    assert!(Path::new(&format!("/proc/{worker}")).exists(), "{}", launcher.said());
    let run = launcher.family().into_iter().find(|&pid| comm(pid) == "reuseport-steer");
    kill(run.expect("the launcher"), libc::SIGTERM).expect("signal the launcher");
    launcher.wait();
    launcher.assert_nothing_left();
}

/// Whoever reads its output may be stuck: that holds up those who write, and not the launcher.
#[test]
fn a_stuck_output_holds_up_neither_a_restart_nor_the_end() {
    let netns = Netns::new();
    let program = Program::build(Language::C);
    let flood = "(while [ ! -e \"$0.flood\" ]; do sleep 0.05; done; exec yes) & exec \"$1\" 8080";
    let script = Script::shell(flood);
    let (path, server) = (script.path(), program.path());
    let words = [path.as_str(), &server];
    let fifo = script.beside("output");
    must(reuseport_tests::process::command("mkfifo").arg(&fifo));
    // Open for reading, so that it can be opened for writing; nobody reads.
    let _reader = File::options().read(true).write(true).open(&fifo).expect("open the pipe");
    let stuck = ["sh", "-c", "out=$1; shift; exec \"$@\" > \"$out\"", "sh", &fifo];
    let options = ["--port", "8080", "--workers", "1"];
    let mut launcher = Launch::new(&netns, line(&options, &words)).through(stuck).up();
    let worker = launcher.workers()[&0];
    std::fs::write(script.beside("script.sh.flood"), "").expect("begin the flood");
    let waits = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(yes) S ")
    };
    assert!(eventually(PATIENCE, || children(worker).into_iter().any(waits)), "it never waits");
    kill(worker, libc::SIGKILL).expect("kill the worker");
    let again = || launcher.children().into_iter().any(|pid| children(pid).into_iter().any(waits));
    assert!(eventually(PATIENCE, || !Path::new(&format!("/proc/{worker}")).exists()));
    assert!(eventually(PATIENCE, again), "it does not come back");
    launcher.signal(libc::SIGTERM);
    assert_eq!(launcher.wait(), Some(0), "{}", launcher.said());
    launcher.assert_nothing_left();
}
