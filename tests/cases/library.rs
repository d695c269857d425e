//! Servers made with the library: seen from their clients, from the command, and from the kernel.

mod examples;
mod handover;
mod launched;
mod privileges;
mod refused;
mod rungs;
mod serving;

use reuseport_tests::client::{Tally, Target, burst};
use reuseport_tests::cpus;
use reuseport_tests::netns::Netns;
use reuseport_tests::scene::place;

const ADDRESS: &str = "127.0.0.1:8080";

/// What the test server is told to listen on [`ADDRESS`].
const TCP: &str = "tcp=127.0.0.1:8080";

fn here() -> Target {
    Target::plain(ADDRESS)
}

/// Connections from each CPU.
fn from_each_cpu(netns: &Netns, target: &Target) -> Tally {
    let mut all = Tally::default();
    for cpu in cpus() {
        all.merge(burst(netns, cpu, target, 30));
    }
    all
}

/// Asserts that connections from each CPU are answered by its own worker.
fn assert_local(netns: &Netns) {
    from_each_cpu(netns, &here()).assert_local(place);
}

/// Asserts that all connections are answered, and not by the CPU.
fn assert_by_hash(netns: &Netns) {
    let mut all = Tally::default();
    for cpu in cpus() {
        all.merge(burst(netns, cpu, &here(), 100));
    }
    assert_eq!(all.failed(), 0, "{all}");
    let remote = 1.0 - all.locality(place);
    assert!(remote > 0.2, "by CPU: {all}");
}
