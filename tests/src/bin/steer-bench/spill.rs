//! The price of safety: throughput with an agent that is ready to spill, against steering that nobody
//! looks after, while every worker gets its part.

use std::time::Duration;

use reuseport_tests::cpus;
use reuseport_tests::measure::{Goal, estimate, ratios};
use reuseport_tests::require;
use reuseport_tests::traffic::Pace;
use serde_json::json;

use crate::Bench;
use crate::served::{Mode, Served, from};

const ORDER: [Mode; 5] = [Mode::Hash, Mode::HashAgain, Mode::Steered, Mode::Agent, Mode::Spilling];
const WARMUP: Duration = Duration::from_millis(500);

pub(crate) fn run(bench: &mut Bench) {
    require::cpus(2);
    let (rounds, seconds) = bench.choose((20, 3), (3, 1));
    let lasts = WARMUP + Duration::from_secs(seconds);
    let served = Served::new(0);
    let clients: Vec<_> = cpus().into_iter().map(|cpu| (cpu, Pace::Closed(16))).collect();
    let mut rates: [Vec<f64>; ORDER.len()] = Default::default();
    let (mut failed, mut turns) = (0, 0);
    for round in 0..rounds {
        let mut modes = ORDER;
        bench.rng.shuffle(&mut modes);
        for mode in modes {
            let in_force = served.under(mode);
            let all = served.traffic(&clients, lasts, round).finish();
            failed += all.iter().filter(|it| it.took.is_none()).count();
            let log = in_force.log();
            turns += log.matches("evicted").count() + log.matches("widened").count();
            rates[mode as usize].push(from(WARMUP, &all).len() as f64 / seconds as f64);
        }
    }
    let mut against = |new: Mode, old: Mode| {
        estimate(&ratios(&rates[new as usize], &rates[old as usize]), &mut bench.rng)
    };
    let figures = [
        ("ready to spill / no agent", against(Mode::Spilling, Mode::Steered), Some(0.97)),
        ("ready to spill / agent that is not", against(Mode::Spilling, Mode::Agent), Some(0.97)),
        ("agent that is not / no agent", against(Mode::Agent, Mode::Steered), None),
        ("ready to spill / hash", against(Mode::Spilling, Mode::Hash), None),
        ("hash / hash (control)", against(Mode::HashAgain, Mode::Hash), None),
    ];
    for (name, spread, goal) in figures {
        let goal = goal.map(Goal::AtLeast);
        bench.report.figure(&format!("conn/s, {name}"), "x", &spread, goal);
    }
    let steered = estimate(&rates[Mode::Steered as usize], &mut bench.rng);
    bench.report.note(&format!("no agent: {:.0} conn/s", steered.median()));
    bench.report.gate("no failed connection", failed == 0, &json!(failed));
    bench.report.note(&format!("evictions and widenings, by the agents' logs: {turns}"));
}
