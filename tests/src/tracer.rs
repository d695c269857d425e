//! A running `trace`, and what it found.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::process::{ChildStderr, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::binary;
use crate::netns::Netns;
use crate::process::Reaped;

/// Ended on drop.
#[derive(Debug)]
pub struct Tracer {
    child: Reaped,
    out: File,
    err: BufReader<ChildStderr>,
}

/// What it said.
#[derive(Debug)]
pub struct Traced {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error, after the line that says that it began.
    pub stderr: String,
}

impl Tracer {
    /// Starts it for a port in `netns` and waits until it traces.
    pub fn start(netns: &Netns, port: u16, args: &[&str]) -> Self {
        let mut out = tempfile::tempfile().expect("a temporary file");
        out.rewind().expect("rewind");
        let mut command = netns.command(binary::path());
        command.args(["trace", "--port", &port.to_string(), "--netns", "/proc/self/ns/net"]);
        let stdout = out.try_clone().expect("dup a file");
        command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        let mut child = Reaped(command.spawn().expect("start the command"));
        let mut err = BufReader::new(child.0.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        err.read_line(&mut line).expect("read from the command");
        assert!(line.starts_with("tracing "), "it did not begin: {line:?}");
        Self { child, out, err }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// What it printed so far.
    pub fn so_far(&mut self) -> String {
        let mut text = String::new();
        self.out.rewind().expect("rewind");
        self.out.read_to_string(&mut text).expect("read a file");
        text
    }

    /// Interrupts it, as Ctrl-C does.
    pub fn stop(self) -> Traced {
        self.child.signal(libc::SIGINT);
        self.end()
    }

    /// Waits for its own end.
    pub fn end(mut self) -> Traced {
        let status = self.child.wait(Duration::from_secs(30)).expect("it ends in time");
        let mut stderr = String::new();
        self.err.read_to_string(&mut stderr).expect("read from the command");
        Traced { code: status.code(), stdout: self.so_far(), stderr }
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill();
    }
}

impl Traced {
    /// The summary of `--json`.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The lines of `--events`.
    pub fn lines(&self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{self:?}");
        let line =
            |it: &str| serde_json::from_str(it).unwrap_or_else(|error| panic!("{error}: {it}"));
        self.stdout.lines().map(line).collect()
    }
}
