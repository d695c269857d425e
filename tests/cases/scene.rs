//! A port that could be steered, and what must be so after the command refused to.

use std::collections::BTreeSet;
use std::fs;

use reuseport_tests::binary::{Cli, Outcome};
use reuseport_tests::bpffs::Bpffs;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::cpus;
use reuseport_tests::netns::Netns;
use reuseport_tests::worker::{Spec, Worker};
use serde_json::Value;

/// Workers on 0.0.0.0:8080, and a bpffs of their own.
pub(crate) struct Scene {
    pub(crate) workers: Vec<Worker>,
    pub(crate) bpffs: Bpffs,
    pub(crate) netns: Netns,
}

impl Scene {
    /// Two workers that can be steered.
    pub(crate) fn new() -> Self {
        Self::of(&[Spec::default(), Spec::default()])
    }

    /// Workers as described; the `i`th has index `i`, and its own CPU where it names none.
    pub(crate) fn of(specs: &[Spec]) -> Self {
        let netns = Netns::new();
        let own = cpus();
        let start = |(index, spec): (usize, &Spec)| {
            let mut spec = Spec { index: index as u32, ..spec.clone() };
            if spec.cpus.is_empty() {
                spec.cpus = vec![own[index % own.len()]];
            }
            Worker::start(&netns, &spec)
        };
        let workers = specs.iter().enumerate().map(start).collect();
        Self { workers, bpffs: Bpffs::new(), netns }
    }

    /// `reuseport-steer VERB --port 8080 ...` inside, with our bpffs.
    pub(crate) fn cli(&self, verb: &str, more: &[&str]) -> Cli<'_> {
        self.cli_at(8080, verb, more)
    }

    /// [`Scene::cli`] for another port.
    pub(crate) fn cli_at(&self, port: u16, verb: &str, more: &[&str]) -> Cli<'_> {
        let bpffs = self.bpffs.path().to_str().expect("a path of ours is text");
        let port = port.to_string();
        let mut args = vec![verb, "--port", &port, "--bpffs", bpffs];
        if !more.iter().any(|arg| ["--pid", "--netns"].contains(arg)) {
            // Tests beside this one listen on the same port in namespaces of theirs.
            args.extend(["--netns", "/proc/self/ns/net"]);
        }
        Cli::new(args.into_iter().chain(more.iter().copied())).netns(&self.netns)
    }

    /// Runs `cli`, which must be refused with `code` and an error that says all `words`, and must
    /// have changed nothing.
    pub(crate) fn refuses(&self, cli: &Cli<'_>, code: i32, words: &[&str]) -> Outcome {
        let before = self.traces();
        let outcome = refused(cli, code, words);
        assert_eq!(self.traces(), before, "a refusal left something: {outcome}");
        outcome
    }

    /// The kernel's word on what is attached, by our own `status`.
    pub(crate) fn attached(&self) -> Value {
        let groups = self.cli("status", &["--json"]).run().ok().json();
        groups[0]["attached"].clone()
    }

    /// Asserts that the kernel's hash spreads connections and all are answered.
    pub(crate) fn hashed(&self) {
        assert_eq!(self.attached()["state"], "nothing");
        let tally = burst(&self.netns, cpus()[0], &Target::plain("127.0.0.1:8080"), 60);
        assert_eq!((tally.answered(), tally.failed()), (60, 0), "{tally}");
        assert_eq!(tally.by_worker(cpus()[0]).len(), self.workers.len(), "{tally}");
    }

    /// Asserts that every connection is served on the CPU that received it.
    pub(crate) fn steered(&self) {
        for cpu in cpus() {
            let tally = burst(&self.netns, cpu, &Target::plain("127.0.0.1:8080"), 20);
            tally.assert_local(|cpu| {
                cpus().iter().position(|&it| it == cpu).expect("a CPU of ours").to_string()
            });
        }
    }

    /// Pins and the workers' descriptors.
    pub(crate) fn traces(&self) -> BTreeSet<String> {
        let mut traces: BTreeSet<_> = self.bpffs.pins().into_iter().collect();
        for worker in &self.workers {
            let open = fs::read_dir(format!("/proc/{}/fd", worker.pid())).expect("a live worker");
            traces.extend(open.flatten().filter_map(|entry| {
                let file = fs::read_link(entry.path()).ok()?;
                Some(format!("{} -> {}", entry.path().display(), file.display()))
            }));
        }
        traces
    }
}

/// Runs `cli`, which must be refused with `code` and one error that says all `words`.
pub(crate) fn refused(cli: &Cli<'_>, code: i32, words: &[&str]) -> Outcome {
    let outcome = cli.run().fails(code);
    let text = &outcome.stderr;
    assert_eq!(outcome.stdout, "", "{outcome}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{outcome}");
    assert!(text.matches("(os error").count() <= 1, "the cause is said twice: {outcome}");
    for word in words {
        assert!(text.contains(word), "does not say {word:?}: {outcome}");
    }
    outcome
}
