//! A server of one's own: what the command sees of it, and how it ends.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::binary::Cli;
use reuseport_tests::bpffs::Bpffs;
use reuseport_tests::client::Target;
use reuseport_tests::leak;
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::scene::{Scene, number, text};
use reuseport_tests::server::Server;
use reuseport_tests::{cpus, eventually, require, sys};
use reuseport_user::group::{Group, Policy, Rung, Worker};
use serde_json::Value;

use super::{ADDRESS, TCP, assert_by_hash, assert_local, from_each_cpu, here};

#[test]
fn the_command_sees_it_as_any_other() {
    require::cpus(2);
    let scene = Scene::new();
    let server = Server::start(&scene.netns, &[TCP]);
    assert_eq!(server.rung(), "ebpf", "{}", server.ready);
    assert_eq!(server.said("notices"), serde_json::json!([]));
    scene.assert_steered();
    let status = scene.status();
    let listeners = status["listeners"].as_array().expect("listeners");
    assert_eq!(listeners.len(), cpus().len());
    for (listener, cpu) in listeners.iter().zip(cpus()) {
        let worker = &listener["served"]["by"][0];
        assert_eq!(worker["pid"], server.pid(), "{status:#}");
        assert_eq!(worker["cpus"], cpu.to_string(), "{status:#}");
    }
    // Attach finds it right already, and changes nothing of it.
    let report = scene.attach(&[]);
    assert_eq!(report["attached"]["in_place"], true, "{report:#}");
    assert_eq!(report["attached"]["generation"], status["steering"]["generation"], "{report:#}");
    assert_local(&scene.netns);
    // What it changes holds.
    scene.attach(&["--policy", "hash"]);
    assert_by_hash(&scene.netns);
    assert_eq!(scene.detach(), "detached");
    assert_by_hash(&scene.netns);
    scene.attach(&[]);
    assert_local(&scene.netns);
    server.stop();
}

/// The server changes what is steered when it restarts, the agent when workers come and go: neither
/// undoes what the other did, and no client notices.
#[test]
fn the_agent_keeps_it_and_does_not_fight_it() {
    require::cpus(2);
    let netns = Netns::new();
    let bpffs = Bpffs::new();
    let directory = bpffs.path().to_str().expect("a path of ours is text");
    let pins = format!("bpffs={directory}");
    let arguments = [TCP, &pins, "standby", "until-superseded"];
    let only = ["--port", "8080", "--netns", "/proc/self/ns/net", "--bpffs", directory];
    let seen = || {
        let args = [&["status", "--json"][..], &only].concat();
        Cli::new(args).netns(&netns).run().ok().json()
    };
    let generation = || number(&seen()[0]["steering"]["generation"]);
    let mut old = Server::start(&netns, &arguments);
    // A busy machine may keep a worker from accepting for a while, which is not what this is about.
    let agent = Agent::start(&netns, &bpffs, 8080, &["--spill", "off"]);
    let load = Load::start(&netns, &here(), &cpus(), 2);
    for _ in 0..3 {
        load.advance(50);
        // One that never gets ready takes nothing over.
        let mut broken = Server::start(&netns, &[&arguments[..3], &["fault=panic-core"]].concat());
        assert_eq!(broken.wait().0.code(), Some(1));
        load.advance(50);
        let new = Server::start(&netns, &arguments);
        let ended = eventually(Duration::from_secs(30), || !old.alive());
        assert!(ended, "{}\n{:#}", agent.log(), seen());
        let (status, report) = old.wait();
        assert!(status.success() && report.contains("Superseded"), "{status}: {report}");
        old = new;
    }
    load.advance(50);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{}", agent.log());
    assert_local(&netns);
    // At rest, nothing is changed any more.
    let mut last = generation();
    let at_rest = || std::mem::replace(&mut last, generation()) == last;
    assert!(eventually(Duration::from_secs(20), at_rest), "{}", agent.log());
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(generation(), last, "{}", agent.log());
    let top = [&["top", "--once"][..], &only].concat();
    Cli::new(top).netns(&netns).run().ok();
    agent.stop();
    old.stop();
}

#[test]
fn nothing_is_left_of_it() {
    for arguments in [&[TCP][..], &[TCP, "bpffs=/proc"], &[TCP, "rung=classic-bpf"]] {
        leak::scene(|netns| {
            let server = Server::start(netns, arguments);
            assert_local(netns);
            let report = server.stop();
            assert!(report.contains("Asked"), "{report}");
        });
    }
}

#[test]
fn killed_it_leaves_pins_that_the_next_one_replaces() {
    let scene = Scene::on(8124);
    let start = || Server::start(&scene.netns, &["tcp=127.0.0.1:8124"]);
    let mut server = start();
    let pins = text(&scene.status()["steering"]["pins"]);
    server.kill();
    assert!(std::path::Path::new(&pins).exists());
    let server = start();
    let status = scene.status();
    assert_eq!(text(&status["steering"]["pins"]), pins);
    assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
    from_each_cpu(&scene.netns, &Target::plain("127.0.0.1:8124"))
        .assert_local(reuseport_tests::scene::place);
    server.stop();
    assert!(!std::path::Path::new(&pins).exists());
}

