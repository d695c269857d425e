//! Who serves a listener, for each way of serving.

use std::thread;

use super::support::{Server, group};
use crate::model::{CpuSet, Evidence, Listener, Served, Worker};
use crate::sys::sched;

fn workers(listener: &Listener) -> &[Worker] {
    match &listener.served {
        Served::By(workers) => workers,
        Served::Unknown(reason) => panic!("{reason}"),
    }
}

/// CPUs that this process may use: what unpinned children inherit.
fn all() -> CpuSet {
    sched::affinity(0).unwrap()
}

#[test]
fn one_process_per_listener() {
    let one = Server::start("one");
    let other = Server::start_on("one", one.port);
    let group = group(&one);
    assert_eq!(group.key.address.to_string(), format!("127.0.0.1:{}", one.port));
    assert!(group.netns.own && group.key.netns != 0);
    let expected = [one.pid(), other.pid()].map(|pid| Worker {
        pid,
        tid: None,
        name: "python3".into(),
        cpus: all(),
        evidence: Evidence::SoleHolder,
    });
    let found: Vec<Worker> = group.listeners.iter().flat_map(workers).cloned().collect();
    assert_eq!(found, expected);
    assert!(group.listeners.iter().all(|listener| listener.backlog == 16 && listener.queued == 0));
}

#[test]
fn forked_families_without_their_parent() {
    for (style, evidence) in [
        ("fork-accept", Evidence::Accepting),
        ("fork-poll", Evidence::Polling),
        ("fork-select", Evidence::Polling),
        ("fork-epoll", Evidence::Polling),
        ("fork-busy", Evidence::Family),
    ] {
        let server = Server::start(style);
        let group = group(&server);
        let [listener] = group.listeners.as_slice() else { panic!("{group:?}") };
        assert_eq!(listener.holders.len(), 3, "{style}");
        let mut expected: Vec<_> =
            server.serves.iter().map(|&(pid, ..)| (pid, None, evidence)).collect();
        expected.sort_unstable();
        let found: Vec<_> = workers(listener)
            .iter()
            .map(|worker| (worker.pid, worker.tid, worker.evidence))
            .collect();
        assert_eq!(found, expected, "{style}");
    }
}

#[test]
fn threads_with_a_listener_each() {
    let cpus: Vec<u32> = all().iter().collect();
    for style in ["accept", "poll", "select", "epoll"] {
        let server = Server::start(&format!("sharded-{style}"));
        let group = group(&server);
        assert_eq!(group.listeners.len(), 2, "{style}");
        for (listener, cpu) in group.listeners.iter().zip([cpus[0], cpus[cpus.len() - 1]]) {
            let fd = listener.holders[0].fd;
            let (pid, tid, _) = *server.serves.iter().find(|serves| serves.2 == fd).unwrap();
            let [worker] = workers(listener) else { panic!("{listener:?}") };
            assert_eq!((worker.pid, worker.tid), (pid, Some(tid)), "{style}");
            assert_eq!(worker.cpus, CpuSet::from([cpu]), "{style}");
        }
    }
}

#[test]
fn an_event_loop_shared_by_threads_is_the_process() {
    let server = Server::start("loop");
    for listener in &group(&server).listeners {
        let [worker] = workers(listener) else { panic!("{listener:?}") };
        assert_eq!((worker.pid, worker.tid), (server.pid(), None));
        assert_eq!((&worker.cpus, worker.evidence), (&all(), Evidence::Polling));
    }
}

#[test]
fn an_event_loop_within_another() {
    let server = Server::start("nested");
    let group = group(&server);
    let [worker] = workers(&group.listeners[0]) else { panic!("{group:?}") };
    assert_ne!(worker.pid, server.pid());
    assert_eq!(worker.evidence, Evidence::Polling);
}

#[test]
fn busy_threads_on_different_cpus_are_unknown() {
    if all().len() < 2 {
        // Threads cannot run on different CPUs where there is one.
        return;
    }
    let server = Server::start("sharded-busy");
    for listener in &group(&server).listeners {
        let Served::Unknown(reason) = &listener.served else { panic!("{listener:?}") };
        assert!(reason.contains(&server.pid().to_string()) && reason.contains("--worker"));
    }
}

#[test]
fn our_own_threads_are_seen_too() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepting = listener.try_clone().unwrap();
    let thread = thread::spawn(move || drop(accepting.accept()));
    let groups = crate::discover::discover(&super::support::here(port)).unwrap();
    let [worker] = workers(&groups[0].listeners[0]) else { panic!("{groups:?}") };
    assert_eq!(worker.pid, std::process::id());
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    thread.join().unwrap();
}
