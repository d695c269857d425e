//! Servers made with the library: `src/bin/steer-test-server.rs`, and the library's examples.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::binary::beside;
use crate::netns::Netns;
use crate::process::{self, Reaped, must};

/// No server takes longer to end, once nothing holds it.
const LONGEST: Duration = Duration::from_mins(1);

/// A running server; killed on drop.
#[derive(Debug)]
pub struct Server {
    child: Reaped,
    stdout: BufReader<ChildStdout>,
    /// The first line that it said: JSON from `steer-test-server`.
    pub ready: String,
}

/// The test server of this build.
pub fn path() -> PathBuf {
    beside("steer-test-server")
}

/// The server of the benchmarks, of this build.
pub fn http() -> PathBuf {
    beside("steer-http-server")
}

/// An example of this build.
pub fn example(name: &str) -> PathBuf {
    let path = beside(&format!("examples/{name}"));
    assert!(
        path.is_file(),
        "{} does not exist: run `cargo build --package reuseport-user --examples`, or `cargo xtask \
         test`, which does",
        path.display()
    );
    path
}

impl Server {
    /// Starts the test server in `netns` and waits until it listens.
    pub fn start(netns: &Netns, arguments: &[&str]) -> Self {
        let mut command = netns.command(path());
        command.args(arguments);
        Self::spawn(command)
    }

    /// As [`Server::start`], with two listeners that it is passed as systemd passes them.
    pub fn start_with(netns: &Netns, listeners: [OwnedFd; 2], arguments: &[&str]) -> Self {
        // No descriptor is ever open for every child: the two come as standard streams.
        const SCRIPT: &str = "exec 3<&0 4<&2 0</dev/null 2>&1; \
                              LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"";
        let [first, second] = listeners;
        let mut command = netns.command("sh");
        command.args(["-c", SCRIPT, "sh"]).arg(path()).args(arguments);
        command.stdin(first).stderr(second);
        Self::spawn_as_it_is(command)
    }

    /// As [`Server::start`], by a command that becomes what its last arguments say: `setpriv`, `sh`.
    pub fn start_through(netns: &Netns, through: &[&str], arguments: &[&str]) -> Self {
        let mut command = netns.command(through[0]);
        command.args(&through[1..]).arg(path()).args(arguments);
        Self::spawn(command)
    }

    /// Starts an example in `netns` and waits until it listens.
    pub fn example(netns: &Netns, name: &str, arguments: &[&str]) -> Self {
        let mut command = netns.command(example(name));
        command.args(arguments);
        Self::spawn(command)
    }

    /// Starts any program that says a line when it listens.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::spawn_as_it_is(command)
    }

    fn spawn_as_it_is(mut command: Command) -> Self {
        let child = command.stdout(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let mut child = Reaped(child);
        let stdout = BufReader::new(child.0.stdout.take().expect("stdout is piped"));
        let mut server = Self { child, stdout, ready: String::new() };
        server.ready = server.line();
        assert!(!server.ready.is_empty(), "{command:?} ended without a word");
        server
    }

    /// The next line of its output; empty when it has ended.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read from a server");
        line.trim_end().to_owned()
    }

    /// A value of its first line.
    pub fn said(&self, name: &str) -> Value {
        let value: Value = serde_json::from_str(&self.ready)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.ready));
        value[name].clone()
    }

    /// The rung that it is on.
    pub fn rung(&self) -> String {
        self.said("rung")["rung"].as_str().unwrap_or_else(|| panic!("{}", self.ready)).to_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.child.alive()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        self.child.signal(signal);
    }

    /// Waits for its end; the rest of its output.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let status = self.child.wait(LONGEST).expect("the server does not end");
        let mut rest = Vec::new();
        loop {
            match self.line() {
                line if line.is_empty() => break,
                line => rest.push(line),
            }
        }
        (status, rest.join("\n"))
    }

    /// SIGTERM, and waits for its end, which must be a good one; the rest of its output.
    pub fn stop(mut self) -> String {
        self.signal(libc::SIGTERM);
        let (status, rest) = self.wait();
        assert!(status.success(), "{status}: {rest}");
        rest
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill();
    }
}

/// A copy of the test server that any user can reach.
pub fn copy() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = directory.path().join("steer-test-server");
    // By another process: see `binary::copy`.
    must(process::command("cp").arg(path()).arg(&copy));
    (directory, copy)
}
