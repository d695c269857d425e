//! A running `reuseport-steer agent`, looked at through its log.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::binary;
use crate::bpffs::Bpffs;
use crate::eventually;
use crate::netns::Netns;
use crate::process::Reaped;

/// Longest that anything may take on a busy machine: more is a hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent; killed on drop.
#[derive(Debug)]
pub struct Agent {
    child: Reaped,
    log: tempfile::NamedTempFile,
}

impl Agent {
    /// Starts one for `port` in `netns`, with pins in `bpffs`, and waits until it says that it is
    /// ready.
    pub fn start(netns: &Netns, bpffs: &Bpffs, port: u16, args: &[&str]) -> Self {
        let mut agent = Self::spawn(netns, bpffs, port, args);
        agent.wait_for("ready");
        agent
    }

    /// Starts one and does not wait.
    pub fn spawn(netns: &Netns, bpffs: &Bpffs, port: u16, args: &[&str]) -> Self {
        Self::spawn_with(netns.command(binary::path()), bpffs, port, args)
    }

    /// Starts one through a command that becomes it.
    pub fn spawn_with(mut command: Command, bpffs: &Bpffs, port: u16, args: &[&str]) -> Self {
        let port = port.to_string();
        command.args(["agent", "--port", &port, "--netns", "/proc/self/ns/net", "--bpffs"]);
        command.arg(bpffs.path()).args(args);
        Self::of(command)
    }

    /// Starts the agent that this command is, whole, and does not wait.
    pub fn of(mut command: Command) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let stderr = File::options().append(true).open(log.path()).expect("open the log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = Reaped(command.spawn().expect("start the agent"));
        Self { child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).expect("read the log")
    }

    /// Waits until it has said `word`.
    pub fn wait_for(&mut self, word: &str) {
        let said = eventually(PATIENCE, || self.log().contains(word) || !self.child.alive());
        let log = self.log();
        assert!(said && log.contains(word), "the agent did not say {word:?}: {log}");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        self.child.signal(signal);
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// SIGTERM, which must end it well; what it has said.
    pub fn stop(mut self) -> String {
        self.child.signal(libc::SIGTERM);
        assert_eq!(self.ended(), Some(0), "{}", self.log());
        self.log()
    }

    /// Waits for its end; the exit code, `None` where a signal ended it.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.wait(PATIENCE);
        status.unwrap_or_else(|| panic!("the agent does not end: {}", self.log())).code()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.child.alive()
    }
}