#[test]
fn several_addresses_are_several_groups() {
    require::cpus(2);
    let scene = Scene::new();
    let arguments = [TCP, "tcp=127.0.0.2:8080", "tcp=[::1]:8080", "v6only"];
    let server = Server::start(&scene.netns, &arguments);
    assert_eq!(scene.status_all().len(), 3);
    for address in ["127.0.0.1:8080", "127.0.0.2:8080", "[::1]:8080"] {
        from_each_cpu(&scene.netns, &Target::plain(address))
            .assert_local(reuseport_tests::scene::place);
    }
    server.stop();
}

#[test]
fn backlog_and_policy_are_as_told() {
    let scene = Scene::new();
    let builder = || Group::builder().tcp(here().address).backlog(7).policy(Policy::Hash);
    scene.netns.run_in(|| {
        let group = builder().build().expect("a group");
        let status = scene.status();
        assert_eq!(status["steering"]["policy"], "hash", "{status:#}");
        assert_eq!(status["listeners"][0]["backlog"], 7, "{status:#}");
        drop(group);
        // What decides by CPU alone will not do.
        let error = builder().rung(Rung::IncomingCpu).build().expect_err("no such policy there");
        assert!(error.to_string().contains("policy hash was asked for"), "{error}");
        let group = builder().rung(Rung::Hash).build().expect("a group");
        assert_eq!(group.rung().rung, Rung::Hash);
    });
}

#[test]
fn the_kernel_chooses_a_port_that_all_workers_share() {
    let scene = Scene::new();
    let server = Server::start(&scene.netns, &["tcp=127.0.0.1:0"]);
    let address = text(&server.said("addresses")[0]);
    from_each_cpu(&scene.netns, &Target::plain(&address))
        .assert_local(reuseport_tests::scene::place);
    server.stop();
}

#[test]
fn fewer_workers_than_cpus_serve_all() {
    require::cpus(2);
    let scene = Scene::new();
    let last = *cpus().last().expect("a CPU");
    for (workers, cpu) in [(format!("workers=on:{last}"), last), ("workers=count:1".into(), 0)] {
        let server = Server::start(&scene.netns, &[TCP, &workers]);
        let tally = from_each_cpu(&scene.netns, &here());
        assert_eq!(tally.failed(), 0, "{tally}");
        let status = scene.status();
        assert_eq!(status["listeners"].as_array().map(Vec::len), Some(1), "{status:#}");
        if workers.starts_with("workers=on") {
            assert_eq!(status["listeners"][0]["served"]["by"][0]["cpus"], cpu.to_string());
        }
        assert_eq!(number(&status["steering"]["counters"]["runs"]), tally.answered());
        server.stop();
    }
}

/// A connection that waits for its answer.
fn waiting(scene: &Scene) -> TcpStream {
    let stream = scene.netns.run_in(|| TcpStream::connect(here().address).expect("connect"));
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream
}

/// The cores' part of a report: CPU, connections served, connections cut off.
fn cores(report: &str) -> Vec<[u64; 3]> {
    let value: Value = serde_json::from_str(report).unwrap_or_else(|_| panic!("{report}"));
    let list = value["cores"].as_array().unwrap_or_else(|| panic!("{report}"));
    list.iter().map(|core| [0, 1, 2].map(|field| number(&core[field]))).collect()
}

#[test]
fn connections_in_service_are_served_to_their_end() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.netns, &[TCP, "hold=1000"]);
    let mut streams: Vec<_> = (0..20).map(|_| waiting(&scene)).collect();
    server.signal(libc::SIGTERM);
    for stream in &mut streams {
        let mut line = String::new();
        stream.read_to_string(&mut line).expect("an answer");
        assert!(line.contains("\"worker\""), "{line:?}");
    }
    let (status, report) = server.wait();
    assert!(status.success(), "{report}");
    assert_eq!(cores(&report).iter().map(|core| core[1]).sum::<u64>(), 20, "{report}");
    assert!(cores(&report).iter().all(|core| core[2] == 0), "{report}");
}

#[test]
fn what_takes_too_long_is_cut_off_and_counted() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.netns, &[TCP, "greet", "hold=600000", "drain=200"]);
    let mut streams: Vec<_> = (0..4).map(|_| waiting(&scene)).collect();
    for stream in &mut streams {
        stream.read_exact(&mut [0]).expect("the greeting of one in service");
    }
    server.signal(libc::SIGTERM);
    let (status, report) = server.wait();
    assert!(status.success(), "{report}");
    assert_eq!(cores(&report).iter().map(|core| core[2]).sum::<u64>(), 4, "{report}");
    for stream in &mut streams {
        let mut line = String::new();
        drop(stream.read_to_string(&mut line));
        assert_eq!(line, "");
    }
}

