//! Who serves a listener, for each way of serving.

use std::thread;

use super::support::{Seen, Server, eventually, group, here, workers};
use crate::discover::discover;
use crate::model::{CpuSet, Evidence, Served};
use crate::sys::sched;

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
    assert!(group.listeners.iter().all(|listener| listener.backlog == 16 && listener.queued == 0));
    let expected: Seen = [one.pid(), other.pid()]
        .map(|pid| Ok(vec![(pid, None, Evidence::SoleHolder, all().to_string())]))
        .into();
    assert_eq!(workers(&group), expected);
    assert!(matches!(&group.listeners[0].served, Served::By(it) if it[0].name == "python3"));
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
        assert_eq!(group(&server).listeners[0].holders.len(), 3, "{style}");
        let mut expected: Vec<_> = server
            .serves
            .iter()
            .map(|&(pid, ..)| (pid, None, evidence, all().to_string()))
            .collect();
        expected.sort_unstable();
        eventually(&server, &vec![Ok(expected)], workers);
    }
}

#[test]
fn threads_with_a_listener_each() {
    let cpus: Vec<u32> = all().iter().collect();
    for (style, evidence) in [
        ("sharded-accept", Evidence::Accepting),
        ("sharded-poll", Evidence::Polling),
        ("sharded-select", Evidence::Polling),
        ("sharded-epoll", Evidence::Polling),
    ] {
        let server = Server::start(style);
        let mut serves = server.serves.clone();
        serves.sort_unstable_by_key(|&(_, _, fd)| fd);
        let expected: Seen = serves
            .iter()
            .zip([cpus[0], cpus[cpus.len() - 1]])
            .map(|(&(pid, tid, _), cpu)| Ok(vec![(pid, Some(tid), evidence, cpu.to_string())]))
            .collect();
        assert_eq!(expected.len(), 2);
        eventually(&server, &expected, workers);
    }
}

#[test]
fn an_event_loop_shared_by_threads_is_the_process() {
    let server = Server::start("loop");
    let whole = vec![(server.pid(), None, Evidence::Polling, all().to_string())];
    eventually(&server, &vec![Ok(whole.clone()), Ok(whole)], workers);
}

#[test]
fn an_event_loop_within_another() {
    let server = Server::start("nested");
    eventually(&server, &vec![(false, Evidence::Polling)], |group| {
        let seen = workers(group).into_iter().flatten().flatten();
        seen.map(|(pid, _, evidence, _)| (pid == server.pid(), evidence)).collect()
    });
}

#[test]
fn busy_threads_and_rings_on_different_cpus_are_unknown() {
    if all().len() < 2 {
        // Threads cannot run on different CPUs where there is one.
        return;
    }
    for (style, why) in [("sharded-busy", "busy"), ("sharded-ring", "io_uring")] {
        let server = Server::start(style);
        for served in workers(&group(&server)) {
            let reason = served.unwrap_err();
            assert!(reason.contains(&server.pid().to_string()), "{reason}");
            assert!(reason.contains("--worker") && reason.contains(why), "{reason}");
        }
    }
}

#[test]
fn our_own_threads_are_seen_too() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepting = listener.try_clone().unwrap();
    let thread = thread::spawn(move || drop(accepting.accept()));
    let groups = discover(&here(port)).unwrap();
    let served = workers(&groups[0]).remove(0).unwrap();
    assert_eq!((served.len(), served[0].0), (1, std::process::id()));
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    thread.join().unwrap();
}
