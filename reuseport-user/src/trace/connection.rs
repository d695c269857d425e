//! Single connections, as the kernel told of them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use reuseport_common::observe::{Event, Waiting};
use serde::Serialize;

use super::Traced;
use crate::model::{Cpu, Pid};
use crate::topology::{Distance, Topology};

/// A connection that was accepted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Connection {
    /// When accept returned, in seconds since 1970.
    pub time: f64,
    /// The address and port that its group listens on.
    pub server: SocketAddr,
    /// `SO_COOKIE` of the listener.
    pub listener: u64,
    /// The client.
    pub client: SocketAddr,
    /// How it came; `None` for one that was not seen to come.
    #[serde(flatten)]
    pub arrival: Option<Arrival>,
    /// The CPU that accepted it.
    pub accepted: Cpu,
    /// Connections that waited then, itself included.
    pub depth: u32,
    /// The process that accepted it.
    pub pid: Pid,
    /// The thread that accepted it.
    pub tid: Pid,
}

/// How a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Arrival {
    /// The CPU that received the end of its handshake.
    pub received: Cpu,
    /// How near the accepting CPU is.
    pub distance: Distance,
    /// Microseconds from SYN-ACK to accept queue; `None` where it had to be sent again.
    pub handshake_us: Option<u32>,
    /// Microseconds from accept queue to accept.
    pub wait_us: f64,
}

impl Connection {
    /// Reads an event of a listener; `clock` is what is to be added to the kernel's time, in seconds.
    pub fn of(event: &Event, listener: &Traced, topology: &Topology, clock: f64) -> Self {
        let Waiting { since, received, handshake } = event.waiting;
        let arrival = (since > 0).then(|| Arrival {
            received,
            distance: topology.distance(received, event.accepted),
            handshake_us: Some(handshake).filter(|&it| it > 0),
            wait_us: event.at.saturating_sub(since) as f64 / 1000.0,
        });
        Self {
            time: clock + event.at as f64 / 1e9,
            server: listener.group.address,
            listener: listener.cookie,
            client: client(event),
            arrival,
            accepted: event.accepted,
            depth: event.depth,
            pid: event.pid,
            tid: event.tid,
        }
    }
}

fn client(event: &Event) -> SocketAddr {
    let ip = if i32::from(event.family) == libc::AF_INET {
        let [a, b, c, d, ..] = event.client;
        IpAddr::from([a, b, c, d])
    } else {
        // What a dual-stack listener serves over IPv4 is that.
        Ipv6Addr::from(event.client).to_canonical()
    };
    SocketAddr::new(ip, u16::from_be_bytes(event.port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::synthetic::machine;
    use crate::trace::tests::traced;

    #[test]
    fn an_event_is_told_in_full() {
        let mut event = Event {
            at: 2_000_012_500,
            waiting: Waiting { since: 2_000_000_000, received: 0, handshake: 31 },
            family: libc::AF_INET as u16,
            port: [0x10, 0x01],
            listener: 71,
            accepted: 1,
            depth: 3,
            pid: 10,
            tid: 11,
            ..Event::default()
        };
        event.client[..4].copy_from_slice(&[192, 0, 2, 7]);
        let listener = traced(71);
        let topology = machine(1, 1, 2, 1).build();
        let it = Connection::of(&event, &listener, &topology, 100.0);
        assert_eq!((it.listener, it.accepted, it.depth, it.pid, it.tid), (71, 1, 3, 10, 11));
        assert_eq!(it.client, "192.0.2.7:4097".parse().unwrap());
        assert!((it.time - 102.000_012_5).abs() < 1e-6, "{}", it.time);
        let arrival = it.arrival.unwrap();
        assert_eq!((arrival.distance, arrival.handshake_us), (Distance::Llc, Some(31)));
        assert!((arrival.wait_us - 12.5).abs() < 1e-9, "{arrival:?}");
        let line = serde_json::to_value(Connection::of(&event, &listener, &topology, 0.0)).unwrap();
        assert_eq!((&line["received"], &line["wait_us"]), (&0.into(), &12.5.into()), "{line}");

        event.waiting = Waiting::default();
        let unseen = Connection::of(&event, &listener, &topology, 0.0);
        assert_eq!(unseen.arrival, None);
        assert!(serde_json::to_value(&unseen).unwrap().get("received").is_none());
    }

    #[test]
    fn a_mapped_client_is_an_ipv4_one() {
        let mut event = Event { family: libc::AF_INET6 as u16, port: [0, 9], ..Event::default() };
        event.client[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        assert_eq!(client(&event), "127.0.0.1:9".parse().unwrap());
        event.client = Ipv6Addr::LOCALHOST.octets();
        assert_eq!(client(&event), "[::1]:9".parse().unwrap());
    }
}
