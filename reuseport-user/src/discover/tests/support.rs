//! Servers for the tests: started, asked, and killed with their whole process group.

use std::fmt::Debug;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::discover::{NetnsChoice, Target, discover};
use crate::model::{Evidence, Group, Listener, Pid, Protocol, Served};

/// A server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// The port it listens on.
    pub(crate) port: u16,
    /// Process, thread and descriptor of each server loop.
    pub(crate) serves: Vec<(Pid, Pid, i32)>,
}

impl Server {
    /// Starts `server.py` in a way to serve, on a free port.
    pub(crate) fn start(style: &str) -> Self {
        Self::start_on(style, 0)
    }

    pub(crate) fn start_on(style: &str, port: u16) -> Self {
        Self::run(Command::new("python3"), style, port)
    }

    /// Starts it with a command in front, such as `unshare -n`.
    pub(crate) fn run(mut command: Command, style: &str, port: u16) -> Self {
        let child = command
            .args(["-c", include_str!("server.py"), style, &port.to_string()])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut server = Self { port, serves: Vec::new(), child };
        let lines = BufReader::new(server.child.stdout.take().unwrap()).lines();
        for line in lines {
            let line = line.unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |index: usize| words[index].parse::<u32>().unwrap();
            match words[0] {
                "port" => server.port = number(1) as u16,
                "serves" => server.serves.push((number(1), number(2), number(3) as i32)),
                _ => break,
            }
        }
        server
    }
}

impl Server {
    /// Starts a server from a configuration that names the port; it must stay in the foreground.
    ///
    /// The port is kept free for it by a socket that is bound and does not listen.
    pub(crate) fn configured(command: &mut Command, port: u16, listeners: usize) -> Self {
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port, serves: Vec::new() };
        for _ in 0..200 {
            let found = discover(&Target::tcp(port)).map_or(0, |groups| groups[0].listeners.len());
            if found == listeners {
                return server;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("{command:?} does not listen");
    }

    pub(crate) fn pid(&self) -> Pid {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        Command::new("kill").args(["-KILL", "--", &group]).status().unwrap();
        self.child.wait().unwrap();
    }
}

/// The one group on the server's port in this namespace.
pub(crate) fn group(server: &Server) -> Group {
    let mut groups = discover(&here(server.port)).unwrap();
    assert_eq!(groups.len(), 1);
    groups.remove(0)
}

/// Workers that were just started have yet to reach their event loops, on a busy machine later than on
/// an idle one: looks at the server's group until `see` sees what is expected, or for long enough.
pub(crate) fn eventually<T: PartialEq + Debug>(
    server: &Server,
    expected: &T,
    see: impl Fn(&Group) -> T,
) {
    let mut seen = see(&group(server));
    for _ in 0..100 {
        if seen == *expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
        seen = see(&group(server));
    }
    assert_eq!(seen, *expected);
}

/// Process, thread, evidence and CPUs of the workers of each listener; the reason where unknown.
pub(crate) type Seen = Vec<Result<Vec<(Pid, Option<Pid>, Evidence, String)>, String>>;

/// Who serves each listener.
pub(crate) fn workers(group: &Group) -> Seen {
    let of = |listener: &Listener| match &listener.served {
        Served::Unknown(reason) => Err(reason.clone()),
        Served::By(workers) => Ok(workers
            .iter()
            .map(|it| (it.pid, it.tid, it.evidence, it.cpus.to_string()))
            .collect()),
    };
    group.listeners.iter().map(of).collect()
}

/// TCP listeners on `port` in this namespace.
pub(crate) fn here(port: u16) -> Target {
    let netns = NetnsChoice::Pid(std::process::id());
    Target { port, addrs: Vec::new(), netns, protocol: Protocol::Tcp }
}
