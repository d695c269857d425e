use std::collections::BTreeMap;

use super::*;
use crate::bench::record::{Flow, Matrix, Quantiles};
use crate::bench::topology::Topology;

pub(in crate::bench) fn settings() -> Settings {
    Settings {
        topologies: vec![Topology::T1],
        workloads: vec![Workload::W1],
        mechanisms: Mechanism::ALL.to_vec(),
        repetitions: 15,
        seconds: 1.0,
        warmup: 0.3,
        connections: 16,
        loads: vec![0.5],
        rate: None,
        seed: 1,
        quick: false,
        matrix: Matrix::All,
        costs: false,
        cpus: vec![0, 1],
    }
}

fn sample(mechanism: Mechanism, repetition: u32, rate: f64, remote: f64) -> Sample {
    let flow = |received, served| {
        let part = if received == served { 1.0 - remote } else { remote };
        Flow { received, served, count: (part * rate / 2.0) as u64 }
    };
    let quantiles = Quantiles { p50: 1e7 / rate, p99: 3e7 / rate, ..Quantiles::default() };
    Sample {
        mechanism,
        repetition,
        position: 0,
        requests: rate as u64,
        rate,
        latency: quantiles,
        curve: Vec::new(),
        accept: quantiles,
        chosen_remote: (mechanism == Mechanism::Ebpf).then_some(remote),
        settled_seconds: None,
        flows: vec![flow(0, 0), flow(0, 1), flow(1, 0), flow(1, 1)],
        cpu_us: Some(2e6 / rate),
        napi_seconds: 0.0,
        errors: BTreeMap::new(),
        unanswered: 0,
        stuck: 0,
        slowest_ms: Vec::new(),
        steal: 0.0,
    }
}

/// As a quiet machine with a gain of 8 % gives it, with 0.5 % of noise.
pub(in crate::bench) fn cell() -> Cell {
    let mut samples = Vec::new();
    for repetition in 0..15 {
        let noise =
            |place: u32| 1.0 + 0.005 * (f64::from((repetition * 7 + place * 5) % 11) / 5.0 - 1.0);
        for (mechanism, ratio, remote) in [
            (Mechanism::Hash, 1.0, 0.5),
            (Mechanism::HashAgain, 1.0, 0.5),
            (Mechanism::ClassicBpf, 1.08, 0.0),
            (Mechanism::IncomingCpu, 1.08, 0.0),
            (Mechanism::Ebpf, 1.08, 0.0),
            (Mechanism::EbpfWrongCpu, 0.8, 1.0),
        ] {
            let rate = 30_000.0 * ratio * noise(mechanism as u32);
            samples.push(sample(mechanism, repetition, rate, remote));
        }
    }
    Cell {
        topology: Topology::T1,
        workload: Workload::W1,
        workers: 1,
        pace: Pace::Closed { connections: 16 },
        load: None,
        excluded: BTreeMap::new(),
        background: vec![0.0; 15],
        samples,
        verdict: None,
    }
}

#[test]
fn a_quiet_machine_gives_a_figure() {
    let verdict = judge(&cell(), &settings());
    assert!(verdict.is_conclusive(), "{:#?}", verdict.inconclusive_because);
    let ratio = verdict.of(Mechanism::Ebpf).unwrap().ratios.rate.unwrap();
    assert!((ratio.median() - 1.08).abs() < 0.01 && ratio.ci95.low > 1.06, "{ratio}");
    assert!(verdict.gates.len() >= 8, "{:#?}", verdict.gates);
}

/// What spoils a cell, the gate that must say so, and whether noise may do it.
#[test]
fn each_thing_that_is_wrong_is_told() {
    type Spoil = fn(&mut Cell);
    let cases: [(&str, bool, Spoil); 10] = [
        ("nothing else runs", true, |cell| cell.background = vec![0.3; 15]),
        ("the hypervisor gives", true, |cell| {
            cell.samples.iter_mut().for_each(|it| it.steal = 0.02);
        }),
        ("every request is answered", false, |cell| cell.samples[3].unanswered = 1),
        ("ebpf: socket and program agree", false, |cell| {
            let ours = cell.samples.iter_mut().filter(|it| it.mechanism == Mechanism::Ebpf);
            ours.for_each(|it| it.chosen_remote = Some(0.02));
        }),
        ("ebpf serves where it receives", false, |cell| {
            cell.samples[4] = sample(Mechanism::Ebpf, 0, 30_000.0, 0.02);
        }),
        ("ebpf-wrong-cpu serves where", false, |cell| {
            cell.samples[5] = sample(Mechanism::EbpfWrongCpu, 0, 30_000.0, 0.9);
        }),
        ("the hash is blind", false, |cell| {
            for it in cell.samples.iter_mut().filter(|it| it.mechanism == Mechanism::Hash) {
                *it = sample(Mechanism::Hash, it.repetition, it.rate, 0.4);
            }
        }),
        ("hash against hash", true, |cell| {
            let again = cell.samples.iter_mut().filter(|it| it.mechanism == Mechanism::HashAgain);
            again.for_each(|it| it.rate *= 1.03);
        }),
        ("all that steer by CPU", true, |cell| {
            let one = cell.samples.iter_mut().filter(|it| it.mechanism == Mechanism::IncomingCpu);
            one.for_each(|it| it.rate *= 1.04);
        }),
        ("packets arrive on every CPU", false, |cell| {
            for it in &mut cell.samples {
                it.flows.retain(|flow| flow.received == 0);
            }
        }),
    ];
    for (gate, noise, spoil) in cases {
        let mut cell = cell();
        spoil(&mut cell);
        let verdict = judge(&cell, &settings());
        let failed: Vec<_> = verdict.gates.iter().filter(|it| !it.passed).collect();
        assert!(failed.iter().any(|it| it.what.starts_with(gate)), "{gate}: {failed:#?}");
        assert_eq!(failed.iter().any(|it| !it.noise), !noise, "{gate}: {failed:#?}");
        assert!(!verdict.is_conclusive());
    }
}

#[test]
fn the_wrong_cpu_must_be_worse_when_balanced_and_better_under_skew() {
    let mut skewed = cell();
    skewed.topology = Topology::T2;
    for it in &mut skewed.samples {
        it.flows.retain(|flow| flow.received == 0);
    }
    let verdict = judge(&skewed, &settings());
    let because = &verdict.inconclusive_because;
    assert!(because.iter().any(|it| it.contains("the other CPU is better")), "{because:#?}");
    for it in skewed.samples.iter_mut().filter(|it| it.mechanism == Mechanism::EbpfWrongCpu) {
        it.rate *= 1.6;
    }
    let verdict = judge(&skewed, &settings());
    assert!(verdict.is_conclusive(), "{:#?}", verdict.inconclusive_because);
}

#[test]
fn a_quick_run_quotes_nothing() {
    let quick = Settings { quick: true, ..settings() };
    let verdict = judge(&cell(), &quick);
    assert!(!verdict.is_conclusive());
    assert_eq!(verdict.gates.iter().filter(|gate| !gate.passed).count(), 0);
}
