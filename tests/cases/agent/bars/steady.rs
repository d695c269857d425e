//! An agent with nothing to do: it takes nothing, writes nothing, says nothing.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use reuseport_tests::agent::Agent;
use reuseport_tests::metrics::Metrics;
use reuseport_tests::process::{Reaped, command};
use reuseport_tests::{eventually, require};

use super::super::generation;
use super::length;
use crate::metrics::get;
use crate::scene::Scene;

const PATIENCE: Duration = Duration::from_mins(20);

/// What it has of the machine.
#[derive(Debug)]
struct Usage {
    descriptors: usize,
    /// Resident, in KiB.
    memory: u64,
    log: usize,
}

impl Usage {
    fn of(agent: &Agent) -> Self {
        let pid = agent.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a live agent");
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let open = || fs::read_dir(format!("/proc/{pid}/fd")).expect("a live agent").count();
        // A tick opens one now and then, for as long as it reads it.
        let between = || {
            sleep(Duration::from_millis(3));
            open()
        };
        Self {
            descriptors: (0..50).map(|_| between()).min().unwrap_or_default(),
            memory: memory.trim().trim_end_matches(" kB").parse().expect("a number"),
            log: agent.log().len(),
        }
    }
}

fn ticks(socket: &Path) -> u64 {
    let stream = UnixStream::connect(socket).expect("connect to the agent");
    Metrics::of(&get(stream, "/metrics")).value("agent_ticks_total", &[])
}

/// Waits for so many more ticks; looks seldom, as looking takes memory, too.
fn wait(socket: &Path, more: u64) -> u64 {
    let goal = ticks(socket) + more;
    let mut now = 0;
    let done = eventually(PATIENCE, || {
        sleep(Duration::from_millis(500));
        now = ticks(socket);
        now >= goal
    });
    assert!(done, "{now} ticks of {goal}");
    now
}

#[test]
fn thousands_of_ticks_take_nothing_and_write_nothing() {
    require::cpus(2);
    let scene = Scene::new();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("metrics");
    let address = format!("unix:{}", socket.display());
    let agent = scene.agent(&["--reconcile-interval", "1ms", "--metrics", &address]);
    let count = u64::from(length(10_000, 100));
    // Until it has learnt what it keeps, and every buffer has its size: in its first half minute at
    // this pace its heap grows by 4 MiB at once, and then no more.
    wait(&socket, count);
    let generation_before = generation(&scene.healed());
    let (began, first, before) = (Instant::now(), ticks(&socket), Usage::of(&agent));
    let last = wait(&socket, count);
    let (took, after) = (began.elapsed(), Usage::of(&agent));
    println!("{} ticks in {took:.1?}: {before:?}, then {after:?}", last - first);
    assert_eq!(after.descriptors, before.descriptors, "descriptors");
    assert_eq!(after.log, before.log, "{}", agent.log());
    // A leak of 30 bytes a tick would show in the long run.
    assert!(after.memory <= before.memory + 256, "memory: {before:?}, then {after:?}");
    assert_eq!(generation(&scene.healed()), generation_before, "a table was published");
    let [writes, reads] = map_calls(&agent);
    assert!(reads > 0, "nothing was traced");
    assert_eq!(writes, 0, "writes of maps, beside {reads} reads");
    agent.stop();
}

/// How often it writes maps and reads them, for as long as it is traced.
fn map_calls(agent: &Agent) -> [usize; 2] {
    let trace = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut strace = command("strace");
    strace.args(["-f", "-e", "trace=bpf", "-p", &agent.pid().to_string(), "-o"]).arg(trace.path());
    let strace = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("start strace");
    let mut strace = Reaped(strace);
    let count = || {
        let text = fs::read_to_string(trace.path()).expect("the trace");
        let count = |of: &[&str]| of.iter().map(|it| text.matches(it).count()).sum();
        [
            count(&["BPF_MAP_UPDATE_ELEM", "BPF_MAP_DELETE_ELEM", "BPF_PROG_LOAD"]),
            count(&["BPF_MAP_LOOKUP_ELEM"]),
        ]
    };
    eventually(Duration::from_secs(30), || count()[1] > 100);
    // It lets go of the agent, and writes what it has.
    strace.signal(libc::SIGINT);
    strace.wait(Duration::from_secs(30));
    count()
}

/// What it costs to have one, where nothing happens.
#[test]
fn an_idle_agent_hardly_runs() {
    require::cpus(2);
    let rungs = ["ebpf", "incoming-cpu", "classic-bpf", "hash"];
    let agents = rungs.map(|rung| {
        let scene = Scene::new();
        (rung, scene.agent(&["--rung", rung]), scene)
    });
    sleep(Duration::from_secs(2));
    let ran = || agents.each_ref().map(|(_, agent, _)| ran(agent.pid()));
    let (began, before) = (Instant::now(), ran());
    sleep(Duration::from_millis(u64::from(length(10_000, 2_000))));
    let (took, after) = (began.elapsed(), ran());
    let used = |(after, before): (Duration, Duration)| after.saturating_sub(before);
    let share = after.into_iter().zip(before).map(|it| used(it).as_secs_f64() / took.as_secs_f64());
    for ((rung, agent, _scene), share) in agents.into_iter().zip(share) {
        println!("an idle agent, {rung}: {:.2} % of a CPU over {took:.1?}", share * 100.0);
        // Of a debug build, on a machine that does much else: most of it is the first seconds' looks.
        assert!(share < 0.05, "{rung}: {share}\n{}", agent.log());
        agent.stop();
    }
}

/// For how long a process was on a CPU, all its threads.
fn ran(pid: u32) -> Duration {
    let tasks = reuseport_tests::observe::threads(pid).into_iter();
    let nanoseconds = tasks.map(|tid| {
        let path = format!("/proc/{pid}/task/{tid}/schedstat");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        text.split(' ').next().expect("a number").parse::<u64>().expect("a number")
    });
    Duration::from_nanos(nanoseconds.sum())
}
