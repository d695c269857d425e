//! Leave no trace: what is ours on this machine, before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::eventually;
use crate::netns::Netns;
use crate::process::{MARK, tool};
use crate::require;
use crate::turn::Turn;

/// BPF programs and maps of ours, by the names that the kernel keeps (15 characters).
const OURS: [&str; 18] = [
    "select",
    "select_logged",
    "select_or_migra",
    "list_members",
    "CONFIG",
    "TABLE",
    "SOCKETS",
    "LOAD",
    "COUNTERS",
    "queued",
    "accepted",
    "returned",
    "LISTENERS",
    "WAITING",
    "TIMES",
    "PAIRS",
    "TOTALS",
    "EVENTS",
];

/// What was there when the test began. It is an exclusive [`Turn`]: take it first, and drop
/// namespaces and workers before [`Baseline::assert_same`].
#[derive(Debug)]
pub struct Baseline {
    _turn: Turn,
    before: BTreeSet<String>,
}

impl Baseline {
    /// Looks around. Needs root.
    pub fn take() -> Self {
        require::root();
        let turn = Turn::exclusive();
        Self { _turn: turn, before: traces() }
    }

    /// Fails with what is there now and was not, after two seconds: the kernel frees programs, maps
    /// and namespaces some time after their last user. What went meanwhile was another's to end.
    pub fn assert_same(&self) {
        let mut left = Vec::new();
        let clean = eventually(Duration::from_secs(2), || {
            left = traces().difference(&self.before).cloned().collect();
            left.is_empty()
        });
        assert!(clean, "left behind: {left:#?}");
    }
}

/// Runs `work` in a namespace of its own, and fails when it leaves anything behind.
pub fn scene(work: impl FnOnce(&Netns)) {
    let before = Baseline::take();
    let netns = Netns::new();
    work(&netns);
    drop(netns);
    before.assert_same();
}

fn traces() -> BTreeSet<String> {
    [bpf(), pins(), namespaces(), processes(), descriptors()].into_iter().flatten().collect()
}

fn bpf() -> Vec<String> {
    let list = |kind: &str| -> Vec<String> {
        let text = tool("bpftool", &["-j", kind, "show"]);
        let listed: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let ours = listed
            .as_array()
            .into_iter()
            .flatten()
            .filter(|object| object["name"].as_str().is_some_and(|name| OURS.contains(&name)));
        ours.map(|object| format!("BPF {kind} {} {}", object["id"], object["name"])).collect()
    };
    [list("prog"), list("map")].concat()
}

fn pins() -> Vec<String> {
    fn walk(directory: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            found.push(format!("pin {}", entry.path().display()));
            walk(&entry.path(), found);
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/bpf/reuseport-steer"), &mut found);
    found
}

fn namespaces() -> Vec<String> {
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    named.map(|entry| format!("namespace {}", entry.path().display())).collect()
}

/// Processes that carry our mark, and children of ours that dropped it from their environment.
fn processes() -> Vec<String> {
    let own = std::process::id();
    let mark = format!("{MARK}={own}");
    let children = crate::process::children(own);
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let marked = environment.split(|&byte| byte == 0).any(|entry| entry == mark.as_bytes());
        *pid != own && (marked || children.contains(pid))
    })
    .map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("process {pid} {}", name.trim())
    })
    .collect()
}

fn descriptors() -> Vec<String> {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter_map(|entry| {
        let file = fs::read_link(entry.path()).ok()?;
        // The listing's own descriptor is one of them.
        let own = file.to_string_lossy().ends_with("/fd");
        (!own).then(|| format!("fd {} {}", entry.file_name().display(), file.display()))
    })
    .collect()
}
