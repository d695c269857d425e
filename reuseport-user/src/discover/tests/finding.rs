//! Which listeners are found, and which errors say that there are none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use super::support::{Server, here};
use crate::discover::{DiscoverError, NetnsChoice, Target, discover};
use crate::model::Protocol;
use crate::sys::pidfd::weakened;

#[test]
fn every_address_is_a_group() {
    let server = Server::start("dual");
    let groups = discover(&here(server.port)).unwrap();
    let addresses: Vec<String> =
        groups.iter().map(|group| group.key.address.ip().to_string()).collect();
    assert_eq!(addresses, ["0.0.0.0", "127.0.0.1", "::1"]);
    let mut target = here(server.port);
    target.addrs = vec![Ipv6Addr::LOCALHOST.into()];
    let groups = discover(&target).unwrap();
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].key.address.ip(), target.addrs[0]);
    target.addrs = vec![IpAddr::from(Ipv4Addr::new(127, 0, 0, 9))];
    let error = discover(&target).unwrap_err();
    assert!(matches!(&error, DiscoverError::AddressNotFound { found, .. } if found.len() == 3));
}

#[test]
fn nobody_listens() {
    let bound = Server::start("bound");
    let error = discover(&here(bound.port)).unwrap_err();
    assert!(matches!(error, DiscoverError::NobodyListens { .. }), "{error}");
    let udp = Server::start("udp");
    let error = discover(&here(udp.port)).unwrap_err().to_string();
    assert!(error.contains("UDP socket"), "{error}");
    let target = Target { protocol: Protocol::Udp, ..here(udp.port) };
    assert_eq!(discover(&target).unwrap()[0].listeners.len(), 1);
    let target = Target { netns: NetnsChoice::Pid(1 << 22 | 1), ..here(udp.port) };
    assert!(matches!(discover(&target), Err(DiscoverError::NoProcess(_))));
    let target = Target { netns: NetnsChoice::Path("/dev/null".into()), ..here(udp.port) };
    assert!(matches!(discover(&target), Err(DiscoverError::OpenNetns { .. })));
}

#[test]
fn multipath_listeners_are_named() {
    if !std::path::Path::new("/proc/sys/net/mptcp/enabled").exists() {
        // This kernel has no multipath TCP.
        return;
    }
    let server = Server::start("mptcp");
    let error = discover(&here(server.port)).unwrap_err();
    assert!(
        matches!(&error, DiscoverError::Mptcp { pid, .. } if *pid == Some(server.pid())),
        "{error}"
    );
}

#[test]
fn the_same_port_in_two_namespaces() {
    let here_too = Server::start("one");
    let mut inside = Command::new("unshare");
    inside.args(["-n", "sh", "-c", "ip link set lo up; exec python3 \"$@\"", "sh"]);
    let there = Server::run(inside, "one", here_too.port);
    let error = discover(&Target::tcp(there.port)).unwrap_err();
    let DiscoverError::Ambiguous { candidates, .. } = &error else { panic!("{error}") };
    let pids: Vec<_> = candidates.iter().map(|it| (it.netns.pid, it.netns.own)).collect();
    assert_eq!(pids, [(Some(here_too.pid()), true), (Some(there.pid()), false)]);
    assert!(error.to_string().contains(&format!("--pid {}: python3", there.pid())), "{error}");

    let target = Target { netns: NetnsChoice::Pid(there.pid()), ..Target::tcp(there.port) };
    let groups = discover(&target).unwrap();
    assert_eq!(groups[0].listeners[0].holders[0].pid, there.pid());
    assert_ne!(groups[0].key.netns, discover(&here(there.port)).unwrap()[0].key.netns);

    let path = format!("/proc/{}/ns/net", there.pid()).into();
    let target = Target { netns: NetnsChoice::Path(path), ..Target::tcp(there.port) };
    assert_eq!(discover(&target).unwrap()[0].listeners, groups[0].listeners);

    drop(here_too);
    let groups = discover(&Target::tcp(there.port)).unwrap();
    assert!(!groups[0].netns.own);
    assert_eq!(groups[0].netns.pid, Some(there.pid()));
}

#[test]
fn root_without_ptrace_is_told_what_is_missing() {
    let server = Server::start("one");
    let error = weakened::without_ptrace(|| discover(&Target::tcp(server.port))).unwrap_err();
    assert!(matches!(error, DiscoverError::NoHolder { listeners: 1, .. }), "{error}");
    assert!(error.to_string().contains("CAP_SYS_PTRACE"), "{error}");
    let free = Server::start("bound");
    let error = weakened::without_ptrace(|| discover(&Target::tcp(free.port))).unwrap_err();
    assert!(error.to_string().contains("CAP_SYS_PTRACE"), "{error}");
}
