use super::*;
use crate::discover::evidence::epoll::EpollSet;
use crate::discover::evidence::sample::Thread;
use crate::model::{Cpu, CpuSet};

const L1: u64 = 101;
const L2: u64 = 102;

/// A thread on `cpu`, blocked on these epoll sets and in accept on these listeners.
fn thread(tid: Pid, cpu: Cpu, epfds: &[i32], accepts: &[u64]) -> Thread {
    Thread {
        tid,
        name: format!("t{tid}"),
        cpus: CpuSet::from([cpu]),
        on: accepts.iter().map(|&inode| (inode, Evidence::Accepting)).collect(),
        epfds: epfds.to_vec(),
        ..Thread::default()
    }
}

/// A process that holds both listeners.
fn process(pid: Pid, parent: Pid, threads: Vec<Thread>, sets: &[(i32, &[u64])]) -> Process {
    let sets = sets.iter().map(|&(fd, watched)| EpollSet { fd, watched: watched.to_vec() });
    Process {
        pid,
        parent,
        name: format!("p{pid}"),
        threads,
        held: vec![(3, L1), (4, L2)],
        sets: sets.collect(),
        io_uring: false,
        denied: false,
    }
}

/// Process, thread, evidence and CPUs of a worker.
type Who = (Pid, Option<Pid>, Evidence, String);

/// Who serves `L1`.
fn who(processes: Vec<Process>) -> Result<Vec<Who>, String> {
    let holders: Vec<Holder> =
        processes.iter().map(|process| Holder { pid: process.pid, fd: 3 }).collect();
    let share = |process: &Process| (process.pid, Share::of(process, &[L1, L2]));
    let shares = processes.iter().map(share).collect();
    let processes = processes.into_iter().map(|process| (process.pid, process)).collect();
    match served(L1, &shares, &holders, &processes) {
        Served::By(workers) => Ok(workers
            .into_iter()
            .map(|it| (it.pid, it.tid, it.evidence, it.cpus.to_string()))
            .collect()),
        Served::Unknown(reason) => Err(reason),
    }
}

fn one(pid: Pid, tid: Option<Pid>, evidence: Evidence, cpus: &str) -> Who {
    (pid, tid, evidence, cpus.into())
}

#[test]
fn the_only_holder() {
    let it = process(10, 1, vec![thread(10, 2, &[], &[])], &[]);
    assert_eq!(who(vec![it]), Ok(vec![one(10, None, Evidence::SoleHolder, "2")]));
    assert!(who(vec![process(10, 1, vec![], &[])]).unwrap_err().contains("gone"));
}

#[test]
fn nginx() {
    // The master supervises, one worker is busy, one idle; each polls one listener.
    let mut master = process(10, 1, vec![thread(10, 0, &[], &[])], &[]);
    master.threads[0].supervising = true;
    let busy = process(11, 10, vec![thread(11, 0, &[], &[])], &[(8, &[L1])]);
    let idle = process(12, 10, vec![thread(12, 1, &[9], &[])], &[(9, &[L2])]);
    let result = who(vec![master, busy, idle]);
    assert_eq!(result, Ok(vec![one(11, None, Evidence::EpollSet, "0")]));
}

/// Its worker was killed: the listener lives on in the master and the other worker.
#[test]
fn nginx_with_a_dead_worker() {
    let mut master = process(10, 1, vec![thread(10, 0, &[], &[])], &[]);
    master.threads[0].supervising = true;
    let other = process(12, 10, vec![thread(12, 1, &[9], &[])], &[(9, &[L2])]);
    assert!(who(vec![master.clone(), other]).unwrap_err().contains("none was seen"));
    let blocked = process(13, 10, vec![thread(13, 1, &[], &[L2])], &[]);
    assert!(who(vec![master.clone(), blocked]).unwrap_err().contains("none was seen"));
    // A busy one that was not seen at any listener may be its worker.
    let busy = process(14, 10, vec![thread(14, 1, &[], &[])], &[]);
    assert_eq!(who(vec![master, busy]), Ok(vec![one(14, None, Evidence::Family, "1")]));
}