#[test]
fn a_service_that_panics_ends_its_connection_alone() {
    let scene = Scene::new();
    let server = Server::start(&scene.netns, &[TCP, "fault=panic"]);
    for _ in 0..4 {
        let mut line = String::new();
        drop(waiting(&scene).read_to_string(&mut line));
        assert_eq!(line, "");
    }
    let report = server.stop();
    assert!(report.contains("Asked"), "{report}");
}

#[test]
fn a_core_that_panics_ends_the_server_in_order() {
    require::cpus(2);
    leak::scene(|netns| {
        let mut server = Server::start(netns, &[TCP, "fault=panic-core"]);
        let (status, report) = server.wait();
        assert_eq!(status.code(), Some(1), "{report}");
        assert!(report.contains("panicked: as told"), "{report}");
    });
}

/// Workers that are asked to end accept what is queued first.
#[test]
fn the_end_under_load_refuses_and_resets_nobody_who_was_accepted() {
    require::cpus(2);
    let scene = Scene::new();
    let server = Server::start(&scene.netns, &[TCP, "standby"]);
    let load = Load::start(&scene.netns, &here(), &cpus(), 2);
    load.advance(200);
    // There is somebody else, so that all connections have where to go.
    let other = Server::start(&scene.netns, &[TCP]);
    load.advance(100);
    let report = server.stop();
    assert!(cores(&report).iter().all(|core| core[2] == 0), "{report}");
    load.advance(100);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    assert_local(&scene.netns);
    scene.assert_steered();
    other.stop();
}

/// The kernel queues one more than the backlog.
#[test]
fn a_full_queue_is_served_to_its_last() {
    let scene = Scene::new();
    for backlog in 0..2 {
        let arguments = [TCP, &format!("backlog={backlog}"), "workers=count:1"];
        let mut server = Server::start(&scene.netns, &arguments);
        server.signal(libc::SIGSTOP);
        let queued: Vec<TcpStream> = (0..=backlog).map(|_| waiting(&scene)).collect();
        server.signal(libc::SIGTERM);
        server.signal(libc::SIGCONT);
        for mut stream in queued {
            let mut line = String::new();
            stream.read_to_string(&mut line).expect("an answer");
            assert!(line.contains("worker"), "{line:?}");
        }
        assert!(server.wait().0.success());
    }
}

/// Slots are given on: who has closed his listeners and still serves must not speak for the next.
#[test]
fn the_load_of_closed_listeners_is_nobody_elses() {
    require::cpus(2);
    let scene = Scene::new();
    let mut first = Server::start(&scene.netns, &[TCP, "greet", "hold=4000"]);
    let mut stream = waiting(&scene);
    stream.read_exact(&mut [0]).expect("the greeting of one in service");
    let second = Server::start(&scene.netns, &[TCP]);
    first.signal(libc::SIGTERM);
    let listeners = || scene.status()["listeners"].as_array().map_or(0, Vec::len);
    assert!(eventually(Duration::from_secs(20), || listeners() == cpus().len()));
    let third = Server::start(&scene.netns, &[TCP, "greet", "hold=2000", "spill=1"]);
    assert!(first.alive(), "it ended before its slots were given on");
    assert!(first.wait().0.success());
    let mut streams: Vec<TcpStream> = Vec::new();
    scene.netns.run_in(|| {
        sys::pin(0, &[cpus()[0]]).expect("run on a CPU");
        for _ in 0..4 {
            let mut stream = TcpStream::connect(ADDRESS).expect("connect");
            stream.read_exact(&mut [0]).expect("the greeting of one in service");
            streams.push(stream);
        }
    });
    assert!(scene.counter("spilled") > 0, "its limit is gone: {:#}", scene.status());
    second.stop();
    third.stop();
}

/// A handshake that is under way when connections are steered away ends in the old queue: closed
/// before, the listener would reset it.
#[test]
fn handshakes_under_way_are_waited_for() {
    require::cpus(2);
    let scene = Scene::new();
    scene.netns.run_in(|| {
        let address: SocketAddr = ADDRESS.parse().expect("an address");
        let mut group = Group::builder().tcp(address).build().expect("a group");
        let mut workers = group.take_workers();
        // The kernel holds the handshake back until data comes.
        for socket in workers.iter().flat_map(Worker::sockets) {
            let seconds = 30_i32.to_ne_bytes();
            sys::set_option(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &seconds)
                .expect("TCP_DEFER_ACCEPT");
        }
        sys::pin(0, &[workers[0].cpu()]).expect("run on a CPU");
        let mut stream = TcpStream::connect(address).expect("connect");
        let other = Server::start(&scene.netns, &[TCP]);
        assert!(group.steer_away().expect("steer away"), "nobody else serves");
        assert!(!group.is_drained().expect("a look"), "the handshake was not seen");
        stream.write_all(b"x").expect("send");
        let listener = workers[0].listener().expect("a listener");
        let (_accepted, peer) = listener.accept().expect("accept");
        assert_eq!(peer, stream.local_addr().expect("its address"));
        let drained = || group.is_drained().expect("a look");
        assert!(eventually(Duration::from_secs(20), drained), "it is never drained");
        drop(group);
        other.stop();
    });
}
