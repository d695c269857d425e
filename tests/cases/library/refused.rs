//! What cannot be opened: a clear error, nothing left behind. In this very process, so that what is
//! left can be seen.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use reuseport_tests::binary::Cli;
use reuseport_tests::leak;
use reuseport_tests::netns::Netns;
use reuseport_tests::scene::{Scene, text};
use reuseport_tests::server::Server;
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, require, sys};
use reuseport_user::bpf::pins::{BPFFS, Pins};
use reuseport_user::group::{Group, GroupBuilder, GroupError, TakeError, Workers};
use reuseport_user::rungs::Rung;

use super::{ADDRESS, TCP, assert_by_hash, from_each_cpu, here};

fn address() -> SocketAddr {
    ADDRESS.parse().expect("an address")
}

/// Asserts that the builder is refused in `netns` with these words, and that nothing of it is open.
fn refused(netns: &Netns, builder: impl Fn(GroupBuilder) -> GroupBuilder + Sync, words: &[&str]) {
    netns.run_in(|| {
        let builder = builder(Group::builder());
        let error = builder.build().expect_err("it must be refused").to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    });
    let listening = netns.run("ss", &["-Htlnp"]);
    let own = format!("pid={},", std::process::id());
    assert!(!listening.contains(&own), "left open: {listening}");
}

#[test]
fn workers_that_cannot_be() {
    leak::scene(|netns| {
        let tcp = |builder: GroupBuilder| builder.tcp(address());
        refused(netns, |it| it, &["needs an address"]);
        refused(netns, |it| tcp(it).workers(Workers::Count(0)), &["at least one worker"]);
        refused(netns, |it| tcp(it).workers(Workers::On(Vec::new())), &["at least one worker"]);
        let more = cpus().len() + 1;
        let words = [&format!("{more} workers are more than"), "taskset"];
        refused(netns, |it| tcp(it).workers(Workers::Count(more)), &words.map(|it| it));
        refused(netns, |it| tcp(it).workers(Workers::On(vec![0, 4000])), &["CPU 4000", "cpuset"]);
    });
}

#[test]
fn a_cpu_outside_the_cpuset() {
    require::cpus(2);
    let netns = Netns::new();
    let (inside, outside) = (cpus()[0], cpus()[1]);
    netns.run_in(|| {
        sys::pin(0, &[inside]).expect("run on a CPU");
        let build = |workers| Group::builder().tcp(address()).workers(workers).build();
        let error = build(Workers::On(vec![inside, outside])).expect_err("outside");
        assert!(matches!(error, GroupError::CpuNotAllowed { .. }), "{error}");
        assert!(error.to_string().contains(&format!("CPU {outside}")), "{error}");
        assert!(matches!(build(Workers::Count(2)), Err(GroupError::TooManyWorkers { .. })));
        let mut group = build(Workers::PerCpu).expect("one worker");
        let workers = group.take_workers();
        assert_eq!(
            workers.iter().map(reuseport_user::group::Worker::cpu).collect::<Vec<_>>(),
            [inside]
        );
    });
}

#[test]
fn a_port_in_use() {
    for (spec, words) in [
        (Spec { reuseport: false, ..Spec::default() }, ["without SO_REUSEPORT", "steer-test-work"]),
        (Spec { user: Some((33, 33)), ..Spec::default() }, ["user 33", "steer-test-work"]),
    ] {
        leak::scene(|netns| {
            let worker = Worker::start(netns, &Spec { addr: "127.0.0.1", ..spec.clone() });
            let pid = format!("process {}", worker.pid());
            let words = [&words[..], &["127.0.0.1:8080", &pid]].concat();
            // The first address is free, and is given back.
            let first: SocketAddr = "127.0.0.1:8081".parse().expect("an address");
            refused(netns, |it| it.tcp(first).tcp(address()), &words);
        });
    }
}

#[test]
fn addresses_that_cannot_be_had() {
    leak::scene(|netns| {
        let elsewhere: SocketAddr = "192.0.2.1:80".parse().expect("an address");
        refused(netns, |it| it.tcp(elsewhere), &["192.0.2.1:80", "no interface"]);
        let (_directory, copy) = reuseport_tests::server::copy();
        let mut command = netns.command("setpriv");
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"];
        command.args(nobody).arg(&copy).arg("tcp=127.0.0.1:80");
        let server = Server::spawn(command);
        let error = text(&server.said("error"));
        assert!(error.contains("127.0.0.1:80") && error.contains("NET_BIND_SERVICE"), "{error}");
    });
}

