//! TCP Fast Open.

use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use reuseport_tests::worker::{Spec, Worker};
use socket2::{Domain, Socket, Type};

use super::{number, start};
use crate::scene::Scene;

/// Connections that bring their request with the SYN. Seen as any other where the handshake ends before
/// they are accepted; while the clients' ACKs are dropped it does not, and they count as unseen.
#[test]
fn fast_open_connections_are_counted() {
    let mut scene = Scene::of(&[]);
    // Client and server; without cookies, and for listeners that do not ask for it: 3, and the rest.
    scene.netns.sysctl("net/ipv4/tcp_fastopen", &(3 | 4 | 0x200 | 0x400).to_string());
    scene.workers.push(Worker::start(&scene.netns, &Spec::default()));
    let tracer = start(&scene, &["--json"]);
    let connect = |count: u32| {
        for _ in 0..count {
            let reply = scene.netns.run_in(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                let server: SocketAddr = ([127, 0, 0, 1], 8080).into();
                socket.send_to_with_flags(b"x", &server.into(), libc::MSG_FASTOPEN)?;
                socket.set_read_timeout(Some(Duration::from_secs(10)))?;
                (&socket).read(&mut [0; 64])
            });
            assert!(reply.expect("a reply") > 0);
        }
    };
    connect(20);
    let rule = "-A INPUT -p tcp --dport 8080 --tcp-flags SYN,ACK ACK -j DROP";
    scene.netns.run("iptables", &rule.split(' ').collect::<Vec<_>>());
    connect(5);
    let statistics = scene.netns.run("nstat", &["-asz", "TcpExtTCPFastOpenPassive"]);
    assert!(statistics.contains(" 25 "), "they were no Fast Open connections: {statistics}");
    let summary = tracer.stop().json();
    let total = &summary["total"];
    assert_eq!((&total["accepted"], &summary["queued"]), (&25.into(), &20.into()), "{summary:#}");
    let unseen = number(&total["unseen"]);
    let locality = total["locality"].as_object().expect("an object");
    assert!((5.0..25.0).contains(&unseen), "{summary:#}");
    let seen = locality.values().map(number).sum::<f64>();
    assert!((seen + unseen - 25.0).abs() < 0.5, "{summary:#}");
}
