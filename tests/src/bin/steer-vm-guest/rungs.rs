//! The rungs below eBPF: what is to be had without `CAP_BPF`.

use reuseport_tests::binary::Cli;
use reuseport_tests::worker::Spec;
use serde_json::{Value, json};

use crate::scene::{ADDRESS, Scene};

/// A run that may take listeners and load nothing.
fn taker<'a>(scene: &'a Scene, verb: &str, args: &[&str]) -> Cli<'a> {
    scene.cli(verb, args).capabilities(&["sys_ptrace"])
}

/// Steers by `SO_INCOMING_CPU`, or the probe says why that would not.
pub(crate) fn incoming_cpu() -> String {
    let scene = Scene::new();
    let run = taker(&scene, "attach", &["--rung", "incoming-cpu"]).run();
    if run.code == Some(0) {
        let answered = scene.assert_local(ADDRESS);
        taker(&scene, "detach", &[]).run().ok();
        return format!("100 % of {answered}");
    }
    run.fails(6).says("does not heed SO_INCOMING_CPU");
    "refused, as the kernel does not heed it".to_owned()
}

/// The order that the kernel's list tells is the one that it counts in, of both families.
pub(crate) fn classic_bpf() -> String {
    let mut answered = 0;
    for (addr, address) in [("0.0.0.0", ADDRESS), ("::", "[::1]:8080")] {
        let scene = Scene::with(&Spec { addr, ..Spec::default() });
        taker(&scene, "attach", &["--rung", "classic-bpf"]).run().ok();
        answered += scene.assert_local(address);
        taker(&scene, "detach", &[]).run().ok();
    }
    format!("100 % of {answered}")
}

/// What `--rung auto` makes of it.
pub(crate) fn auto() -> String {
    let scene = Scene::new();
    let run = taker(&scene, "attach", &["--rung", "auto", "--json"]).run().ok();
    let report: Value = run.json()[0].clone();
    let rung = report["rung"]["rung"].as_str().expect("a rung").to_owned();
    let ebpf = &report["rung"]["passed_over"][0];
    assert_eq!((&ebpf["rung"], &ebpf["kind"]), (&json!("ebpf"), &json!("not_permitted")), "{run}");
    if rung == "incoming-cpu" {
        scene.assert_local(ADDRESS);
    } else {
        assert_eq!(scene.connect(ADDRESS, 20).failed(), 0);
    }
    rung
}