#[test]
fn a_parent_that_shares_its_epoll_set_is_no_worker() {
    let mut parent = process(10, 1, vec![thread(10, 0, &[], &[])], &[(8, &[L1])]);
    parent.threads[0].supervising = true;
    let child = process(11, 10, vec![thread(11, 1, &[8], &[])], &[(8, &[L1])]);
    assert_eq!(who(vec![parent, child]), Ok(vec![one(11, None, Evidence::Polling, "1")]));
}

#[test]
fn a_busy_sibling_is_a_worker_and_the_parent_is_not() {
    let parent = process(10, 1, vec![thread(10, 0, &[], &[])], &[]);
    let seen = process(11, 10, vec![thread(11, 1, &[], &[L1])], &[]);
    let busy = process(12, 10, vec![thread(12, 2, &[], &[])], &[]);
    let expected =
        vec![one(11, None, Evidence::Accepting, "1"), one(12, None, Evidence::Family, "2")];
    assert_eq!(who(vec![parent.clone(), seen, busy.clone()]), Ok(expected));
    // Nobody was seen.
    let result = who(vec![parent.clone(), busy.clone()]);
    assert_eq!(result, Ok(vec![one(12, None, Evidence::Family, "2")]));
    let hidden = Process { denied: true, ..busy.clone() };
    assert!(who(vec![parent.clone(), hidden]).unwrap_err().contains("CAP_SYS_PTRACE"));
    let ring = Process { io_uring: true, ..busy };
    assert!(who(vec![parent, ring]).unwrap_err().contains("io_uring"));
}

#[test]
fn a_thread_per_listener() {
    let threads = || vec![thread(20, 0, &[5], &[]), thread(21, 1, &[6], &[])];
    let sets: &[(i32, &[u64])] = &[(5, &[L1]), (6, &[L2])];
    let sharded = process(20, 1, threads(), sets);
    assert_eq!(who(vec![sharded.clone()]), Ok(vec![one(20, Some(20), Evidence::Polling, "0")]));
    // Unpinned all the same: which thread still matters for pinning.
    let mut uniform = sharded.clone();
    uniform.threads[1].cpus = CpuSet::from([0]);
    assert_eq!(who(vec![uniform.clone()]), Ok(vec![one(20, Some(20), Evidence::Polling, "0")]));
    // Busy and unpinned: the CPUs are known, the thread is not.
    uniform.threads[0].epfds.clear();
    assert_eq!(who(vec![uniform]), Ok(vec![one(20, None, Evidence::EpollSet, "0")]));
    // Busy and pinned.
    let mut busy = sharded;
    busy.threads[0].epfds.clear();
    assert!(who(vec![busy.clone()]).unwrap_err().contains("--worker"));
    busy.io_uring = true;
    assert!(who(vec![busy]).unwrap_err().contains("io_uring"));
}

#[test]
fn threads_that_take_turns_are_their_process() {
    let both: &[(i32, &[u64])] = &[(5, &[L1, L2])];
    // Go: one set for all, one thread on it at a time, all with the same CPUs.
    let go = process(20, 1, vec![thread(20, 0, &[], &[]), thread(21, 0, &[5], &[])], both);
    assert_eq!(who(vec![go]), Ok(vec![one(20, None, Evidence::Polling, "0")]));
    // Several seen on it, on different CPUs.
    let turns = process(20, 1, vec![thread(20, 0, &[5], &[]), thread(21, 1, &[5], &[])], both);
    assert_eq!(who(vec![turns]), Ok(vec![one(20, None, Evidence::Polling, "0-1")]));
}

#[test]
fn an_io_uring_with_several_listeners_hides_its_threads() {
    let threads = vec![thread(20, 0, &[], &[]), thread(21, 0, &[], &[])];
    let mut it = process(20, 1, threads, &[]);
    it.io_uring = true;
    assert!(who(vec![it.clone()]).unwrap_err().contains("io_uring"));
    // With one listener it does not matter which thread: they run on the same CPUs.
    it.held.pop();
    assert_eq!(who(vec![it]), Ok(vec![one(20, None, Evidence::SoleHolder, "0")]));
}
