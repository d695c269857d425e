//! A running `reuseport-steer run`, looked at through what it writes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;

use crate::binary::{self, Cli};
use crate::bpffs::Bpffs;
use crate::eventually;
use crate::netns::Netns;
use crate::process::{Reaped, children};

/// Longest that anything may take on a busy machine: more is a hang.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// In the environment of everything that one launcher starts: who is left of it.
const MARK: &str = "REUSEPORT_TEST_LAUNCHER";

static LAUNCHERS: AtomicU32 = AtomicU32::new(0);

/// How a launcher is started.
#[derive(Debug)]
pub struct Launch<'a> {
    netns: &'a Netns,
    through: Vec<OsString>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl<'a> Launch<'a> {
    /// `run args...` in `netns`: options, `--`, the program and its arguments.
    pub fn new<A: AsRef<OsStr>>(netns: &'a Netns, args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        Self { netns, through: Vec::new(), args, env: Vec::new() }
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Started by another command that is given it as its last arguments: `unshare`, `setpriv`.
    #[must_use]
    pub fn through<A: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        self.through = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Starts it, with pins of its own.
    pub fn spawn(self) -> Launcher<'a> {
        let bpffs = Bpffs::new();
        let mark = format!("{}.{}", std::process::id(), LAUNCHERS.fetch_add(1, Relaxed));
        // Whoever runs the tests may ignore SIGHUP, as `nohup` does; that is inherited, and respected.
        let mut words = ["env", "--default-signal=HUP"].map(OsString::from).to_vec();
        words.extend(self.through);
        words.extend([binary::path().into_os_string(), "run".into(), "--bpffs".into()]);
        words.push(bpffs.path().into());
        words.extend(self.args);
        let mut command: Command = self.netns.command(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).env(MARK, &mark).envs(self.env);
        let output = [(); 2].map(|()| tempfile::NamedTempFile::new().expect("a temporary file"));
        let [out, err] = output
            .each_ref()
            .map(|file| File::options().append(true).open(file.path()).expect("open a log"));
        let child = command.stdout(out).stderr(err).spawn().expect("start the launcher");
        Launcher { netns: self.netns, process: Reaped(child), output, bpffs, mark }
    }

    /// Starts it and waits until all its workers are up.
    pub fn up(self) -> Launcher<'a> {
        let mut launcher = self.spawn();
        launcher.wait_for("all workers listen");
        launcher
    }

    /// Runs one that must fail with this exit code and say these words, and leave nothing.
    pub fn fails(self, code: i32, words: &[&str]) {
        let mut launcher = self.spawn();
        let status = launcher.wait();
        let said = launcher.said();
        assert_eq!(status, Some(code), "{said}");
        for word in words {
            assert!(launcher.errors().contains(word), "it does not say {word:?}: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
        launcher.assert_nothing_left();
    }
}

/// A launcher; killed on drop, and all it started with it.
#[derive(Debug)]
pub struct Launcher<'a> {
    netns: &'a Netns,
    process: Reaped,
    /// Standard output, standard error.
    output: [tempfile::NamedTempFile; 2],
    bpffs: Bpffs,
    mark: String,
}

impl Launcher<'_> {
    /// Its process id (that of what it was started through, if anything).
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Standard output so far.
    pub fn out(&self) -> String {
        fs::read_to_string(self.output[0].path()).expect("read the output")
    }

    /// Standard error so far.
    pub fn errors(&self) -> String {
        fs::read_to_string(self.output[1].path()).expect("read the errors")
    }

    /// Both, for messages.
    pub fn said(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.out(), self.errors())
    }

    /// Waits until it has said `word` once.
    pub fn wait_for(&mut self, word: &str) {
        self.wait_for_times(word, 1);
    }

    /// Waits until it has said `word` so often, in either stream.
    pub fn wait_for_times(&mut self, word: &str, times: usize) {
        let count = |it: &Self| it.said().matches(word).count();
        let said = eventually(PATIENCE, || count(self) >= times || !self.process.alive());
        assert!(said && count(self) >= times, "{word:?} not said {times} times: {}", self.said());
    }

    /// The latest process of each worker, by its own account.
    pub fn workers(&self) -> BTreeMap<u32, u32> {
        let errors = self.errors();
        let started = errors.lines().filter_map(|line| {
            let (worker, rest) = line.split_once("] worker ")?.1.split_once(": process ")?;
            Some((worker.parse().ok()?, rest.split_once(' ')?.0.parse().ok()?))
        });
        started.collect()
    }

    /// Direct children: the workers and the guard.
    pub fn children(&self) -> Vec<u32> {
        children(self.pid())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    /// What `status` says of the one group on `port`.
    pub fn status(&self, port: u16) -> Value {
        let port = port.to_string();
        let bpffs = self.bpffs.path().to_str().expect("a path of ours is text");
        let args = ["status", "--port", &port, "--netns", "/proc/self/ns/net", "--json"];
        let args = args.into_iter().chain(["--bpffs", bpffs]);
        let groups = Cli::new(args).netns(self.netns).run().ok().json();
        assert_eq!(groups.as_array().map(Vec::len), Some(1), "{groups:#}");
        groups[0].clone()
    }

    /// Waits for its end; the exit code, `None` where a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        let status = self.process.wait(PATIENCE);
        status.unwrap_or_else(|| panic!("it does not end: {}", self.said())).code()
    }

    /// SIGTERM, which must end it well and leave nothing; what it has said.
    pub fn stop(mut self) -> String {
        self.signal(libc::SIGTERM);
        assert_eq!(self.wait(), Some(0), "{}", self.said());
        self.assert_nothing_left();
        self.said()
    }

    /// Processes that it started, directly or not, and itself.
    pub fn family(&self) -> Vec<u32> {
        let mark = format!("{MARK}={}", self.mark);
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|entry| entry == mark.as_bytes())
        })
        .collect()
    }

    /// Fails with who is left, after its end. The kernel kills its children a moment later.
    pub fn assert_no_process_left(&self) {
        let mut left = Vec::new();
        let clean = eventually(PATIENCE, || {
            left = self.family();
            left.is_empty()
        });
        assert!(clean, "left running: {left:?}: {}", self.said());
    }

    /// Nor a pin.
    pub fn assert_nothing_left(&self) {
        // It has buried its dead before it ends.
        assert_eq!(self.family(), [0; 0], "left running: {}", self.said());
        assert_eq!(self.bpffs.pins(), Vec::<String>::new(), "{}", self.said());
    }
}

impl Drop for Launcher<'_> {
    #[expect(clippy::print_stderr, reason = "what a launcher said explains a failed test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- launcher {}\n{}", self.pid(), self.said());
        }
        if self.process.alive() {
            self.process.kill();
        }
        for pid in self.family() {
            drop(crate::sys::kill(pid, libc::SIGKILL));
        }
    }
}
