//! The worker on the CPU that received the packet, exactly: the kernel's own `reuseport_bpf_cpu`,
//! `reuseport_dualstack` and `reuseport_addr_any`, through the command.

use std::collections::BTreeSet;

use reuseport_tests::client::{Tally, Target, burst, datagrams};
use reuseport_tests::cpus;
use reuseport_tests::netns::Netns;
use reuseport_tests::require;
use reuseport_tests::scene::{PORT, Scene, place};
use reuseport_tests::worker::Spec;

/// CPUs forward, in reverse, the even and the odd ones, as the kernel's test goes over them.
fn sweeps() -> [Vec<u32>; 4] {
    let all = cpus();
    let every_second = |from: usize| all.iter().copied().skip(from).step_by(2).collect();
    [all.clone(), all.iter().rev().copied().collect(), every_second(0), every_second(1)]
}

/// Sends from every CPU in every order; each must be answered by the worker of its CPU.
fn assert_exact(address: &str, first: u32, send: impl Fn(u32, &Target) -> Tally) {
    require::cpus(2);
    let target = Target::plain(address);
    let worker = |cpu| (place(cpu).parse::<u32>().unwrap() + first).to_string();
    for cpu in sweeps().concat() {
        send(cpu, &target).assert_local(worker);
    }
}

fn spec(addr: &'static str) -> Spec {
    Spec { addr, ..Spec::default() }
}

#[test]
fn every_cpu_reaches_its_own_worker() {
    let dual: &[&str] = &["127.0.0.1:8080", "[::1]:8080"];
    for (addr, v6only, targets) in [
        ("127.0.0.1", false, &dual[..1]),
        ("0.0.0.0", false, &dual[..1]),
        ("::1", false, &dual[1..]),
        ("::", true, &dual[1..]),
        ("::", false, dual),
    ] {
        let (scene, _workers) = Scene::with_workers(&Spec { v6only, ..spec(addr) });
        scene.attach(&[]);
        for target in targets {
            assert_exact(target, 0, |cpu, target| burst(&scene.netns, cpu, target, 25));
        }
        let counters = &scene.status()["steering"]["counters"];
        let sent = (targets.len() * 25 * sweeps().concat().len()) as u64;
        assert_eq!(counters["first"], sent, "{addr}: {counters:#}");
        assert_eq!(counters["local"], sent, "{addr}: {counters:#}");
        assert_eq!(counters["runs"], sent, "{addr}: {counters:#}");
    }
}

#[test]
fn every_cpu_reaches_its_own_udp_worker() {
    for (addr, target) in [("127.0.0.1", "127.0.0.1:8080"), ("::", "[::1]:8080")] {
        let scene = Scene::udp();
        let spec = Spec { udp: true, ..spec(addr) };
        let _workers = scene.one_per_cpu(&spec, 1);
        // The kernel cannot be asked about UDP groups, and other tests' programs are about.
        scene.attach(&["--takeover"]);
        assert_exact(target, 0, |cpu, target| datagrams(&scene.netns, cpu, target, 25));
        assert_eq!(scene.detach(), "detached");
        let tally = datagrams(&scene.netns, cpus()[0], &Target::plain(target), 200);
        assert_eq!(tally.answered(), 200, "{tally}");
        assert!(tally.by_worker(cpus()[0]).len() > 1, "steered still: {tally}");
    }
}

/// More than ten UDP sockets take another way through the kernel's lookup.
#[test]
fn large_udp_groups_are_steered_too() {
    let scene = Scene::udp();
    let spec = Spec { udp: true, listeners: 10, ..Spec::default() };
    let _workers = scene.one_per_cpu(&spec, 100);
    scene.attach(&["--takeover"]);
    for (index, cpu) in (0..).zip(cpus()) {
        let tally = datagrams(&scene.netns, cpu, &Target::plain("127.0.0.1:8080"), 200);
        assert_eq!(tally.failed(), 0, "{tally}");
        let sockets: Vec<u32> =
            tally.by_worker(cpu).keys().map(|worker| worker.parse().unwrap()).collect();
        assert!(sockets.iter().all(|socket| socket / 100 == index), "CPU {cpu}: {tally}");
    }
}

