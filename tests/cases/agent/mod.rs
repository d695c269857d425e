//! The agent: keeps the mapping right while workers come, go, move and die.

use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::binary;
use reuseport_tests::client::{Tally, Target, burst};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually};
use serde_json::Value;

use crate::scene::Scene;

mod bars;
mod config;
mod faults;
mod generations;
mod healing;
mod ownership;
mod rungs;
mod servers;
mod watch;

/// Longest that anything may take on a busy machine: more is a hang.
const PATIENCE: Duration = Duration::from_secs(30);

impl Scene {
    fn agent(&self, args: &[&str]) -> Agent {
        Agent::start(&self.netns, &self.bpffs, 8080, args)
    }

    /// One that has all capabilities but those that it takes to see what the kernel does.
    fn agent_without_perfmon(&self) -> Agent {
        let mut command = self.netns.command("setpriv");
        command.arg("--bounding-set=-perfmon,-sys_admin").arg(binary::path());
        let mut agent = Agent::spawn_with(command, &self.bpffs, 8080, &[]);
        agent.wait_for("ready");
        agent
    }

    /// What `status` says of the one group there is.
    fn status(&self) -> Value {
        self.cli("status", &["--json"]).run().ok().json()[0].clone()
    }

    /// Waits until `right` is so of what `status` says.
    fn becomes(&self, what: &str, right: impl Fn(&Value) -> bool) -> Value {
        let mut status = Value::Null;
        let became = eventually(PATIENCE, || {
            status = self.status();
            right(&status)
        });
        assert!(became, "not {what}: {status:#}");
        status
    }

    /// Waits until all listeners are seated and there is nothing to complain about.
    fn healed(&self) -> Value {
        let count = self.workers.len();
        self.becomes("healed", |status| {
            status["steering"]["in_force"] == true
                && status["problems"] == serde_json::json!([])
                && status["listeners"].as_array().map(Vec::len) == Some(count)
        })
    }

    /// Starts a worker with this index on this CPU.
    fn start(&self, index: u32, cpu: u32) -> Worker {
        let spec = Spec { index, cpus: vec![cpu], ..Spec::default() };
        Worker::start(&self.netns, &spec)
    }

    /// Connections from a CPU.
    fn from(&self, cpu: u32, count: u32) -> Tally {
        burst(&self.netns, cpu, &Target::plain("127.0.0.1:8080"), count)
    }

    /// Waits until connections from `cpu` reach the worker with this index only.
    fn reaches(&self, cpu: u32, index: u32) {
        let mut tally = Tally::default();
        let became = eventually(PATIENCE, || {
            tally = self.from(cpu, 20);
            tally.failed() == 0 && tally.by_worker(cpu).keys().all(|it| **it == index.to_string())
        });
        assert!(became, "CPU {cpu} does not reach worker {index} alone: {tally}");
    }
}

/// `steering.generation`: it counts the tables that were published.
fn generation(status: &Value) -> u64 {
    status["steering"]["generation"].as_u64().unwrap_or_else(|| panic!("none in {status:#}"))
}

/// The role of the listener that this worker serves.
fn role(status: &Value, worker: &Worker) -> String {
    let listeners = status["listeners"].as_array().expect("listeners");
    let own = listeners.iter().find(|it| it["cookie"] == worker.cookies()[0]);
    own.map_or_else(|| "gone".to_owned(), |it| it["role"].as_str().expect("a role").to_owned())
}

/// The first two CPUs that the tests may use.
fn two() -> [u32; 2] {
    [cpus()[0], cpus()[1]]
}