#[test]
fn more_sockets_than_may_be_open() {
    leak::scene(|netns| {
        let addresses: Vec<String> =
            (1..=40).map(|host| format!("tcp=127.0.0.{host}:80")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let limited = ["prlimit", "--nofile=30"];
        let mut server = Server::start_through(netns, &limited, &addresses);
        let error = text(&server.said("error"));
        let needed = format!("{} sockets", 40 * cpus().len());
        assert!(error.contains(&needed) && error.contains("RLIMIT_NOFILE"), "{error}");
        assert_eq!(server.wait().0.code(), Some(1));
    });
}

/// Half of as many listeners as a group may have.
const HALF: &str = "
import resource, socket, time
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
listeners = [socket.socket() for _ in range(16384)]
for listener in listeners:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(('127.0.0.1', 8080))
    listener.listen()
print('full', flush=True)
time.sleep(1000)
";

/// The kernel's own limit, which other instances of the program may have reached.
#[test]
fn a_group_that_is_full() {
    let netns = Netns::new();
    let half = || {
        let mut command = netns.command("/usr/bin/python3");
        command.args(["-c", HALF]);
        Server::spawn(command)
    };
    let _full = [half(), half()];
    let mut server = Server::start(&netns, &[TCP]);
    let error = text(&server.said("error"));
    assert!(error.contains("127.0.0.1:8080: the kernel takes no further listener"), "{error}");
    assert_eq!(server.wait().0.code(), Some(1));
}

#[test]
fn inherited_sockets_that_do_not_fit() {
    let netns = Netns::new();
    let open = |reuseport: bool| {
        netns.run_in(|| {
            let fd = sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0).expect("a socket");
            let on = i32::from(reuseport).to_ne_bytes();
            sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, &on).expect("set");
            sys::bind(fd.as_fd(), address()).expect("bind");
            sys::listen(fd.as_fd(), 1).expect("listen");
            fd
        })
    };
    let alone = open(false);
    let copy = alone.try_clone().expect("duplicate");
    let server = Server::start_with(&netns, [alone, copy], &[TCP]);
    let error = text(&server.said("error"));
    assert!(error.contains("ReusePort=yes"), "{error}");
    drop(server);
    let server = Server::start_with(&netns, [open(true), open(true)], &[TCP, "workers=count:1"]);
    let error = text(&server.said("error"));
    assert!(error.contains("2 sockets were inherited for 1 workers"), "{error}");
}

/// Steering that was demanded and is refused half-way leaves nothing attached.
#[test]
fn the_second_address_fails_and_the_first_is_given_back() {
    require::cpus(2);
    let scene = Scene::new();
    let spec = Spec { addr: "127.0.0.2", ..Spec::default() };
    let worker = Worker::start(&scene.netns, &spec);
    let deed = reuseport_tests::hostile::Deed::Program;
    let _stranger = reuseport_tests::hostile::Stranger::start(&scene.netns, &worker, deed);
    let second: SocketAddr = "127.0.0.2:8080".parse().expect("an address");
    let build = |it: GroupBuilder| it.tcp(address()).tcp(second).rung(Rung::Ebpf);
    refused(&scene.netns, build, &["127.0.0.2:8080", "another program is attached"]);
    // Those who need no program go on.
    scene.netns.run_in(|| {
        let group = Group::builder().tcp(address()).tcp(second).build().expect("on another rung");
        assert_eq!(group.rung().rung, Rung::Hash, "{}", group.rung());
    });
}

