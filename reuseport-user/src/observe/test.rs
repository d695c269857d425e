//! Snapshots for tests: groups with workers of any slots and counts.

use std::time::Duration;

use reuseport_common::abi::Role;

use super::Snapshot;
use crate::agent::State;
use crate::agent::state::{Event, Evictions, GroupState, HealthState, Latency, Phase, Watching};
use crate::bpf::owner::Attached;
use crate::model::{CpuSet, Evidence, GroupKey, Listener, Netns, Protocol, Served, Worker};
use crate::rungs::{Choice, PassedOver, Rung, Why};
use crate::steer::status::{
    Counters, CpuCounters, ListenerStatus, RowStatus, SlotCounters, Steering,
};
use crate::steer::{GroupStatus, RungStatus};

/// Taken this many seconds after the machine began.
pub(crate) fn snapshot(seconds: u64, groups: Vec<GroupStatus>) -> Snapshot {
    Snapshot {
        version: "1.2.3".to_owned(),
        clock: Duration::from_secs(seconds),
        taken_at: 1_700_000_000 + seconds,
        groups,
        unseen: Vec::new(),
        agent: None,
    }
}

/// That keeps 127.0.0.1:8080 and changed its mapping once.
pub(crate) fn agent() -> State {
    let key = group(Vec::new()).group;
    let netns = Netns { cookie: 42, inode: 4, pid: None, own: true };
    State {
        pid: 99,
        started_at: 1_600_000_000,
        watching: Watching::Functions,
        ticks: 17,
        failed_ticks: 2,
        last_tick: Duration::from_millis(7),
        groups: vec![GroupState {
            key,
            netns,
            phase: Phase::Steered,
            pins: None,
            rung: Some(Choice {
                rung: Rung::IncomingCpu,
                passed_over: vec![PassedOver {
                    rung: Rung::Ebpf,
                    why: Why::NotPermitted("CAP_BPF is missing".to_owned()),
                }],
            }),
            program_id: Some(7),
            seats: Vec::new(),
            heals: 1,
            latency: Latency::default(),
            superseded: 2,
            restored: 1,
            problem: None,
            health: HealthState {
                evictions: Evictions { stalled: 2, full: 1 },
                hot: CpuSet::from([1]),
                widenings: 4,
                ..HealthState::default()
            },
        }],
        events: [Event {
            at: 1_600_000_001_000_000,
            group: Some(key),
            what: "attached".to_owned(),
        }]
        .into(),
    }
}

/// 127.0.0.1:8080, steered by program 7 with a row for each of two CPUs and nothing counted.
pub(crate) fn group(listeners: Vec<ListenerStatus>) -> GroupStatus {
    let row = |row: u32| RowStatus { row, first: vec![row], second: vec![1 - row] };
    GroupStatus {
        group: GroupKey {
            netns: 42,
            protocol: Protocol::Tcp,
            address: "127.0.0.1:8080".parse().unwrap(),
            v6only: false,
            device: 0,
            uid: 1000,
        },
        netns_pid: None,
        attached: Attached::Program { id: 7 },
        rung: RungStatus {
            rung: Some(Rung::Ebpf),
            ours: true,
            elsewhere: false,
            why: "it is attached".to_owned(),
            auto: None,
        },
        steering: Some(Steering {
            pins: "/sys/fs/bpf/reuseport-steer/tcp4-8080-0".into(),
            program_id: 7,
            in_force: true,
            generation: 1,
            attached_at: 1_600_000_000,
            policy: Some("cpu"),
            migrates: true,
            logs: false,
            slots: 64,
            rows: vec![row(0), row(1)],
            counters: Counters::default(),
        }),
        listeners,
        traced: None,
        problems: Vec::new(),
    }
}

/// Of a worker process with the cookie for its id, pinned to one CPU.
pub(crate) fn listener(cookie: u64, slot: Option<u32>, cpu: u32) -> ListenerStatus {
    let worker = Worker {
        pid: cookie as u32,
        tid: None,
        name: "worker".to_owned(),
        cpus: CpuSet::from([cpu]),
        evidence: Evidence::SoleHolder,
    };
    let listener = Listener {
        cookie,
        inode: cookie,
        queued: 3,
        backlog: 128,
        holders: Vec::new(),
        served: Served::By(vec![worker]),
    };
    ListenerStatus {
        slot,
        weight: 100,
        role: Role::Active,
        incoming_cpu: None,
        evicted: false,
        listener,
        selections: 0,
        traced: None,
    }
}

/// Lets the group have counted first choices: (receiving CPU, slot, how many).
pub(crate) fn counted(mut group: GroupStatus, cells: &[(u32, u32, u64)]) -> GroupStatus {
    let counters = &mut group.steering.as_mut().unwrap().counters;
    for &(cpu, slot, runs) in cells {
        counters.runs += runs;
        counters.first += runs;
        match counters.by_cpu.iter_mut().find(|it| it.cpu == cpu) {
            Some(it) => it.slots.push((slot, runs)),
            None => counters.by_cpu.push(CpuCounters { cpu, slots: vec![(slot, runs)] }),
        }
        if !counters.by_slot.iter().any(|it| it.slot == slot) {
            counters.by_slot.push(SlotCounters { slot, ..SlotCounters::default() });
        }
        let of_slot = counters.by_slot.iter_mut().filter(|it| it.slot == slot);
        of_slot.for_each(|it| it.first += runs);
        for it in &mut group.listeners {
            it.selections += if it.slot == Some(slot) { runs } else { 0 };
        }
    }
    group
}
