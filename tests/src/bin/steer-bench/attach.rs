//! What `attach`, `status` and `detach` take: few listeners, many, and few on a busy host.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use reuseport_tests::binary;
use reuseport_tests::cpus;
use reuseport_tests::measure::{Goal, estimate};
use reuseport_tests::netns::Netns;
use reuseport_tests::sys::usage;
use reuseport_tests::worker::{Spec, Worker};
use serde_json::json;

use crate::Bench;

/// One that nobody else listens on, in any namespace: the command is run without a hint.
const PORT: u16 = 18_743;

/// Process time and wall time of one run, in milliseconds.
struct Cost {
    process: f64,
    wall: f64,
}

pub(crate) fn run(bench: &mut Bench) {
    scene(bench, "2 listeners", 2, 0, 50.0);
    scene(bench, "1000 listeners", 1000, 0, 1500.0);
    scene(bench, "2 listeners, 20000 other sockets", 2, 20_000, 100.0);
}

/// `goal` is for the process time of `attach`, in milliseconds.
fn scene(bench: &mut Bench, name: &str, listeners: u32, others: u32, goal: f64) {
    let runs = bench.choose(25, 3);
    let netns = Netns::new();
    let cpus = cpus();
    let each = listeners / cpus.len() as u32;
    let spec = Spec { port: PORT, listeners: each.max(1), ..Spec::default() };
    let workers = Worker::one_per_cpu(&netns, &cpus, &spec);
    let _others = bystanders(&netns, others);
    let mut costs: [Vec<Cost>; 3] = Default::default();
    let verbs = ["attach", "status", "detach"];
    for run in 0..=runs {
        for (verb, costs) in verbs.iter().zip(&mut costs) {
            let (status, cost) = timed(&netns, verb);
            assert!(status.success(), "{verb} ({name}): {status}");
            // The first reads the binary from disk.
            if run > 0 {
                costs.push(cost);
            }
        }
    }
    drop(workers);
    for (verb, costs) in verbs.iter().zip(&costs) {
        let part = |part: fn(&Cost) -> f64| costs.iter().map(part).collect::<Vec<_>>();
        let goal = (*verb == "attach").then_some(Goal::AtMost(goal));
        let process = estimate(&part(|it| it.process), &mut bench.rng);
        let title = format!("{name}: {verb}, process time");
        bench.report.figure(&title, "ms", &process, goal);
        let wall = estimate(&part(|it| it.wall), &mut bench.rng);
        bench.report.figure(&format!("{name}: {verb}, wall time"), "ms", &wall, None);
    }
    let done = json!(costs.iter().map(Vec::len).collect::<Vec<_>>());
    let all = costs.iter().all(|costs| costs.len() == runs);
    bench.report.gate(&format!("{name}: every run succeeded"), all, &done);
}

/// Processes with sockets that are none of our business: listeners and UDP, on other ports.
fn bystanders(netns: &Netns, sockets: u32) -> Vec<Worker> {
    const EACH: u32 = 5000;
    let count = sockets / EACH;
    let spec = |index: u32| Spec {
        port: 20_000 + index as u16,
        listeners: EACH,
        udp: index % 2 == 1,
        ..Spec::default()
    };
    (0..count).map(|index| Worker::start(netns, &spec(index))).collect()
}

fn timed(netns: &Netns, verb: &str) -> (ExitStatus, Cost) {
    let mut command = netns.command(binary::path());
    command.args([verb, "--port", &PORT.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let usage = usage::wait(child).expect("wait for the command");
    let wall = start.elapsed();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let cost = Cost { process: ms(usage.user + usage.system), wall: ms(wall) };
    (ExitStatus::from_raw(usage.status), cost)
}
