//! A namespace whose port is steered: the command's verbs for it, read back as JSON.

use std::fs::File;
use std::process::Stdio;

use serde_json::Value;

use crate::binary::{self, Cli, Outcome};
use crate::client::{Target, burst};
use crate::cpus;
use crate::netns::Netns;
use crate::process::Reaped;
use crate::worker::{Spec, Worker};

/// The port of a scene.
pub const PORT: u16 = 8080;

/// A namespace, looked at through the command. Pins of its groups are removed on drop: let workers
/// be dropped before it.
#[derive(Debug)]
pub struct Scene {
    /// Where everything happens.
    pub netns: Netns,
    /// The port that verbs are given, usually [`PORT`]. What happens to pins of groups that are
    /// gone is for everybody on the port: a test about that needs one of its own.
    pub port: u16,
    udp: bool,
}

impl Scene {
    /// With nobody in it.
    #[expect(clippy::new_without_default, reason = "makes a kernel object")]
    pub fn new() -> Self {
        Self::on(PORT)
    }

    /// For UDP sockets instead of listeners.
    pub fn udp() -> Self {
        Self { netns: Netns::new(), port: PORT, udp: true }
    }

    /// With nobody in it, for another port.
    pub fn on(port: u16) -> Self {
        Self { netns: Netns::new(), port, udp: false }
    }

    /// With one pinned worker for each CPU, not steered yet.
    pub fn with_workers(spec: &Spec) -> (Self, Vec<Worker>) {
        let scene = Self::new();
        let workers = scene.one_per_cpu(spec, 1);
        (scene, workers)
    }

    /// Starts a worker on each CPU; their indices begin with the `spec`'s and are `step` apart.
    pub fn one_per_cpu(&self, spec: &Spec, step: u32) -> Vec<Worker> {
        let mut workers = Vec::new();
        for (place, cpu) in (0..).zip(cpus()) {
            let index = spec.index + place * step;
            let spec = Spec { index, cpus: vec![cpu], ..spec.clone() };
            workers.push(Worker::start(&self.netns, &spec));
        }
        workers
    }

    /// `verb --port PORT --netns THIS --json args...`.
    pub fn args(&self, verb: &str, args: &[&str]) -> Vec<String> {
        let mut all = vec![verb.to_owned(), "--port".to_owned(), self.port.to_string()];
        all.extend(["--netns".to_owned(), self.netns.path().display().to_string()]);
        all.extend(["--json".to_owned()]);
        all.extend(self.udp.then(|| "--udp".to_owned()));
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        all
    }

    /// Runs a verb.
    pub fn run(&self, verb: &str, args: &[&str]) -> Outcome {
        Cli::new(self.args(verb, args)).netns(&self.netns).run()
    }

    /// Starts a verb; standard output goes to `out`.
    pub fn spawn(&self, verb: &str, args: &[&str], out: File) -> Reaped {
        let mut command = self.netns.command(binary::path());
        command.args(self.args(verb, args)).stdin(Stdio::null()).stdout(out);
        Reaped(command.spawn().expect("start the command"))
    }

    /// Attaches to the one group there is; its report.
    pub fn attach(&self, args: &[&str]) -> Value {
        only(self.attach_all(args))
    }

    /// Attaches to every group; their reports.
    pub fn attach_all(&self, args: &[&str]) -> Vec<Value> {
        list(&self.run("attach", args).ok())
    }

    /// Detaches; the outcome for the one group there is in this namespace.
    pub fn detach(&self) -> String {
        let mut reports = list(&self.run("detach", &[]).ok());
        // It clears pins of any group on the port that is gone: other tests' too.
        let cookie = self.netns.cookie();
        reports.retain(|report| report["group"]["netns"] == cookie);
        text(&only(reports)["outcome"])
    }

    /// What `status` says of the one group there is.
    pub fn status(&self) -> Value {
        only(self.status_all())
    }

    /// What `status` says of every group.
    pub fn status_all(&self) -> Vec<Value> {
        list(&self.run("status", &[]).ok())
    }

    /// One of `steering.counters`.
    pub fn counter(&self, name: &str) -> u64 {
        number(&self.status()["steering"]["counters"][name])
    }

    /// Asserts that connections to 127.0.0.1 from each CPU reach the worker with the CPU's place in
    /// the list for its index, and that `status` has nothing to complain about.
    pub fn assert_steered(&self) {
        self.assert_local();
        let status = self.status();
        assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
        assert_eq!(status["steering"]["in_force"], true, "{status:#}");
    }

    /// The connections of [`Scene::assert_steered`] alone.
    pub fn assert_local(&self) {
        let target = Target::plain(&format!("127.0.0.1:{}", self.port));
        for cpu in cpus() {
            burst(&self.netns, cpu, &target, 30).assert_local(place);
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Whether there is anything to detach or to clear does not matter.
        drop(self.run("detach", &[]));
    }
}

/// Place of a CPU among those that we may use: the index of its worker.
pub fn place(cpu: u32) -> String {
    cpus().iter().position(|&it| it == cpu).expect("a CPU of ours").to_string()
}

/// A number of a JSON value.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// A text of a JSON value.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

fn list(outcome: &Outcome) -> Vec<Value> {
    let value = outcome.json();
    value.as_array().unwrap_or_else(|| panic!("not a list: {outcome}")).clone()
}

fn only(mut list: Vec<Value>) -> Value {
    assert_eq!(list.len(), 1, "not one group: {list:#?}");
    list.remove(0)
}
