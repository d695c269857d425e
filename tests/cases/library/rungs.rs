//! What steers where eBPF does not, and where pins may not be made.

use reuseport_tests::hostile::{Deed, Stranger};
use reuseport_tests::netns::Netns;
use reuseport_tests::scene::{Scene, text};
use reuseport_tests::server::{self, Server};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{leak, require};

use super::{TCP, assert_by_hash, assert_local};

/// Root without any capability.
const POWERLESS: [&str; 3] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];

/// Why a rung is not the one that was taken.
pub(super) fn why_not(server: &Server, rung: &str) -> String {
    let passed_over = server.said("rung")["passed_over"].clone();
    let list = passed_over.as_array().expect("a list");
    let entry = list.iter().find(|it| it["rung"] == rung);
    text(&entry.unwrap_or_else(|| panic!("{}", server.ready))["why"])
}

#[test]
fn each_rung_that_steers_reaches_the_cpus_own_worker() {
    require::cpus(2);
    for rung in ["ebpf", "incoming-cpu", "classic-bpf"] {
        let netns = Netns::new();
        let server = Server::start(&netns, &[TCP, &format!("rung={rung}")]);
        assert_eq!(server.rung(), rung);
        assert_local(&netns);
        server.stop();
    }
    let netns = Netns::new();
    let server = Server::start(&netns, &[TCP, "rung=hash"]);
    assert_by_hash(&netns);
    server.stop();
}

#[test]
fn without_any_capability_it_takes_the_next_rung_and_says_why() {
    require::cpus(2);
    leak::scene(|netns| {
        let server = Server::start_through(netns, &POWERLESS, &[TCP]);
        assert_eq!(server.rung(), "incoming-cpu");
        let why = why_not(&server, "ebpf");
        assert!(why.contains("CAP_BPF is missing"), "{why}");
        assert_local(netns);
        server.stop();
    });
}

#[test]
fn what_is_demanded_and_cannot_be_had_is_an_error() {
    leak::scene(|netns| {
        let mut server = Server::start_through(netns, &POWERLESS, &[TCP, "rung=ebpf"]);
        let (status, _) = server.wait();
        assert_eq!(status.code(), Some(1));
        assert!(text(&server.said("error")).contains("CAP_BPF is missing"), "{}", server.ready);
    });
}

/// Pinned nowhere, it steers as well, and nobody else can change it.
#[test]
fn without_pins_it_keeps_the_program_to_itself() {
    require::cpus(2);
    let scene = Scene::new();
    let server = Server::start(&scene.netns, &[TCP, "bpffs=/proc"]);
    assert_eq!(server.rung(), "ebpf");
    let notice = text(&server.said("notices")[0]);
    assert!(notice.contains("without pins") && notice.contains("/proc"), "{notice}");
    assert_local(&scene.netns);
    let status = scene.status();
    assert_eq!(status["steering"], serde_json::Value::Null, "{status:#}");
    scene.run("attach", &[]).fails(7).says("reuseport-steer's own program is attached");
    assert_local(&scene.netns);
    server.stop();
}

/// As a unit of systemd would run it: a user of its own, one capability.
#[test]
fn an_ordinary_user_needs_one_capability() {
    require::cpus(2);
    let netns = Netns::new();
    let (_directory, copy) = server::copy();
    let bpf = ["--bounding-set=-all,+bpf", "--inh-caps=-all,+bpf", "--ambient-caps=-all,+bpf"];
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    for (caps, rung) in [(&bpf[..], "ebpf"), (&POWERLESS[1..], "incoming-cpu")] {
        let mut command = netns.command("setpriv");
        command.args(nobody).args(caps).arg(&copy).arg(TCP);
        let server = Server::spawn(command);
        assert_eq!(server.rung(), rung, "{}", server.ready);
        assert_local(&netns);
        server.stop();
    }
}

/// Somebody of the same user listens there already, and a program that is not ours decides.
#[test]
fn a_foreign_program_is_left_alone_and_named() {
    require::cpus(2);
    let scene = Scene::new();
    let spec = Spec { addr: "127.0.0.1", ..Spec::default() };
    let worker = Worker::start(&scene.netns, &spec);
    let _stranger = Stranger::start(&scene.netns, &worker, Deed::Program);
    let server = Server::start(&scene.netns, &[TCP]);
    assert_eq!(server.rung(), "hash");
    for rung in ["ebpf", "incoming-cpu"] {
        let why = why_not(&server, rung);
        assert!(why.contains("another program is attached"), "{rung}: {why}");
    }
    server.stop();
}
