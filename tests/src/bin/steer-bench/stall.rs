//! A worker stops for a second: connections that are stuck meanwhile, against the kernel's hash.

use std::thread::sleep;
use std::time::{Duration, Instant};

use reuseport_tests::cpus;
use reuseport_tests::measure::{Goal, estimate, ratios};
use reuseport_tests::require;
use reuseport_tests::traffic::Pace;
use serde_json::json;

use crate::Bench;
use crate::served::{Mode, Served};

/// Connections per second on each CPU.
const RATE: f64 = 4000.0;
/// From the start to the stop, and from there to the end of it.
const BEFORE: Duration = Duration::from_millis(500);
const STALL: Duration = Duration::from_secs(1);
/// What nobody waits for who does not wait for the stopped worker.
const STUCK: Duration = Duration::from_millis(100);
const ORDER: [Mode; 3] = [Mode::Hash, Mode::Steered, Mode::Spilling];

pub(crate) fn run(bench: &mut Bench) {
    require::cpus(2);
    let rounds = bench.choose(15, 2);
    let served = Served::new(0);
    let clients: Vec<_> = cpus().into_iter().map(|cpu| (cpu, Pace::Open(RATE))).collect();
    let mut stuck: [Vec<f64>; ORDER.len()] = Default::default();
    let (mut noticed, mut unanswered) = (Vec::new(), 0);
    for round in 0..rounds {
        let mut modes: Vec<usize> = (0..ORDER.len()).collect();
        bench.rng.shuffle(&mut modes);
        let victim = &served.workers()[bench.rng.usize(..served.workers().len())];
        for mode in modes {
            let in_force = served.under(ORDER[mode]);
            let traffic = served.traffic(&clients, BEFORE + STALL + BEFORE, round);
            sleep((traffic.began + BEFORE).saturating_duration_since(Instant::now()));
            victim.freeze();
            sleep(STALL);
            victim.thaw();
            let all = traffic.finish();
            unanswered += all.iter().filter(|it| it.took.is_none()).count();
            let slow = all.iter().filter(|it| it.took.is_none_or(|took| took > STUCK)).count();
            stuck[mode].push(slow as f64);
            let log = in_force.log();
            noticed.extend(log.lines().filter(|it| it.contains(" evicted: ")).filter_map(after));
        }
    }
    let [hash, steered, spilling] = &stuck;
    let part = estimate(&ratios(spilling, hash), &mut bench.rng);
    let goal = Goal::AtMost(0.05);
    bench.report.figure("stuck, ready to spill / hash", "x", &part, Some(goal));
    let part = estimate(&ratios(steered, hash), &mut bench.rng);
    bench.report.figure("stuck, no agent / hash", "x", &part, None);
    if !noticed.is_empty() {
        let shown = estimate(&noticed, &mut bench.rng);
        bench.report.figure("shown until evicted", "ms", &shown, Some(Goal::AtMost(100.0)));
    }
    let counts = estimate(hash, &mut bench.rng);
    bench.report.note(&format!("hash: {:.0} stuck of {:.0}", counts.median(), 2.0 * RATE));
    let times = json!(noticed.len());
    bench.report.gate("one eviction per stall", noticed.len() == rounds as usize, &times);
    bench.report.gate("all answered in the end", unanswered == 0, &json!(unanswered));
}

/// The time in `... for 31ms, ...`, in milliseconds.
fn after(line: &str) -> Option<f64> {
    let time = line.split(" for ").nth(1)?.split(',').next()?;
    match time.strip_suffix("ms") {
        Some(ms) => ms.parse().ok(),
        None => time.strip_suffix('s')?.parse::<f64>().ok().map(|seconds| seconds * 1e3),
    }
}
