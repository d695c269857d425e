//! Steering as a user switches it on, looked at through `--json`, and off again by the end of the
//! test.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::binary::{Cli, Outcome};
use crate::netns::Netns;
use crate::observe::allowed;

/// The command's verbs for one port of a namespace; detaches on drop.
#[derive(Debug)]
pub struct Steer<'a> {
    netns: &'a Netns,
    port: u16,
}

impl<'a> Steer<'a> {
    /// Does nothing yet.
    pub fn new(netns: &'a Netns, port: u16) -> Self {
        Self { netns, port }
    }

    /// A run of `verb --port PORT args...`.
    pub fn run(&self, verb: &str, args: &[&str]) -> Outcome {
        // Named: somebody else on this machine may listen on the same port.
        let (port, netns) = (self.port.to_string(), self.netns.path());
        let netns = netns.to_str().expect("a path of ours is text");
        let target = [verb, "--port", port.as_str(), "--netns", netns];
        Cli::new(target.into_iter().chain(args.iter().copied())).netns(self.netns).run()
    }

    /// Attaches to the one group that there is.
    pub fn attach(&self, args: &[&str]) -> Attached {
        let args: Vec<_> = args.iter().copied().chain(["--json"]).collect();
        Attached::of(&self.run("attach", &args).ok())
    }

    /// `status` of that group.
    pub fn status(&self) -> Value {
        let all = self.run("status", &["--json"]).ok().json();
        assert_eq!(all.as_array().map(Vec::len), Some(1), "one group: {all:#}");
        all[0].clone()
    }

    /// Detaches, which must succeed.
    pub fn detach(&self) {
        self.run("detach", &[]).ok();
    }
}

impl Drop for Steer<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Another panic would hide the first.
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.run("detach", &[])
            })));
        } else {
            self.detach();
        }
    }
}

/// What `attach --json` said about one group.
#[derive(Debug)]
pub struct Attached(pub Value);

impl Attached {
    /// Reads a report of one group.
    pub fn of(outcome: &Outcome) -> Self {
        let all = outcome.json();
        assert_eq!(all.as_array().map(Vec::len), Some(1), "one group: {outcome}");
        Self(all[0].clone())
    }

    fn number(&self, pointer: &str) -> u64 {
        let value = self.0.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number at {pointer}: {:#}", self.0))
    }

    /// Plans since the first attach.
    pub fn generation(&self) -> u64 {
        self.number("/attached/generation")
    }

    /// The kernel's id of the program.
    pub fn program(&self) -> u64 {
        self.number("/attached/program_id")
    }

    /// Whether only maps were written.
    pub fn in_place(&self) -> bool {
        self.0["attached"]["in_place"] == true
    }

    /// Slot of each listener, by cookie.
    pub fn slots(&self) -> BTreeMap<u64, u64> {
        let slots = self.0["slots"].as_array().expect("slots");
        let cookies = self.listeners().iter().map(|it| it["cookie"].as_u64().expect("a cookie"));
        cookies.zip(slots.iter().map(|slot| slot.as_u64().expect("a slot"))).collect()
    }

    fn listeners(&self) -> &Vec<Value> {
        self.0["listeners"].as_array().expect("listeners")
    }

    /// Workers of each listener, as (process, thread), sorted; none where they are unknown.
    pub fn workers(&self) -> Vec<Vec<(u32, Option<u32>)>> {
        let id = |value: &Value| value.as_u64().map(|id| id as u32);
        let workers = |listener: &Value| {
            let list = listener["served"]["by"].as_array().cloned().unwrap_or_default();
            let one = |worker: &Value| (id(&worker["pid"]).expect("a pid"), id(&worker["tid"]));
            let mut workers: Vec<_> = list.iter().map(one).collect();
            workers.sort_unstable();
            workers
        };
        self.listeners().iter().map(workers).collect()
    }

    /// Socket inode and slot of the listener that this process serves.
    pub fn of_process(&self, pid: u32) -> (u64, u64) {
        let serves = |workers: &Vec<(u32, Option<u32>)>| workers.iter().any(|it| it.0 == pid);
        let place = self.workers().iter().position(serves);
        let place = place.unwrap_or_else(|| panic!("{pid} serves nothing: {:#}", self.0));
        let inode = self.listeners()[place]["inode"].as_u64().expect("an inode");
        (inode, self.0["slots"][place].as_u64().expect("a slot"))
    }

    /// Asserts that what `--pin` reported is what `/proc` says, and returns the CPU of each worker
    /// (a thread, or a process with all its threads).
    pub fn assert_pinned(&self) -> BTreeMap<u32, u32> {
        let list = self.0["pinned"].as_array().expect("a list of pinned workers");
        let pinned = list.iter().map(|worker| {
            let id = |name: &str| worker[name].as_u64().map(|id| id as u32);
            let (pid, cpu) = (id("pid").expect("a pid"), id("cpu").expect("a CPU"));
            let tids = match id("tid") {
                Some(tid) => vec![tid],
                None => crate::observe::threads(pid),
            };
            for &tid in &tids {
                assert_eq!(allowed(tid), [cpu], "thread {tid} of {worker}");
            }
            (id("tid").unwrap_or(pid), cpu)
        });
        pinned.collect()
    }
}
