use std::sync::Arc;

use super::*;
use crate::agent::state::Watching;
use crate::agent::wakes::Wakes;
use crate::model::Protocol;
use crate::steer::attach::AttachOptions;

#[test]
fn a_group_that_vanishes_during_a_tick_is_no_problem() {
    let key = GroupKey {
        netns: 42,
        protocol: Protocol::Tcp,
        address: "127.0.0.1:8080".parse().unwrap(),
        v6only: false,
        device: 0,
        uid: 0,
    };
    let netns = Netns { cookie: 42, inode: 4, pid: None, own: true };
    let group = Group { key, netns, listeners: Vec::new() };
    let attach = AttachOptions::new(Target::tcp(8080));
    let goal = Goal { attach, workers: Vec::new() };
    let options = AgentOptions {
        goals: Vec::new(),
        interval: Duration::from_secs(1),
        generation_timeout: Duration::from_mins(1),
        detach_on_exit: false,
        spill: false,
        widen: false,
    };
    let mut keeper = Keeper::new(goal, &options);
    let (_wakes, waker) = Wakes::new().unwrap();
    let shared = Arc::new(Shared::new(waker, Watching::Functions));
    let mut journal = Journal::new(Arc::clone(&shared));
    let vanished = || SteerError::Vanished { group: key };

    let mut report = TickReport { settled: true, failure: None };
    keeper.note(&group, Err(vanished()), &shared, &mut journal, &mut report);
    assert!(!report.settled && report.failure.is_none(), "{report:?}");
    let report = keeper.failed(vanished(), &mut journal);
    assert!(!report.settled && report.failure.is_none(), "{report:?}");
    let state = shared.state();
    assert_eq!(state.groups[0].problem, None);
    assert!(state.events.iter().all(|it| it.what == VANISHED), "{:?}", state.events);
    assert_eq!((state.events.len(), keeper.problem), (2, None));
}
