//! `pgbench -C` through one PgBouncer per CPU, PostgreSQL behind: steered against the kernel's hash,
//! and the hash against itself.

use std::fs;
use std::time::Duration;

use reuseport_tests::binary::Cli;
use reuseport_tests::cpus;
use reuseport_tests::measure::{Goal, estimate, ratios};
use reuseport_tests::netns::Netns;
use reuseport_tests::process::capture;
use reuseport_tests::require;
use reuseport_tests::servers::postgres::binaries;
use reuseport_tests::servers::{PgBouncer, Postgres};
use reuseport_tests::sys::Become;
use serde_json::json;

use crate::Bench;

/// tps and latency, run by run.
type Found = (Vec<f64>, Vec<f64>);

/// One that nobody else listens on, in any namespace.
const PORT: u16 = 16_432;
/// Transactions hold a server connection only; logging every client would be half the work.
const SETTINGS: &str = "pool_mode = transaction\nlog_connections = 0\nlog_disconnections = 0\n";

/// How the clients run.
#[derive(Clone, Copy)]
struct Case {
    clients: u32,
    threads: u32,
    /// All on one CPU: the case that steering loses.
    skewed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Hash,
    /// The control: whatever it differs by from `Hash` is noise.
    HashAgain,
    Steered,
}

/// What pgbench says.
struct Outcome {
    /// Transactions per second, connecting included.
    tps: f64,
    /// Average latency, connecting included, in milliseconds.
    latency: f64,
    failed: u64,
}

struct Scene {
    netns: Netns,
    script: tempfile::NamedTempFile,
    _bouncers: Vec<PgBouncer>,
    // Last, so that the bouncers go first.
    _postgres: Postgres,
}

pub(crate) fn run(bench: &mut Bench) {
    require::cpus(2);
    let scene = Scene::new();
    let case = |clients, threads, skewed| Case { clients, threads, skewed };
    let full = vec![
        case(8, 2, false),
        case(8, 4, false),
        case(16, 2, false),
        case(16, 4, false),
        case(8, 1, true),
    ];
    let cases = bench.choose(full, vec![case(8, 2, false), case(8, 1, true)]);
    for case in cases {
        measure(bench, &scene, case);
    }
}

fn measure(bench: &mut Bench, scene: &Scene, case: Case) {
    let (pairs, seconds) = bench.choose((12, 3), (3, 1));
    let name = match case {
        Case { clients, skewed: true, .. } => format!("{clients} clients, 1 thread on one CPU"),
        Case { clients, threads, .. } => format!("{clients} clients, {threads} threads"),
    };
    scene.pgbench(case, 1);
    let order = [Mode::Hash, Mode::HashAgain, Mode::Steered];
    let mut found: [Found; 3] = Default::default();
    let (mut failed, mut runs, mut local) = (0, 0, 0);
    for _ in 0..pairs {
        let mut modes = order;
        bench.rng.shuffle(&mut modes);
        for mode in modes {
            if mode == Mode::Steered {
                scene.cli("attach");
            }
            let outcome = scene.pgbench(case, seconds);
            if mode == Mode::Steered {
                let (more, right) = scene.selections();
                (runs, local) = (runs + more, local + right);
                scene.cli("detach");
            }
            failed += outcome.failed;
            let (tps, latency) = &mut found[mode as usize];
            tps.push(outcome.tps);
            latency.push(outcome.latency);
        }
    }
    let spread = |bench: &mut Bench, mode: Mode, part: fn(&Found) -> &Vec<f64>| {
        let (new, hash) = (part(&found[mode as usize]), part(&found[Mode::Hash as usize]));
        estimate(&ratios(new, hash), &mut bench.rng)
    };
    // Balanced load has to gain; the other case is shown, not judged.
    let goal = (!case.skewed).then_some(Goal::AtLeast(1.0));
    let tps = spread(bench, Mode::Steered, |it| &it.0);
    bench.report.figure(&format!("{name}: tps, steered / hash"), "x", &tps, goal);
    let latency = spread(bench, Mode::Steered, |it| &it.1);
    bench.report.figure(&format!("{name}: latency, steered / hash"), "x", &latency, None);
    let control = spread(bench, Mode::HashAgain, |it| &it.0);
    bench.report.figure(&format!("{name}: tps, hash / hash (control)"), "x", &control, None);
    let plain = estimate(&found[Mode::Hash as usize].0, &mut bench.rng);
    bench.report.note(&format!("hash: {:.0} tps", plain.median()));
    bench.report.gate(&format!("{name}: no failed transaction"), failed == 0, &json!(failed));
    // Every steered packet went to a worker on the CPU that received it.
    let share = json!({"runs": runs, "local": local});
    bench.report.gate(&format!("{name}: all local"), runs > 0 && runs == local, &share);
}

impl Scene {
    fn new() -> Self {
        let netns = Netns::new();
        // Every connection leaves a TIME_WAIT: room for them, and reuse.
        netns.sysctl("net/ipv4/ip_local_port_range", "1024 65000");
        netns.sysctl("net/ipv4/tcp_tw_reuse", "1");
        let postgres = Postgres::start(&netns, 5432);
        let start = |(index, cpu)| {
            PgBouncer::start_with(&netns, &postgres, index, PORT, Some(cpu), SETTINGS)
        };
        let bouncers = (0..).zip(cpus()).map(start).collect();
        let script = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(&script, "SELECT 1;\n").expect("write a script");
        Self { netns, script, _bouncers: bouncers, _postgres: postgres }
    }

    /// Runs pgbench for some seconds.
    fn pgbench(&self, case: Case, seconds: u32) -> Outcome {
        let cpu = case.skewed.then(|| cpus()[0]);
        let mut command =
            self.netns.command_as(binaries().join("pgbench"), Become { cpu, ..Become::default() });
        command
            .args(["-n", "-C", "-h", "127.0.0.1", "-U", "postgres"])
            .arg("-f")
            .arg(self.script.path());
        for (flag, value) in
            [("-p", u32::from(PORT)), ("-c", case.clients), ("-j", case.threads), ("-T", seconds)]
        {
            command.arg(flag).arg(value.to_string());
        }
        command.arg("postgres");
        let limit = Duration::from_secs(u64::from(seconds) + 60);
        let (status, stdout, stderr) = capture(&mut command, limit);
        let ended = status.is_some_and(|status| status.success());
        assert!(ended, "{command:?}: {status:?}\n{stdout}{stderr}");
        let after = |prefix: &str| -> f64 {
            let rest = stdout.lines().find_map(|line| line.strip_prefix(prefix));
            let word = rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            word.unwrap_or_else(|| panic!("pgbench does not say {prefix:?}:\n{stdout}"))
        };
        Outcome {
            // With -C it prints one figure, "including reconnection times".
            tps: after("tps = "),
            latency: after("latency average = "),
            failed: after("number of failed transactions: ") as u64,
        }
    }

    fn cli(&self, verb: &str) -> serde_json::Value {
        let port = PORT.to_string();
        Cli::new([verb, "--port", &port, "--json"]).netns(&self.netns).run().ok().json()
    }

    /// Runs of the program since it was attached, and those that chose a worker on their CPU.
    fn selections(&self) -> (u64, u64) {
        let status = self.cli("status");
        let counters = &status[0]["steering"]["counters"];
        let number = |name: &str| counters[name].as_u64().unwrap_or(0);
        (number("runs"), number("local"))
    }
}
