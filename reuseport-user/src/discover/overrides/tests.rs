use super::*;
use crate::model::{GroupKey, Holder, Netns, Protocol};

fn listener(cookie: u64, holders: &[(Pid, i32)], served: Served) -> Listener {
    let holders = holders.iter().map(|&(pid, fd)| Holder { pid, fd }).collect();
    Listener { cookie, inode: cookie, queued: 0, backlog: 1, holders, served }
}

fn group(listeners: Vec<Listener>) -> Vec<Group> {
    let address = "0.0.0.0:80".parse().unwrap();
    let key =
        GroupKey { netns: 1, protocol: Protocol::Tcp, address, v6only: false, device: 0, uid: 0 };
    vec![Group { key, netns: Netns { cookie: 1, inode: 1, pid: None, own: true }, listeners }]
}

fn worker(pid: Pid, tid: Option<Pid>, cpus: CpuSet, evidence: Evidence) -> Worker {
    Worker { pid, tid, name: "w".into(), cpus, evidence }
}

fn found(pid: Pid, tid: Option<Pid>) -> Served {
    Served::By(vec![worker(pid, tid, CpuSet::from([0, 1]), Evidence::SoleHolder)])
}

fn told(pid: Pid, tid: Option<Pid>, cpu: Cpu) -> Served {
    Served::By(vec![worker(pid, tid, CpuSet::from([cpu]), Evidence::Told)])
}

fn unknown() -> Served {
    Served::Unknown("why".into())
}

/// What listeners are served by after the overrides.
fn applied(overrides: &Overrides, mut groups: Vec<Group>) -> Result<Vec<Served>, OverrideError> {
    let before = groups.clone();
    let result = overrides.apply_with(&mut groups, &|_, _| "w".into());
    if result.is_err() {
        assert_eq!(groups, before, "an error must change nothing");
    }
    result.map(|()| groups.remove(0).listeners.into_iter().map(|it| it.served).collect())
}

fn workers(list: &[(Pid, Option<Pid>, Cpu)]) -> Overrides {
    let workers = list.iter().map(|&(pid, tid, cpu)| (pid, tid, CpuSet::from([cpu]))).collect();
    Overrides { workers, order: None }
}

#[test]
fn a_process_has_new_cpus() {
    let groups = || {
        group(vec![
            listener(1, &[(10, 3)], found(10, None)),
            listener(2, &[(11, 3)], found(11, None)),
        ])
    };
    let result = applied(&workers(&[(11, None, 5)]), groups());
    assert_eq!(result, Ok(vec![found(10, None), told(11, None, 5)]));
    let result = applied(&workers(&[(11, None, 5), (12, None, 1)]), groups());
    assert!(
        matches!(&result, Err(OverrideError::UnusedWorker { worker, holders })
        if worker == "12" && holders == "10, 11"),
        "{result:?}"
    );
}

#[test]
fn a_process_claims_what_it_alone_holds() {
    let groups =
        group(vec![listener(1, &[(10, 3)], unknown()), listener(2, &[(10, 4)], unknown())]);
    let result = applied(&workers(&[(10, None, 5)]), groups);
    assert_eq!(result, Ok(vec![told(10, None, 5), told(10, None, 5)]));
    // Two hold both: neither can be meant by its process alone.
    let both = [(10, 3), (11, 3)];
    let groups = group(vec![listener(1, &both, unknown()), listener(2, &both, unknown())]);
    assert!(applied(&workers(&[(10, None, 5)]), groups).is_err());
}

#[test]
fn a_thread_has_new_cpus_or_takes_the_next_unknown_listener() {
    let groups = || {
        group(vec![
            listener(1, &[(10, 9)], unknown()),
            listener(2, &[(10, 4)], unknown()),
            listener(3, &[(10, 5)], found(10, Some(77))),
        ])
    };
    let result =
        applied(&workers(&[(10, Some(77), 3), (10, Some(70), 1), (10, Some(71), 2)]), groups());
    // Descriptor 4 before 9, whatever the order of the listeners.
    assert_eq!(
        result,
        Ok(vec![told(10, Some(71), 2), told(10, Some(70), 1), told(10, Some(77), 3)])
    );
    let too_many = workers(&[(10, Some(70), 1), (10, Some(71), 2), (10, Some(72), 3)]);
    let result = applied(&too_many, groups());
    assert!(
        matches!(&result, Err(OverrideError::UnusedWorker { worker, .. }) if worker == "10/72")
    );
}

#[test]
fn an_order_names_cpus_one_by_one() {
    let groups = || {
        group(vec![
            listener(1, &[(10, 3)], unknown()),
            listener(2, &[(11, 3)], found(11, None)),
            listener(3, &[], unknown()),
        ])
    };
    let order = |cpus: &[Cpu]| Overrides { workers: vec![], order: Some(cpus.to_vec()) };
    assert_eq!(
        applied(&order(&[6, 7, 8]), groups()),
        Ok(vec![told(10, None, 6), told(11, None, 7), unknown()])
    );
    for wrong in [&[0, 1, 2, 3][..], &[0, 1]] {
        let refused = OverrideError::OrderLength { cpus: wrong.len(), listeners: 3 };
        assert_eq!(applied(&order(wrong), groups()), Err(refused));
    }
    let mut both = workers(&[(11, None, 9)]);
    both.order = Some(vec![6, 7, 8]);
    assert_eq!(applied(&both, groups()), Ok(vec![told(10, None, 6), told(11, None, 9), unknown()]));
}
