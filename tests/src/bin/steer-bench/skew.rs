//! All packets on one CPU: what steering by CPU loses, and what an agent that widens its row saves.

use std::time::Duration;

use reuseport_tests::cpus;
use reuseport_tests::measure::{Goal, estimate, quantile, ratios};
use reuseport_tests::require;
use reuseport_tests::traffic::{Pace, sorted_ms};
use serde_json::json;

use crate::Bench;
use crate::served::{Mode, Served, from};

const ORDER: [Mode; 4] = [Mode::Hash, Mode::HashAgain, Mode::Steered, Mode::Spilling];
/// Enough for an agent to notice; what comes before is told apart.
const WARMUP: Duration = Duration::from_millis(1500);
/// Longest that a connection without an answer can have taken.
const MISSING: Duration = Duration::from_secs(12);

/// A load on one CPU.
struct Case {
    name: &'static str,
    /// Microseconds of work for each connection.
    work: u32,
    pace: Pace,
}

/// What one run saw, after the agent had time to notice, and before.
#[derive(Default)]
struct Found {
    rate: Vec<f64>,
    p99: Vec<f64>,
    early_p99: Vec<f64>,
}

pub(crate) fn run(bench: &mut Bench) {
    require::cpus(2);
    let cases = [
        Case { name: "8000/s, 50 us of work", work: 50, pace: Pace::Open(8000.0) },
        Case { name: "closed loop, 16 at a time", work: 0, pace: Pace::Closed(16) },
    ];
    for case in cases {
        measure(bench, &case);
    }
}

fn measure(bench: &mut Bench, case: &Case) {
    let (rounds, seconds) = bench.choose((15, 2), (3, 1));
    let lasts = WARMUP + Duration::from_secs(seconds);
    let served = Served::new(case.work);
    let mut found: [Found; ORDER.len()] = Default::default();
    let (mut failed, mut widened) = (0, 0);
    for round in 0..rounds {
        let mut modes: Vec<usize> = (0..ORDER.len()).collect();
        bench.rng.shuffle(&mut modes);
        for mode in modes {
            let in_force = served.under(ORDER[mode]);
            let all = served.traffic(&[(cpus()[0], case.pace)], lasts, round).finish();
            failed += all.iter().filter(|it| it.took.is_none()).count();
            widened += in_force.log().matches(" widened: ").count();
            let late = from(WARMUP, &all);
            let p99 = |part: &[_]| quantile(&sorted_ms(part, MISSING), 0.99);
            let found = &mut found[mode];
            found.rate.push(late.len() as f64 / seconds as f64);
            found.p99.push(p99(&late));
            found.early_p99.push(p99(&all[..]));
        }
    }
    let name = case.name;
    let mut against = |mode: usize, part: fn(&Found) -> &Vec<f64>| {
        estimate(&ratios(part(&found[mode]), part(&found[0])), &mut bench.rng)
    };
    let open = matches!(case.pace, Pace::Open(_));
    let mut figures = vec![
        ("p99, ready to spill / hash", against(3, |it| &it.p99), Some(Goal::AtMost(1.25))),
        ("p99, no agent / hash", against(2, |it| &it.p99), None),
        ("p99, hash / hash (control)", against(1, |it| &it.p99), None),
        ("p99 with the first 1.5 s, ready to spill / hash", against(3, |it| &it.early_p99), None),
    ];
    if !open {
        let goal = Some(Goal::AtLeast(0.97));
        figures.push(("conn/s, ready to spill / hash", against(3, |it| &it.rate), goal));
        figures.push(("conn/s, no agent / hash", against(2, |it| &it.rate), None));
        figures.push(("conn/s, hash / hash (control)", against(1, |it| &it.rate), None));
    }
    for (what, spread, goal) in figures {
        bench.report.figure(&format!("{name}: {what}"), "x", &spread, goal);
    }
    let hash = estimate(&found[0].rate, &mut bench.rng);
    let p99 = estimate(&found[0].p99, &mut bench.rng);
    let text = format!("{name}: hash {:.0} conn/s, p99 {:.2} ms", hash.median(), p99.median());
    bench.report.note(&text);
    bench.report.gate(&format!("{name}: all answered"), failed == 0, &json!(failed));
    // Whether it has to depends on what else the machine does: a finding, not a condition.
    bench.report.note(&format!("{name}: widened in {widened} of {rounds} runs"));
}
