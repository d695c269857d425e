use std::collections::BTreeMap;
use std::time::Duration;

use reuseport_common::hist::{BUCKETS, bucket};

use super::*;
use crate::topology::synthetic::machine;
use crate::trace::tests::traced;

fn times(nanoseconds: &[u64]) -> OfCpu {
    let mut counts = [0; BUCKETS];
    for &time in nanoseconds {
        counts[bucket(time)] += 1;
    }
    let longest = nanoseconds.iter().copied().max().unwrap_or(0);
    let handshakes = Histogram::default();
    OfCpu { waits: Histogram::new(&counts), handshakes, longest, deepest: 2, unseen: 0 }
}

#[test]
fn adds_up_by_listener_group_and_cpu() {
    // Two nodes of two caches of two cores of two threads: 0 and 8 are siblings.
    let topology = machine(2, 2, 2, 2).build();
    let of = |by_cpu: &[(Cpu, OfCpu)]| OfListener {
        by_cpu: by_cpu.iter().cloned().collect(),
        queue: None,
        dropped: Some(1),
    };
    let reading = Reading {
        elapsed: Duration::from_secs(2),
        listeners: vec![
            of(&[(0, times(&[1000, 1000])), (1, times(&[5000]))]),
            of(&[(1, times(&[300_000_000]))]),
        ],
        pairs: BTreeMap::from([
            ((0, 0, 0), 1),
            ((0, 8, 0), 1),
            ((0, 0, 1), 1),
            ((1, 2, 1), 1),
            ((1, 4, 1), 0),
        ]),
        queued: 5,
        lost: Lost::default(),
        no_room: 2,
    };
    let summary = Summary::of(&reading, &[traced(1), traced(100)], Hook::Function, &topology);
    assert_eq!((summary.total.accepted, summary.queued, summary.no_room), (4, 5, 2));
    assert_eq!(summary.total.locality.counts(), [1, 1, 1, 1, 0]);
    let [first, second] = summary.groups.as_slice() else { panic!("{summary:#?}") };
    assert_eq!((first.total.accepted, second.total.accepted), (3, 1));
    assert_eq!(first.listeners[0].measures.locality.counts(), [1, 1, 1, 0, 0]);
    assert_eq!(first.listeners[0].pairs.len(), 3);
    assert_eq!((first.listeners[0].deepest_queue, first.listeners[0].dropped), (2, Some(1)));
    let wait = second.total.wait.unwrap();
    assert_eq!([wait.p50_us, wait.max_us].map(|it| it as u64), [300_000; 2]);
    assert_eq!(summary.total.handshake, None);
    let cpus: Vec<_> =
        summary.cpus.iter().map(|it| (it.cpu, it.received, it.measures.accepted)).collect();
    assert_eq!(cpus, [(0, 2, 2), (1, 0, 2), (2, 1, 0), (8, 1, 0)]);
    assert_eq!(summary.cpus[1].measures.locality.counts(), [0, 0, 1, 1, 0]);
}

#[test]
fn the_unseen_are_accepted_all_the_same() {
    let by_cpu = BTreeMap::from([(0, OfCpu { unseen: 3, ..OfCpu::default() })]);
    let listeners = vec![OfListener { by_cpu, ..OfListener::default() }];
    let reading = Reading { listeners, ..Reading::default() };
    let summary = Summary::of(&reading, &[traced(1)], Hook::Syscalls, &machine(1, 1, 1, 1).build());
    assert_eq!((summary.total.accepted, summary.total.unseen), (3, 3));
    assert_eq!((summary.total.locality.total(), summary.total.wait), (0, None));
    assert!(!summary.groups[0].listeners[0].listens);
}
