//! The library's examples, run as they are.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use reuseport_tests::client::{Target, burst, exchange};
use reuseport_tests::load::Load;
use reuseport_tests::netns::Netns;
use reuseport_tests::scene::{Scene, number};
use reuseport_tests::server::Server;
use reuseport_tests::{cpus, eventually, require, sys};

use super::{ADDRESS, here};

const PATIENCE: Duration = Duration::from_secs(20);

/// A connection from a CPU, that waits long enough.
fn connect(netns: &Netns, cpu: u32) -> TcpStream {
    netns.run_in(|| {
        sys::pin(0, &[cpu]).expect("run on a CPU");
        let stream = TcpStream::connect(ADDRESS).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    })
}

fn assert_all_local(scene: &Scene, runs: u64) {
    let status = scene.status();
    let counters = &status["steering"]["counters"];
    assert_eq!(counters["local"], counters["runs"], "{status:#}");
    assert!(number(&counters["runs"]) >= runs, "{status:#}");
    assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
}

#[test]
fn echo() {
    require::cpus(2);
    let scene = Scene::new();
    let server = Server::example(&scene.netns, "echo", &[ADDRESS]);
    assert_eq!(server.ready, "listening on 127.0.0.1:8080, steered by ebpf");
    for cpu in cpus() {
        for _ in 0..10 {
            let mut stream = connect(&scene.netns, cpu);
            for text in [&b"one"[..], b"another"] {
                stream.write_all(text).expect("send");
                let mut back = vec![0; text.len()];
                stream.read_exact(&mut back).expect("an echo");
                assert_eq!(back, text);
            }
        }
    }
    assert_all_local(&scene, 20);
    let report = server.stop();
    assert!(report.contains("served: 10"), "{report}");
}

#[test]
fn http() {
    require::cpus(2);
    let scene = Scene::new();
    let server = Server::example(&scene.netns, "http", &[ADDRESS]);
    let target = Target::http(ADDRESS);
    for cpu in cpus() {
        burst(&scene.netns, cpu, &target, 30).assert_local(|cpu| format!("hello from CPU {cpu}"));
    }
    assert_all_local(&scene, 60);
    // One that is kept alive ends between two requests when the server does.
    let mut stream = connect(&scene.netns, cpus()[0]);
    let mut request = || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
        let mut answer = [0; 1024];
        let count = stream.read(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[..count]).into_owned()
    };
    assert!(request().starts_with("HTTP/1.1 200 OK"));
    assert!(request().contains("hello from CPU"));
    let report = server.stop();
    assert!(report.contains("cut_off: 0"), "{report}");
    assert_eq!(stream.read(&mut [0; 1]).expect("its end"), 0);
}

#[test]
fn udp_echo() {
    require::cpus(2);
    let scene = Scene::udp();
    let server = Server::example(&scene.netns, "udp_echo", &[ADDRESS, "[::1]:8080"]);
    assert!(server.ready.ends_with("steered by ebpf"), "{}", server.ready);
    for address in [ADDRESS, "[::1]:8080"] {
        for cpu in cpus() {
            scene.netns.run_in(|| {
                sys::pin(0, &[cpu]).expect("run on a CPU");
                let any = if address == ADDRESS { "127.0.0.1:0" } else { "[::1]:0" };
                let socket = UdpSocket::bind(any).expect("bind");
                socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                for text in ["one", "another", "more"] {
                    socket.send_to(text.as_bytes(), address).expect("send");
                    let mut back = [0; 64];
                    let (count, peer) = socket.recv_from(&mut back).expect("an echo");
                    assert_eq!(&back[..count], text.as_bytes());
                    assert_eq!(peer.to_string(), address);
                }
            });
        }
    }
    for status in scene.status_all() {
        let counters = &status["steering"]["counters"];
        assert_eq!(number(&counters["runs"]), 6, "{status:#}");
        assert_eq!(number(&counters["local"]), 6, "{status:#}");
    }
    server.stop();
}

/// As its own documentation says: start the next one, and the old one ends; no client notices.
#[test]
fn restart() {
    require::cpus(2);
    let scene = Scene::new();
    let mut old = Server::example(&scene.netns, "restart", &[ADDRESS, "generation 0"]);
    let load = Load::start(&scene.netns, &here(), &cpus(), 2);
    for generation in 1..=5 {
        load.advance(50);
        let greeting = format!("generation {generation}");
        let new = Server::example(&scene.netns, "restart", &[ADDRESS, &greeting]);
        let (status, report) = old.wait();
        assert!(status.success() && report.contains("Superseded"), "{status}: {report}");
        // Every client that comes now meets the new one.
        let reply = scene.netns.run_in(|| exchange(&here())).expect("an answer");
        assert_eq!(reply.0, greeting);
        old = new;
    }
    load.advance(50);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    let who: BTreeSet<&str> = tally.replies.keys().map(|(_, who)| who.as_str()).collect();
    assert_eq!(who.len(), 6, "{tally}");
    old.stop();
}

#[test]
fn load() {
    require::cpus(2);
    let scene = Scene::new();
    let _server = Server::example(&scene.netns, "load", &[ADDRESS, "3"]);
    let (here, there) = (cpus()[0], cpus()[1]);
    let served_on = |stream: &TcpStream| {
        let mut line = String::new();
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut line).expect("a greeting");
        line.trim().to_owned()
    };
    let mut open = Vec::new();
    // As many as it has room for stay, and the one that is on its way when it says so.
    for _ in 0..4 {
        let stream = connect(&scene.netns, here);
        assert_eq!(served_on(&stream), format!("cpu {here}"));
        open.push(stream);
    }
    for _ in 0..2 {
        let stream = connect(&scene.netns, here);
        assert_eq!(served_on(&stream), format!("cpu {there}"));
        open.push(stream);
    }
    assert_eq!(scene.counter("spilled"), 2);
    // It has room again when they end.
    open.clear();
    let back =
        eventually(PATIENCE, || served_on(&connect(&scene.netns, here)) == format!("cpu {here}"));
    assert!(back, "it never came back");
}
