//! Workers made for tests: processes with listeners of any kind, steered by a line protocol.
//!
//! The program is `src/bin/steer-test-worker.rs`. It answers every connection with one line of
//! JSON (see [`crate::client::Reply`]) and closes it.

use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};

use serde_json::Value;

use crate::binary::beside;
use crate::netns::Netns;
use crate::process::Reaped;
use crate::sys::Become;

/// How a worker waits for connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One thread, one epoll set with all listeners (PgBouncer).
    Epoll,
    /// One thread, poll(2) over all listeners.
    Poll,
    /// A thread for each listener, blocked in accept(2).
    Accept,
    /// A thread for each listener, each with an epoll set of its own (HAProxy, Envoy).
    Threads,
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Epoll => "epoll",
            Self::Poll => "poll",
            Self::Accept => "accept",
            Self::Threads => "threads",
        })
    }
}

/// What a worker is to be; change what matters with `..Spec::default()`.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "socket options are independent of each other")]
pub struct Spec {
    /// What it calls itself in its replies; listener `i` of it says `index + i`.
    pub index: u32,
    /// Address to bind, without brackets: `0.0.0.0`, `::1`. Of several, with commas between, each
    /// listener takes the next one.
    pub addr: &'static str,
    /// Port to bind.
    pub port: u16,
    /// How many listeners.
    pub listeners: u32,
    /// How it waits.
    pub style: Style,
    /// CPUs: a process of one thread is bound to all of them, thread `i` of several to the `i`th
    /// (again from the first when they run out). Empty: unbound.
    pub cpus: Vec<u32>,
    /// `SO_REUSEPORT`.
    pub reuseport: bool,
    /// `IPV6_V6ONLY`.
    pub v6only: bool,
    /// `IPPROTO_MPTCP`.
    pub mptcp: bool,
    /// A UDP socket instead; unless told not to listen, every datagram is answered.
    pub udp: bool,
    /// `TCP_DEFER_ACCEPT`: a connection reaches the accept queue with its first data.
    pub defer: bool,
    /// Whether to listen at once, or on [`Worker::tell`]`("listen")`.
    pub listen: bool,
    /// The backlog.
    pub backlog: u32,
    /// Microseconds of work for each connection, before its answer.
    pub work: u32,
    /// Microseconds of sleep for each connection: a worker that can do so much, whatever its CPU does.
    pub nap: u32,
    /// Answers with two bytes, for measuring; [`crate::client::Reply`] reads nothing from them.
    pub brief: bool,
    /// `SO_BINDTODEVICE`.
    pub device: Option<&'static str>,
    /// `SO_INCOMING_CPU`, as a server that knows where it runs sets it.
    pub incoming_cpu: Option<u32>,
    /// User and group to run as.
    pub user: Option<(u32, u32)>,
    /// Keeps what [`Worker::in_hand`] tells. For one thread, not of style `Accept`.
    pub ledger: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            index: 0,
            addr: "0.0.0.0",
            port: 8080,
            listeners: 1,
            style: Style::Epoll,
            cpus: Vec::new(),
            reuseport: true,
            v6only: false,
            mptcp: false,
            udp: false,
            defer: false,
            listen: true,
            backlog: 511,
            work: 0,
            nap: 0,
            brief: false,
            device: None,
            incoming_cpu: None,
            user: None,
            ledger: false,
        }
    }
}

impl Spec {
    fn args(&self) -> Vec<String> {
        let cpus: Vec<String> = self.cpus.iter().map(u32::to_string).collect();
        let mut args = vec![
            format!("index={}", self.index),
            format!("addr={}", self.addr),
            format!("port={}", self.port),
            format!("listeners={}", self.listeners),
            format!("style={}", self.style),
            format!("cpus={}", cpus.join(",")),
            format!("backlog={}", self.backlog),
            format!("work={}", self.work),
            format!("nap={}", self.nap),
        ];
        args.extend(self.device.map(|device| format!("device={device}")));
        args.extend(self.incoming_cpu.map(|cpu| format!("incoming-cpu={cpu}")));
        let flags = [
            (!self.reuseport, "no-reuseport"),
            (self.v6only, "v6only"),
            (self.mptcp, "mptcp"),
            (self.udp, "udp"),
            (self.defer, "defer"),
            (!self.listen, "no-listen"),
            (self.brief, "brief"),
        ];
        args.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()));
        args
    }
}

