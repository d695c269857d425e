//! One worker per CPU, and who decides which of them gets a connection.

use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::binary::Cli;
use reuseport_tests::bpffs::Bpffs;
use reuseport_tests::cpus;
use reuseport_tests::netns::Netns;
use reuseport_tests::tracer::Tracer;
use reuseport_tests::traffic::{Connection, Pace, Plan, Traffic};
use reuseport_tests::worker::{Spec, Worker};

const PORT: u16 = 8080;

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The kernel's hash.
    Hash,
    /// The same: whatever it differs by is noise.
    HashAgain,
    /// `attach`, and nobody who looks after it.
    Steered,
    /// An agent that evicts and widens nothing.
    Agent,
    /// An agent as it is by default.
    Spilling,
}

/// The workers; taken down on drop.
pub(crate) struct Served {
    workers: Vec<Worker>,
    bpffs: Bpffs,
    netns: Netns,
}

/// A mode in force; the hash decides again when it is dropped.
pub(crate) struct InForce<'a> {
    served: &'a Served,
    agent: Option<Agent>,
    steered: bool,
}

impl Served {
    /// Workers that work for `micros` before each answer.
    pub(crate) fn new(micros: u32) -> Self {
        let netns = Netns::new();
        netns.sysctl("net/ipv4/ip_local_port_range", "1024 65000");
        let spec = Spec { work: micros, brief: true, ..Spec::default() };
        let workers = Worker::one_per_cpu(&netns, &cpus(), &spec);
        Self { workers, bpffs: Bpffs::new(), netns }
    }

    /// The workers, in order of their CPUs.
    pub(crate) fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// Puts a mode in force.
    pub(crate) fn under(&self, mode: Mode) -> InForce<'_> {
        let agent = |args: &[&str]| {
            let args: Vec<&str> = [&["--detach-on-exit"], args].concat();
            Agent::start(&self.netns, &self.bpffs, PORT, &args)
        };
        let agent = match mode {
            Mode::Hash | Mode::HashAgain | Mode::Steered => None,
            Mode::Agent => Some(agent(&["--spill", "off"])),
            Mode::Spilling => Some(agent(&[])),
        };
        let steered = mode == Mode::Steered;
        if steered {
            self.cli("attach");
        }
        InForce { served: self, agent, steered }
    }

    fn cli(&self, verb: &str) {
        let (port, bpffs) = (PORT.to_string(), self.bpffs.path().display().to_string());
        let args = [verb, "--port", &port, "--netns", "/proc/self/ns/net", "--bpffs", &bpffs];
        Cli::new(args).netns(&self.netns).run().ok();
    }

    /// Starts `trace` with these arguments.
    pub(crate) fn trace(&self, args: &[&str]) -> Tracer {
        Tracer::start(&self.netns, PORT, args)
    }

    /// Starts traffic.
    pub(crate) fn traffic(&self, from: &[(u32, Pace)], lasts: Duration, seed: u64) -> Traffic {
        let address = ([127, 0, 0, 1], PORT).into();
        let (from, patience) = (from.to_vec(), Duration::from_secs(10));
        Traffic::start(&self.netns, &Plan { address, from, lasts, patience, seed })
    }
}

impl InForce<'_> {
    /// What the agent has said, where there is one.
    pub(crate) fn log(&self) -> String {
        self.agent.as_ref().map_or_else(String::new, Agent::log)
    }
}

impl Drop for InForce<'_> {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop();
        }
        if self.steered {
            self.served.cli("detach");
        }
    }
}

/// Connections that were due from `start` on.
pub(crate) fn from(start: Duration, all: &[Connection]) -> Vec<Connection> {
    all.iter().filter(|it| it.at >= start).copied().collect()
}