/// Both orders: the kernel finds IPv4's own group first, whichever listened first.
#[test]
fn ipv4_and_ipv6_groups_on_one_port_are_steered_each() {
    for v4_first in [true, false] {
        let scene = Scene::new();
        let start = |addr, index| scene.one_per_cpu(&Spec { index, ..spec(addr) }, 1);
        let groups = [("0.0.0.0", 100), ("::", 200)];
        let order = if v4_first { groups } else { [groups[1], groups[0]] };
        let _workers = order.map(|(addr, index)| start(addr, index));
        assert_eq!(scene.attach_all(&[]).len(), 2);
        assert_exact("127.0.0.1:8080", 100, |cpu, to| burst(&scene.netns, cpu, to, 10));
        assert_exact("[::1]:8080", 200, |cpu, to| burst(&scene.netns, cpu, to, 10));
        let in_force = |group: &serde_json::Value| group["steering"]["in_force"] == true;
        assert!(scene.status_all().iter().all(in_force));
    }
}

/// Both orders: who listens on the address gets it, and the wildcard the rest.
#[test]
fn a_specific_address_goes_before_the_wildcard_and_each_is_steered() {
    for wildcard_first in [true, false] {
        let scene = Scene::new();
        let start = |addr, index| scene.one_per_cpu(&Spec { index, ..spec(addr) }, 1);
        let groups = [("0.0.0.0", 100), ("127.0.0.1", 200)];
        let order = if wildcard_first { groups } else { [groups[1], groups[0]] };
        let _workers = order.map(|(addr, index)| start(addr, index));
        assert_eq!(scene.attach_all(&[]).len(), 2);
        assert_exact("127.0.0.1:8080", 200, |cpu, to| burst(&scene.netns, cpu, to, 10));
        assert_exact("127.0.0.2:8080", 100, |cpu, to| burst(&scene.netns, cpu, to, 10));

        // One of them given back, the other is not touched.
        scene.run("detach", &["--addr", "0.0.0.0"]).ok();
        assert_exact("127.0.0.1:8080", 200, |cpu, to| burst(&scene.netns, cpu, to, 10));
        let tally = burst(&scene.netns, cpus()[0], &Target::plain("127.0.0.2:8080"), 200);
        assert!(tally.by_worker(cpus()[0]).len() > 1, "steered still: {tally}");
    }
}

/// With receive packet steering the packet is worked on by another CPU than the one it came in on;
/// that one is the receiving CPU, for the kernel and for us.
#[test]
fn receive_packet_steering_decides_before_us() {
    require::cpus(2);
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let client = Netns::new();
    scene.netns.veth(&client);
    scene.attach(&[]);
    let target = Target::plain("10.0.0.1:8080");
    let set_rps = |mask: u32| {
        let file = "/sys/class/net/veth0/queues/rx-0/rps_cpus";
        let script = format!("mount -t sysfs sysfs /sys && echo {mask:x} > {file}");
        scene.netns.run("unshare", &["--mount", "sh", "-c", &script]);
    };
    for cpu in cpus() {
        burst(&client, cpu, &target, 20).assert_local(place);
    }
    for steered in cpus() {
        set_rps(1 << steered);
        for cpu in cpus() {
            burst(&client, cpu, &target, 20).assert_local(|_| place(steered));
        }
    }
    let counters = &scene.status()["steering"]["counters"];
    assert_eq!(counters["local"], counters["runs"], "{counters:#}");
}

/// 300 and 5,000 listeners on one port: far beyond the kernel's first 128 and our first 64 slots.
#[test]
fn hundreds_and_thousands_of_listeners_are_steered() {
    let ranges = 100_000;
    for count in [300, 5000] {
        let scene = Scene::new();
        let each = count / cpus().len() as u32;
        let _workers = scene.one_per_cpu(&Spec { listeners: each, ..Spec::default() }, ranges);
        let report = scene.attach(&[]);
        let slots: BTreeSet<u64> =
            report["slots"].as_array().unwrap().iter().map(|slot| slot.as_u64().unwrap()).collect();
        assert_eq!(slots.len() as u32, each * cpus().len() as u32, "a slot each");
        for (index, cpu) in (0..).zip(cpus()) {
            let target = Target::plain(&format!("127.0.0.1:{PORT}"));
            let tally = burst(&scene.netns, cpu, &target, 600);
            assert_eq!(tally.failed(), 0, "{tally}");
            let workers: Vec<u32> =
                tally.by_worker(cpu).keys().map(|worker| worker.parse().unwrap()).collect();
            assert!(workers.iter().all(|worker| worker / ranges == index), "CPU {cpu}: {tally}");
            // Of 600 connections over 150 or 2,500 listeners far more than 100 differ.
            assert!(workers.len() > 100, "only {} of {each} are used", workers.len());
        }
        let status = scene.status();
        assert_eq!(status["problems"], serde_json::json!([]), "{:#}", status["problems"]);
    }
}
