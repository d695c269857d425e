use super::super::judge;
use super::super::judge::tests::{cell, settings};
use super::*;
use crate::bench::costs::Selection;
use crate::bench::host::Environment;
use crate::bench::record::{SCHEMA, VERSION};

/// A record of one cell in which eBPF has this many times the hash's rate.
fn record(gain: f64, change: impl Fn(&mut Cell)) -> Record {
    let (mut cell, settings) = (cell(), settings());
    for it in cell.samples.iter_mut().filter(|it| it.mechanism == Ebpf) {
        it.rate *= gain / 1.08;
    }
    change(&mut cell);
    cell.verdict = Some(judge::judge(&cell, &settings));
    Record {
        schema: SCHEMA.to_owned(),
        version: VERSION,
        started: 0,
        environment: Environment::default(),
        settings,
        cells: vec![cell],
        costs: None,
        goals: Vec::new(),
    }
}

fn find<'a>(outcomes: &'a [Outcome], what: &str) -> &'a Outcome {
    outcomes.iter().find(|it| it.what == what).unwrap_or_else(|| panic!("{what}: {outcomes:#?}"))
}

const RATE: &str = "requests/s, ebpf / hash";

#[test]
fn a_goal_is_met_missed_or_open_by_its_interval() {
    for (gain, standing) in [(1.08, Standing::Met), (1.0, Standing::Missed), (1.05, Standing::Open)]
    {
        let outcomes = judge(&record(gain, |cell| {
            let ours = cell.samples.iter_mut().filter(|it| it.mechanism == Ebpf);
            let noisy = ours.filter(|_| standing == Standing::Open);
            noisy.for_each(|it| it.rate *= if it.repetition % 2 == 0 { 1.02 } else { 0.98 });
        }));
        let rate = find(&outcomes, RATE);
        assert_eq!(rate.cell, "t1 w1");
        assert_eq!(rate.wanted, ">= 1.05");
        assert_eq!(rate.standing, Some(standing), "{rate:#?}");
        let found = rate.found.unwrap();
        assert_eq!(found.n, 15);
        assert!((found.median - gain).abs() < 0.03 && found.ci95.contains(found.median));
    }
}

#[test]
fn equal_is_equal_to_each_not_to_the_hash() {
    let outcomes = judge(&record(1.08, |_| {}));
    for other in [ClassicBpf, IncomingCpu] {
        let same = find(&outcomes, &format!("requests/s, ebpf / {other}"));
        assert_eq!(same.standing, Some(Standing::Met), "{same:#?}");
        assert!(same.inconclusive_because.is_empty(), "{same:#?}");
    }
    // Better is not equal either: something is wrong with one of them.
    let outcomes = judge(&record(1.16, |_| {}));
    let better = find(&outcomes, "requests/s, ebpf / classic-bpf");
    assert_eq!(better.standing, Some(Standing::Missed), "{better:#?}");
    assert!(!better.inconclusive_because.is_empty(), "{better:#?}");
}

#[test]
fn what_was_not_measured_has_no_standing() {
    let without = record(1.08, |cell| cell.samples.retain(|it| it.mechanism != Ebpf));
    let outcomes = judge(&without);
    let rate = find(&outcomes, RATE);
    assert_eq!((rate.found, rate.standing), (None, None));
    // Of other cells nothing is said at all.
    assert!(outcomes.iter().all(|it| it.cell == "t1 w1"), "{outcomes:#?}");
    let mut quick = record(1.08, |_| {});
    quick.settings.quick = true;
    assert!(judge(&quick).iter().all(|it| it.standing.is_none()));
}

#[test]
fn one_lost_request_is_too_many() {
    for (lost, standing) in [(0, Standing::Met), (1, Standing::Missed)] {
        let outcomes = judge(&record(1.0, |cell| {
            cell.workload = W7;
            let ours = cell.samples.iter_mut().filter(|it| it.mechanism == Ebpf);
            ours.last().unwrap().unanswered = lost;
        }));
        let ours = find(&outcomes, "lost requests, ebpf");
        assert_eq!(ours.standing, Some(standing));
        assert_eq!(ours.found.unwrap().to_string(), format!("{lost} [{lost}..{lost}]"));
    }
}

#[test]
fn the_ratio_of_two_costs_is_as_wide_as_both_allow() {
    let about = |ns: f64| {
        let figures: Vec<f64> = (0..20).map(|it| ns + f64::from(it % 3)).collect();
        Estimate::of(&figures, &mut Rng::with_seed(1)).unwrap()
    };
    let selection = |mechanism, ns| Selection {
        mechanism,
        sockets: 4096,
        nanoseconds: about(ns),
        setup_ms: 1.0,
        memory_bytes: 0,
        program_ns: None,
    };
    let mut costs = Costs {
        selection: vec![selection(IncomingCpu, 2000.0), selection(Ebpf, 50.0)],
        left_out: Vec::new(),
        attach_ms: about(1.0),
        detach_ms: about(1.0),
        heal_ms: None,
    };
    let (of, base, goal) = SELECTION[0];
    let dearer = super::selection(&costs, of, base, goal, false);
    let found = dearer.found.unwrap();
    assert!((found.median - 2001.0 / 51.0).abs() < 1e-9, "{found}");
    assert!(found.ci95.low < found.median && found.median < found.ci95.high, "{found}");
    assert_eq!(dearer.standing, Some(Standing::Met));
    costs.selection.push(Selection { sockets: 1, ..selection(Ebpf, 48.0) });
    let (of, base, goal) = SELECTION[1];
    let flat = super::selection(&costs, of, base, goal, false);
    assert!((flat.found.unwrap().median - 51.0 / 49.0).abs() < 1e-9, "{flat:?}");
    assert_eq!(flat.what, "selection by ebpf, among 4096 / 1");
    // A cost that noise may have made out of nothing divides nothing.
    costs.selection[1] = selection(Ebpf, -1.0);
    let (of, base, goal) = SELECTION[0];
    let dearer = super::selection(&costs, of, base, goal, false);
    assert_eq!((dearer.found, dearer.standing), (None, None));
    assert!(!dearer.inconclusive_because.is_empty());
}

#[test]
fn the_cells_of_goals_are_each_named_once_and_can_be_had() {
    let cells = cells();
    assert_eq!(cells.len(), 8, "{cells:?}");
    assert!(cells.iter().all(|it| it.1.fits(it.0)));
}