#[test]
fn each_socket_is_given_out_once() {
    let netns = Netns::new();
    netns.run_in(|| {
        let second: SocketAddr = "127.0.0.1:8081".parse().expect("an address");
        let builder = Group::builder().tcp(address()).udp(second).rung(Rung::Hash);
        let mut group = builder.build().expect("a group");
        let mut workers = group.take_workers();
        assert!(group.take_workers().is_empty());
        let worker = workers.first_mut().expect("a worker");
        assert_eq!(worker.sockets().count(), 2);
        let listener = worker.listener().expect("a listener");
        assert_eq!(listener.local_addr().expect("its address"), address());
        assert!(matches!(worker.listener(), Err(TakeError::NoneLeft(_))));
        assert_eq!(worker.udp_socket().expect("a socket").local_addr().expect("its"), second);
        assert!(worker.raw_socket().is_none());
        assert_eq!(worker.sockets().count(), 0);
    });
}

/// `LOAD` as the program reads it.
fn loads() -> Vec<(u32, u32)> {
    let pins = Pins::at(BPFFS.as_ref()).expect("bpffs");
    let found = pins.list().expect("pins");
    let of_ours = |(_, pinned): (_, Result<reuseport_user::bpf::pins::Pinned, _>)| {
        let pinned = pinned.ok()?;
        let group = pinned.maps.config().ok()?.group;
        (group.port == 8125).then_some(pinned)
    };
    let pinned = found.into_iter().find_map(of_ours).expect("our pins");
    (0..2).map(|slot| pinned.maps.load(slot)).map(|load| (load.pending, load.limit)).collect()
}

#[test]
fn what_is_published_is_what_the_program_reads() {
    require::cpus(2);
    let netns = Netns::new();
    netns.run_in(|| {
        let here: SocketAddr = "127.0.0.1:8125".parse().expect("an address");
        let mut group = Group::builder().tcp(here).spill_above(5).build().expect("a group");
        let workers = group.take_workers();
        let (first, none) = (workers[0].load_guard(), (0, 0));
        assert!(first.is_published());
        assert_eq!(loads(), [(0, 5), none]);
        // Maps of a later program would not be those that it publishes in.
        let experiment = ["experiment", "--netns", "/proc/self/ns/net", "--port", "8125"];
        let load = ["--load", "echo x = 1", "--metric", "x = (.*)"];
        let refused = Cli::new(experiment.into_iter().chain(load)).run().fails(7);
        refused.says("publishes load limits");
        assert_eq!(loads(), [(0, 5), none]);
        let connections = [first.enter(), first.enter()];
        assert_eq!(loads(), [(2, 5), none]);
        let busy = first.busy();
        assert!(loads()[0].0 > loads()[0].1, "{:?}", loads());
        drop(busy);
        assert_eq!(loads(), [(2, 5), none]);
        drop(connections);
        first.set(7);
        first.set_limit(Some(9));
        let second = workers[1].load_guard();
        assert_eq!(loads()[0], (7, 9));
        second.set_limit(None);
        second.set(1_000_000);
        assert!(loads()[1].0 < loads()[1].1, "{:?}", loads());
        drop((first, second));
        assert_eq!(loads(), [none, none]);
    });
}

#[test]
fn dropping_the_group_detaches_and_persist_does_not() {
    require::cpus(2);
    let scene = Scene::new();
    let server = Server::start(&scene.netns, &[TCP, "rung=hash"]);
    // A second group on the address, without anybody who accepts: only its steering matters.
    scene.netns.run_in(|| {
        let group = Group::builder().tcp(address()).build().expect("a group");
        assert_eq!(group.rung().rung, Rung::Ebpf, "{}", group.rung());
        assert_eq!(scene.status()["steering"]["in_force"], true);
        drop(group);
        // The other process has a seat in it, and goes on being steered.
        assert_eq!(scene.status()["steering"]["in_force"], true);
    });
    from_each_cpu(&scene.netns, &here()).assert_local(reuseport_tests::scene::place);
    assert_eq!(scene.detach(), "detached");
    assert_by_hash(&scene.netns);
    server.stop();
    scene.netns.run_in(|| {
        let mut group = Group::builder().tcp(address()).build().expect("a group");
        let workers = group.take_workers();
        drop(group);
        assert_eq!(scene.status()["attached"]["state"], "nothing");
        drop(workers);
        let group = Group::builder().tcp(address()).build().expect("a group");
        let workers = group.persist();
        assert_eq!(workers.len(), cpus().len());
        assert_eq!(scene.status()["steering"]["in_force"], true);
        drop(workers);
    });
    assert_eq!(scene.detach(), "cleared");
}