/// A running worker; killed on drop.
#[derive(Debug)]
pub struct Worker {
    child: Reaped,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    ready: Value,
    ledger: Option<tempfile::NamedTempFile>,
}

impl Worker {
    /// Starts one in `netns` and waits until its sockets are bound (and listen, unless told not).
    pub fn start(netns: &Netns, spec: &Spec) -> Self {
        let what = Become { user: spec.user, ..Become::default() };
        let mut command = netns.command_as(beside("steer-test-worker"), what);
        command.args(spec.args()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let ledger = spec.ledger.then(|| tempfile::NamedTempFile::new().expect("a temporary file"));
        command.args(ledger.iter().map(|file| format!("ledger={}", file.path().display())));
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("start {command:?}: {error} (cargo builds it with the tests)")
        });
        let mut child = Reaped(child);
        let stdin = child.0.stdin.take().expect("stdin is piped");
        let stdout = BufReader::new(child.0.stdout.take().expect("stdout is piped"));
        let mut worker = Self { child, stdin, stdout, ready: Value::Null, ledger };
        worker.ready = worker.answer(&format!("start as {spec:?}"));
        assert!(worker.ready.get("error").is_none(), "{spec:?}: {}", worker.ready);
        worker
    }

    /// One worker for each of `cpus`, bound to it, with the index of its place in the list.
    pub fn one_per_cpu(netns: &Netns, cpus: &[u32], spec: &Spec) -> Vec<Self> {
        let spec = |(index, &cpu)| Spec { index, cpus: vec![cpu], ..spec.clone() };
        (0..).zip(cpus).map(spec).map(|spec| Self::start(netns, &spec)).collect()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its serving threads' ids, in order of its listeners; one in all for `Epoll` and `Poll`.
    /// Empty until it listens.
    pub fn tids(&self) -> Vec<u32> {
        self.numbers("tids").into_iter().map(|tid| tid as u32).collect()
    }

    /// `SO_COOKIE` of each of its listeners.
    pub fn cookies(&self) -> Vec<u64> {
        self.numbers("cookies")
    }

    /// The descriptors' numbers of its listeners.
    pub fn fds(&self) -> Vec<u64> {
        self.numbers("fds")
    }

    fn numbers(&self, what: &str) -> Vec<u64> {
        let list = self.ready[what].as_array().expect("a list in the ready line");
        list.iter().map(|number| number.as_u64().expect("a number")).collect()
    }

    /// Gives it a command and returns its answer; fails the test on an error.
    ///
    /// `listen`; `relisten` (with another backlog); `close first` (its first listener only); `stop` (accept nothing more; in style `Accept` one more each) and `resume`;
    /// `close` (its listeners, not in style `Accept` or `Poll`); `stats` (`{"accepted": [..]}` by
    /// listener); `exit`.
    pub fn tell(&mut self, command: &str) -> Value {
        let answer = self.ask(command);
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        if command == "listen" {
            self.ready["tids"] = answer["tids"].clone();
        }
        answer
    }

    /// [`Worker::tell`], for a command that may fail: the answer then has `error` and `errno`.
    pub fn ask(&mut self, command: &str) -> Value {
        writeln!(self.stdin, "{command}").expect("write to the worker");
        self.answer(command)
    }

    fn answer(&mut self, to: &str) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read from the worker");
        serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!("the worker did not {to}; it said {line:?} (its stderr is above)")
        })
    }

    /// Connections that it accepted, or was about to accept, and did not answer; also of one that was
    /// killed. Needs [`Spec::ledger`].
    pub fn in_hand(&self) -> u64 {
        let file = self.ledger.as_ref().expect("a ledger");
        let mut counts = fs::read(file.path()).expect("read the ledger");
        counts.resize(16, 0);
        let count = |at: usize| u64::from_ne_bytes(counts[at..at + 8].try_into().expect("8 bytes"));
        count(0).saturating_sub(count(8))
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.child.alive()
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// SIGSTOP: it hangs with its listeners open.
    pub fn freeze(&self) {
        self.child.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.child.signal(libc::SIGCONT);
    }
}
