//! What the program costs for each packet, against one that only passes and against none.
//!
//! The kernel cannot test-run this kind of program, so packets it is: datagrams over loopback to a
//! group of UDP sockets that nobody reads and whose buffers are full. Each ends in the same cheap
//! drop, whoever chose the socket. Blocks of sends with one program, another or none take turns on
//! the same sockets.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use reuseport_tests::binary::Cli;
use reuseport_tests::cpus;
use reuseport_tests::measure::{Goal, differences, estimate, quantile};
use reuseport_tests::netns::Netns;
use reuseport_tests::process::tool;
use reuseport_tests::require;
use reuseport_tests::sys::{self, bpf};
use reuseport_tests::worker::{Spec, Worker};
use serde_json::json;

use crate::Bench;

/// One that nobody else has, in any namespace.
const PORT: u16 = 15_300;
/// Flows, each with a hash of its own.
const FLOWS: usize = 64;
/// What a selection may cost over a program that only passes, in nanoseconds.
const MOST: f64 = 40.0;
/// Helpers that the program may call; everything else has to be inlined. The clock is none of them.
///
/// The names are those of the kernel's functions: the second is `bpf_get_prandom_u32`, which only the
/// policy `random` comes by.
const HELPERS: [&str; 2] = ["sk_select_reuseport", "bpf_user_rnd_u32"];

#[derive(Clone, Copy, Debug)]
enum Mode {
    Hash,
    HashAgain,
    Pass,
    Steered,
}

const MODES: [Mode; 4] = [Mode::Hash, Mode::HashAgain, Mode::Pass, Mode::Steered];

/// The group, and what may be in charge of it.
struct Scene<'a> {
    member: &'a OwnedFd,
    pass: &'a OwnedFd,
    steer: &'a OwnedFd,
    flows: Vec<UdpSocket>,
}

pub(crate) fn run(bench: &mut Bench) {
    require::cpus(2);
    let mut slopes = Vec::new();
    for sockets in [1, 16, 256, 4096] {
        slopes.push(group(bench, sockets));
    }
    // The pairs of different sizes were not taken together: the figure shows, it does not judge.
    if let (Some(first), Some(last)) = (slopes.first(), slopes.last()) {
        bench.report.note(&format!("4096 sockets cost {:+.1} ns more than 1", last - first));
    }
}

/// Measures a group of so many sockets; the median cost over a program that only passes.
fn group(bench: &mut Bench, sockets: u32) -> f64 {
    let netns = Netns::new();
    let cpu = cpus()[0];
    let spec = Spec { udp: true, port: PORT, addr: "127.0.0.1", ..Spec::default() };
    // One socket makes no group that could be steered: it starts with a neighbour, who then goes.
    let alone = sockets == 1;
    let workers_cpus = if alone { vec![cpu] } else { cpus() };
    let worker =
        Worker::start(&netns, &Spec { listeners: sockets, cpus: workers_cpus, ..spec.clone() });
    let neighbour = alone.then(|| Worker::start(&netns, &Spec { cpus: vec![cpus()[1]], ..spec }));
    let cli = |verb: &str| {
        let port = PORT.to_string();
        Cli::new([verb, "--udp", "--port", &port, "--json", "--takeover"]).netns(&netns).run().ok()
    };
    let attached = cli("attach").json();
    let id = attached[0]["attached"]["program_id"].as_u64().expect("a program id") as u32;
    drop(neighbour);
    let member = bpf::take_fd(worker.pid(), worker.fds()[0]).expect("take a socket");
    let pass = bpf::load_pass().expect("load a program that passes");
    let steer = bpf::program(id).expect("open the steering program");
    let flow = || {
        let flow = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a UDP socket");
        flow.connect((Ipv4Addr::LOCALHOST, PORT)).expect("connect");
        flow
    };
    let flows = netns.run_in(|| (0..FLOWS).map(|_| flow()).collect());
    let scene = Scene { member: &member, pass: &pass, steer: &steer, flows };
    if sockets == 1 {
        check_helpers(bench, id);
    }
    let found = netns.run_in(|| {
        sys::pin(0, &[cpu]).expect("run on one CPU");
        scene.interleave(bench)
    });
    let name = format!("group of {sockets}");
    let [hash, again, pass_times, steered] = &found;
    let mut show = |what: &str, a: &[f64], b: &[f64], goal| {
        let spread = estimate(&differences(a, b), &mut bench.rng);
        bench.report.figure(&format!("{name}: {what}"), "ns", &spread, goal);
        spread.median()
    };
    let cost = show("steered - bare PASS", steered, pass_times, Some(Goal::AtMost(MOST)));
    show("steered - kernel hash", steered, hash, None);
    show("bare PASS - kernel hash", pass_times, hash, None);
    show("hash - hash (control)", again, hash, None);
    let runs = cross_check(bench, &scene, &netns, cpu, &name);
    bench.report.gate(
        &format!("{name}: the program ran for every packet"),
        runs.0 == runs.1,
        &json!(runs),
    );
    // Back in charge, so that detach finds what it left.
    scene.install(Mode::Steered);
    let status =
        Cli::new(["status", "--udp", "--port", "15300", "--json"]).netns(&netns).run().ok();
    let counters = status.json()[0]["steering"]["counters"].clone();
    let all = counters["runs"] == counters["first"] && counters["runs"].as_u64() > Some(0);
    bench.report.gate(
        &format!("{name}: every run selected its first choice"),
        all,
        &counters["runs"],
    );
    drop((scene.flows, found));
    let detach = Cli::new(["detach", "--udp", "--port", "15300"]).netns(&netns).run();
    detach.ok();
    drop(member);
    cost
}

