//! What a server may not do: from the beginning, or since it gave its privileges up.

use reuseport_tests::load::Load;
use reuseport_tests::scene::Scene;
use reuseport_tests::server::Server;
use reuseport_tests::{cpus, require};

use super::rungs::why_not;
use super::{TCP, assert_local, here};

/// Opened by root, served by a user who may neither see the pins nor other processes.
const NOBODY: &str = "user=65534";

fn notices(server: &Server) -> String {
    server.said("notices").to_string()
}

/// A generation takes over at its beginning, and the one before it sees that and ends.
#[test]
fn given_up_before_it_serves_and_taken_over_from() {
    require::cpus(2);
    let scene = Scene::new();
    let arguments = [TCP, NOBODY, "until-superseded"];
    let mut old = Server::start(&scene.netns, &arguments);
    assert_eq!(old.rung(), "ebpf", "{}", old.ready);
    let load = Load::start(&scene.netns, &here(), &cpus(), 2);
    for _ in 0..4 {
        load.advance(30);
        let new = Server::start(&scene.netns, &arguments);
        let (status, report) = old.wait();
        assert!(status.success() && report.contains("Superseded"), "{status}: {report}");
        old = new;
    }
    load.advance(30);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    assert_local(&scene.netns);
    old.stop();
}

/// Who is asked to end steers connections away first, to somebody whom it may not look at.
#[test]
fn given_up_before_it_serves_and_asked_to_end() {
    require::cpus(2);
    let scene = Scene::new();
    let arguments = [TCP, NOBODY, "beside-others"];
    let mut old = Server::start(&scene.netns, &arguments);
    let load = Load::start(&scene.netns, &here(), &cpus(), 2);
    for _ in 0..4 {
        load.advance(30);
        let new = Server::start(&scene.netns, &arguments);
        load.advance(30);
        old.stop();
        assert_local(&scene.netns);
        old = new;
    }
    load.advance(30);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    old.stop();
}

/// Standing by first, the takeover itself is made without privileges.
#[test]
fn given_up_before_it_takes_over() {
    require::cpus(2);
    let scene = Scene::new();
    let arguments = [TCP, NOBODY, "standby", "until-superseded"];
    let mut old = Server::start(&scene.netns, &arguments);
    let load = Load::start(&scene.netns, &here(), &cpus(), 2);
    load.advance(30);
    // It may not look at the old one any more.
    let new = Server::start(&scene.netns, &arguments);
    load.advance(30);
    let (status, report) = old.wait();
    assert!(status.success() && report.contains("Superseded"), "{status}: {report}");
    load.advance(30);
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{tally}");
    assert_local(&scene.netns);
    new.stop();
}

/// `RestrictAddressFamilies=` without `AF_NETLINK`: nobody can be looked for.
#[test]
fn without_netlink_it_takes_a_lower_rung() {
    require::cpus(2);
    let scene = Scene::new();
    let server = Server::start(&scene.netns, &[TCP, "fault=no-netlink"]);
    assert_eq!(server.rung(), "incoming-cpu", "{}", server.ready);
    let why = why_not(&server, "ebpf");
    assert!(why.contains("NETLINK"), "{why}");
    assert_local(&scene.netns);
    server.stop();
}

/// In a sandbox without `/sys`, where values by CPU cannot be read either: their number is not known.
#[test]
fn without_sysfs_it_takes_a_lower_rung() {
    require::cpus(2);
    let scene = Scene::new();
    let hide = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /sys && exec \"$@\"", "sh"];
    let server = Server::start_through(&scene.netns, &hide, &[TCP]);
    assert_eq!(server.rung(), "incoming-cpu", "{}", server.ready);
    assert!(notices(&server).contains("near each other"), "{}", server.ready);
    assert_local(&scene.netns);
    server.stop();
}
