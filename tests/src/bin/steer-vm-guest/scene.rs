//! What most checks begin with: a namespace, a worker per CPU, and the command to steer them.

use reuseport_tests::binary::Cli;
use reuseport_tests::client::{Tally, Target, burst};
use reuseport_tests::cpus;
use reuseport_tests::netns::Netns;
use reuseport_tests::worker::{Spec, Worker};
use serde_json::Value;

/// The workers' port.
pub(crate) const PORT: &str = "8080";
/// Where the clients connect.
pub(crate) const ADDRESS: &str = "127.0.0.1:8080";

/// Workers on every CPU, worker `i` on CPU `i`.
pub(crate) struct Scene {
    pub(crate) workers: Vec<Worker>,
    pub(crate) netns: Netns,
}

impl Scene {
    /// Not steered yet.
    pub(crate) fn new() -> Self {
        Self::with(&Spec::default())
    }

    /// Not steered yet, workers of this kind.
    pub(crate) fn with(spec: &Spec) -> Self {
        let netns = Netns::new();
        let workers = Worker::one_per_cpu(&netns, &cpus(), spec);
        Self { workers, netns }
    }

    /// Steered.
    pub(crate) fn steered() -> (Self, Value) {
        let scene = Self::new();
        let report = scene.attach(&[]);
        (scene, report)
    }

    /// `reuseport-steer VERB --port PORT ARGS...` inside the namespace.
    pub(crate) fn cli(&self, verb: &str, args: &[&str]) -> Cli<'_> {
        Cli::new([&[verb, "--port", PORT], args].concat()).netns(&self.netns)
    }

    /// Attaches; the report on the one group.
    pub(crate) fn attach(&self, args: &[&str]) -> Value {
        self.cli("attach", &[&["--json"], args].concat()).run().ok().json()[0].clone()
    }

    /// The one group's status.
    pub(crate) fn status(&self) -> Value {
        self.cli("status", &["--json"]).run().ok().json()[0].clone()
    }

    /// `each` connections from every CPU.
    pub(crate) fn connect(&self, address: &str, each: u32) -> Tally {
        let mut tally = Tally::default();
        for cpu in cpus() {
            tally.merge(burst(&self.netns, cpu, &Target::plain(address), each));
        }
        tally
    }

    /// Connections from every CPU, all of which its own worker must answer; how many.
    pub(crate) fn assert_local(&self, address: &str) -> u64 {
        let tally = self.connect(address, 50);
        tally.assert_local(|cpu| cpu.to_string());
        tally.answered()
    }
}

impl Drop for Scene {
    /// Pins would outlive the group.
    fn drop(&mut self) {
        drop(self.cli("detach", &[]).run());
    }
}