impl Scene<'_> {
    fn install(&self, mode: Mode) {
        let member = self.member.as_fd();
        let attach = |program: BorrowedFd<'_>| bpf::attach(member, program);
        let done = match mode {
            Mode::Hash | Mode::HashAgain => bpf::detach(member),
            Mode::Pass => attach(self.pass.as_fd()),
            Mode::Steered => attach(self.steer.as_fd()),
        };
        done.unwrap_or_else(|error| panic!("switch to {mode:?}: {error}"));
    }

    /// Sends `rounds` datagrams on each flow.
    fn send(&self, rounds: usize) {
        for _ in 0..rounds {
            for flow in &self.flows {
                flow.send(b"x").expect("send a datagram");
            }
        }
    }

    /// Nanoseconds per datagram: the median of some rounds, so that being preempted does not count.
    fn time(&self, rounds: usize) -> f64 {
        let round = || {
            let start = Instant::now();
            self.send(1);
            start.elapsed().as_nanos() as f64 / FLOWS as f64
        };
        let mut times: Vec<f64> = (0..rounds).map(|_| round()).collect();
        times.sort_by(f64::total_cmp);
        quantile(&times, 0.5)
    }

    /// Nanoseconds per datagram, block by block, in the order of [`MODES`].
    fn interleave(&self, bench: &mut Bench) -> [Vec<f64>; 4] {
        let (blocks, rounds) = bench.choose((150, 160), (15, 60));
        for mode in MODES {
            // A flow's socket takes some hundred datagrams before it is full.
            self.install(mode);
            self.send(320);
        }
        let mut found: [Vec<f64>; 4] = Default::default();
        for _ in 0..blocks {
            let mut modes = MODES;
            bench.rng.shuffle(&mut modes);
            for mode in modes {
                self.install(mode);
                self.send(16);
                found[mode as usize].push(self.time(rounds));
            }
        }
        found
    }
}

/// Reads the kernel's own account of a run, in a block of its own: the accounting costs something.
/// Returns datagrams sent and runs seen.
fn cross_check(
    bench: &mut Bench,
    scene: &Scene<'_>,
    netns: &Netns,
    cpu: u32,
    name: &str,
) -> (u64, u64) {
    let rounds = bench.choose(2000, 300);
    let mut counted = (0, 0);
    let mut means = Vec::new();
    let stats = bpf::enable_stats().expect("turn run statistics on");
    for (mode, program) in [(Mode::Pass, scene.pass), (Mode::Steered, scene.steer)] {
        scene.install(mode);
        let read = || bpf::statistics(program.as_fd()).expect("read run statistics");
        let before = read();
        netns.run_in(|| {
            sys::pin(0, &[cpu]).expect("run on one CPU");
            scene.send(rounds);
        });
        let after = read();
        let (time, runs) = (after.0 - before.0, after.1 - before.1);
        counted = (counted.0 + (rounds * FLOWS) as u64, counted.1 + runs);
        means.push(time as f64 / runs.max(1) as f64);
    }
    drop(stats);
    bench.report.note(&format!(
        "{name}: by run statistics (which read high) {:.0} ns steered, {:.0} ns bare PASS",
        means[1], means[0]
    ));
    counted
}

/// Looks at the translated program: which helpers are still called, and how often they stand in it.
fn check_helpers(bench: &mut Bench, id: u32) {
    let listing = tool("bpftool", &["prog", "dump", "xlated", "id", &id.to_string()]);
    let calls: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.split_once(" call ")?.1.split('#').next())
        .map(str::trim)
        .collect();
    let count = |helper: &str| calls.iter().filter(|call| **call == helper).count();
    let mut kinds = calls.clone();
    kinds.sort_unstable();
    kinds.dedup();
    let found: Vec<_> = kinds.iter().map(|kind| format!("{} x {kind}", count(kind))).collect();
    bench.report.note(&format!("calls left in the program: {}", found.join(", ")));
    let allowed = kinds.iter().all(|kind| HELPERS.contains(kind));
    bench.report.gate("only helpers that are allowed", allowed, &json!(found));
    // Four sites: first and second choice, spilled or not. The first that succeeds ends the run.
    let selects = count(HELPERS[0]);
    bench.report.gate("a select", (1..=4).contains(&selects), &json!(selects));
}
