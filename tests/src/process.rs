//! Child processes that never outlive their test.

use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::{eventually, sys};

/// In the environment of everything the tests start, with the test process's id: how the leak check
/// knows a process of ours.
pub const MARK: &str = "REUSEPORT_TEST_RUN";

/// A command that carries our mark.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env(MARK, std::process::id().to_string());
    command
}

/// A child that is ended and waited for on drop, by its own pid.
#[derive(Debug)]
pub struct Reaped(pub Child);

impl Reaped {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits for its end; `None` when `limit` passes first.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        eventually(limit, || {
            status = self.0.try_wait().expect("wait for a child");
            status.is_some()
        });
        status
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        if self.alive() {
            self.0.kill().expect("kill a child");
        }
        self.0.wait().expect("wait for a killed child");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        sys::kill(self.pid(), signal).expect("signal a child");
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        if self.alive() {
            drop(self.0.kill());
        }
        drop(self.0.wait());
    }
}

/// Runs a command to its end with its output captured; `None` for the status when `limit` passed
/// and it was killed.
pub fn capture(command: &mut Command, limit: Duration) -> (Option<ExitStatus>, String, String) {
    // Files, not pipes: a child of the child that keeps them open cannot make us wait.
    let mut files = [(); 2].map(|()| tempfile::tempfile().expect("a temporary file"));
    let [stdout, stderr] = files.each_ref().map(|file| file.try_clone().expect("dup a file"));
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let mut child = Reaped(child);
    let status = child.wait(limit);
    drop(child);
    let [stdout, stderr] = files.each_mut().map(|file| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read captured output");
        String::from_utf8_lossy(&bytes).into_owned()
    });
    (status, stdout, stderr)
}

/// Runs a command that must succeed; its standard output.
pub fn must(command: &mut Command) -> String {
    let (status, stdout, stderr) = capture(command, Duration::from_mins(1));
    let ok = status.is_some_and(|status| status.success());
    assert!(ok, "{command:?}: {status:?}\n{stdout}{stderr}");
    stdout
}

/// [`must`] for `program args...` outside any namespace of ours.
pub fn tool(program: &str, args: &[&str]) -> String {
    must(command(program).args(args))
}

/// Direct children of a process, ascending.
pub fn children(pid: u32) -> Vec<u32> {
    let mut children: Vec<u32> = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| pid.parse().ok())
        .collect();
    children.sort_unstable();
    children
}
