//! A BPF file system that only some see: pins on it are not there for the others.

use reuseport_tests::binary::Cli;
use reuseport_tests::process::tool;

use crate::scene::Scene;

/// A network namespace with a name, as `ip netns add` makes it; gone on drop.
struct Named(String);

impl Named {
    fn new() -> Self {
        let name = format!("steer-test-{}", std::process::id());
        tool("ip", &["netns", "add", &name]);
        Self(name)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        tool("ip", &["netns", "del", &self.0]);
    }
}

/// `ip netns exec` mounts another `/sys`, without a BPF file system: one that is mounted there is gone
/// with the command, so that is not what is advised.
#[test]
fn inside_ip_netns_exec_it_says_to_stay_outside() {
    let named = Named::new();
    let args = ["ip", "netns", "exec", &named.0];
    let status = Cli::new(["status"]).through(args).run().fails(6);
    let path = format!("--netns /run/netns/{}", named.0);
    assert!(status.stderr.contains(&path), "{status}");
    assert!(!status.stderr.contains("mount -t bpf"), "{status}");
}

/// Pins that go with a mount namespace: `attach` says so, and who comes later, what is attached.
#[test]
fn ours_without_its_pins_is_known() {
    let scene = Scene::new();
    let elsewhere = ["unshare", "--mount", "sh", "-c", MOUNT, "sh"];
    let path = scene.bpffs.path().to_str().expect("a path of ours is text");
    let through = elsewhere.into_iter().chain([path]);
    let attached = scene.cli("attach", &[]).through(through).run().ok();
    assert!(attached.stdout.contains("in this mount namespace only"), "{attached}");
    scene.steered();
    assert!(scene.bpffs.pins().is_empty());

    let status = scene.cli("status", &[]).run().ok();
    for words in ["steered by reuseport-steer", "another BPF file system", "--takeover"] {
        assert!(status.stdout.contains(words), "{words}: {status}");
    }
    let words = ["reuseport-steer's own", "another BPF file system", "--takeover"];
    scene.refuses(&scene.cli("attach", &[]), 7, &words);
    // Its maps hold the listeners still; it may be kept by somebody.
    let detached = scene.cli("detach", &["--json"]).run().fails(7).says("still steered");
    assert_eq!(detached.json()[0]["outcome"], "foreign");
    scene.steered();

    let attached = scene.cli("attach", &["--takeover"]).run().ok();
    assert!(!attached.stdout.contains("mount namespace"), "{attached}");
    scene.steered();
    scene.cli("detach", &[]).run().ok();
    scene.hashed();
}

/// Mounts a BPF file system on its first argument and becomes the rest.
const MOUNT: &str = r#"mount -t bpf bpf "$1" && shift && exec "$@""#;
