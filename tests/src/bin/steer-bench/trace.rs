//! The price of looking: throughput while `trace` runs, against the same server that nobody looks at.

use std::time::Duration;

use reuseport_tests::binary::Cli;
use reuseport_tests::bpffs::Bpffs;
use reuseport_tests::cpus;
use reuseport_tests::measure::{estimate, ratios};
use reuseport_tests::netns::Netns;
use reuseport_tests::require;
use reuseport_tests::tracer::Tracer;
use reuseport_tests::traffic::{Connection, Pace, Plan, Traffic};
use reuseport_tests::worker::{Spec, Worker};
use serde_json::{Value, json};

use crate::Bench;

const PORT: u16 = 8080;

/// Nobody looks, twice; counts only; a line for each connection.
const ORDER: [Option<&[&str]>; 4] = [None, None, Some(&["--json"]), Some(&["--json", "--events"])];
const WARMUP: Duration = Duration::from_millis(500);

pub(crate) fn run(bench: &mut Bench) {
    require::cpus(2);
    let (rounds, seconds) = bench.choose((20, 3), (3, 1));
    let lasts = WARMUP + Duration::from_secs(seconds);
    let served = Served::new();
    let clients: Vec<_> = cpus().into_iter().map(|cpu| (cpu, Pace::Closed(16))).collect();
    let mut rates: [Vec<f64>; ORDER.len()] = Default::default();
    let (mut failed, mut missed, mut lost, mut hook) = (0, 0, 0, Value::Null);
    for round in 0..rounds {
        let mut order = [0, 1, 2, 3];
        bench.rng.shuffle(&mut order);
        for which in order {
            let tracer = ORDER[which].map(|args| served.trace(args));
            let all = served.traffic(&clients, lasts, round).finish();
            failed += all.iter().filter(|it| it.took.is_none()).count();
            rates[which].push(from(WARMUP, &all).len() as f64 / seconds as f64);
            let Some(tracer) = tracer else { continue };
            let traced = tracer.stop();
            let last = traced.stdout.lines().last().unwrap_or_default();
            let mut lines = traced.stdout.lines().count() as u64;
            // With events the summary is the last line, otherwise all there is.
            let summary = match serde_json::from_str::<Value>(last) {
                Ok(last) if last.is_object() => last["summary"].clone(),
                _ => {
                    lines = 0;
                    traced.json()
                }
            };
            let number = |value: &Value| value.as_u64().expect("a number");
            let accepted = number(&summary["total"]["accepted"]);
            missed += accepted.abs_diff(all.len() as u64);
            if lines > 0 {
                let events = number(&summary["lost"]["events"]);
                lost += events;
                missed += (lines - 1 + events).abs_diff(accepted);
            }
            hook = summary["hook"].clone();
        }
    }
    let [alone, again, counted, told] = &rates;
    let mut against = |new: &[f64], old: &[f64]| estimate(&ratios(new, old), &mut bench.rng);
    let figures = [
        ("trace / nobody looks", against(counted, alone)),
        ("trace --events / nobody looks", against(told, alone)),
        ("nobody looks / nobody looks (control)", against(again, alone)),
    ];
    for (name, spread) in figures {
        bench.report.figure(&format!("conn/s, {name}"), "x", &spread, None);
    }
    let alone = estimate(alone, &mut bench.rng);
    bench
        .report
        .note(&format!("nobody looks: {:.0} conn/s; accepts seen by: {hook}", alone.median()));
    bench.report.gate("no failed connection", failed == 0, &json!(failed));
    bench.report.gate("every connection counted, or said to be lost", missed == 0, &json!(missed));
    bench.report.note(&format!("lines that found no room: {lost}"));
}

/// One worker per CPU, steered; all taken down on drop.
struct Served {
    _workers: Vec<Worker>,
    _bpffs: Bpffs,
    netns: Netns,
}

impl Served {
    fn new() -> Self {
        let netns = Netns::new();
        netns.sysctl("net/ipv4/ip_local_port_range", "1024 65000");
        let workers =
            Worker::one_per_cpu(&netns, &cpus(), &Spec { brief: true, ..Spec::default() });
        let bpffs = Bpffs::new();
        let (port, base) = (PORT.to_string(), bpffs.path().display().to_string());
        let args = ["attach", "--port", &port, "--netns", "/proc/self/ns/net", "--bpffs", &base];
        Cli::new(args).netns(&netns).run().ok();
        Self { _workers: workers, _bpffs: bpffs, netns }
    }

    fn trace(&self, args: &[&str]) -> Tracer {
        Tracer::start(&self.netns, PORT, args)
    }

    fn traffic(&self, from: &[(u32, Pace)], lasts: Duration, seed: u64) -> Traffic {
        let address = ([127, 0, 0, 1], PORT).into();
        let (from, patience) = (from.to_vec(), Duration::from_secs(10));
        Traffic::start(&self.netns, &Plan { address, from, lasts, patience, seed })
    }
}

/// Connections that were due from `start` on.
fn from(start: Duration, all: &[Connection]) -> Vec<Connection> {
    all.iter().filter(|it| it.at >= start).copied().collect()
}
