//! Servers of a few lines in C and Go, compiled by the test: one process and one listener each.

use std::process::Command;

use crate::netns::Netns;
use crate::process::{self, must};
use crate::servers::{Home, Server, command};
use crate::sys::Become;

/// What a server is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// One thread, blocked in accept().
    C,
    /// Goroutines on threads of the runtime's choice; epoll.
    Go,
    /// Go with multipath TCP.
    MultipathGo,
    /// C again, with a listener and a thread for each CPU that polls it without ever blocking.
    Spinning,
}

/// A compiled server; goes with its files.
#[derive(Debug)]
pub struct Program {
    home: Home,
}

impl Program {
    /// Compiles it, without the network.
    pub fn build(language: Language) -> Self {
        let home = Home::new(None);
        let mut compiler = match language {
            Language::C => gcc(&home, include_str!("textbook.c")),
            Language::Spinning => gcc(&home, include_str!("spinning.c")),
            Language::Go => go(&home, include_str!("plain.go")),
            Language::MultipathGo => go(&home, include_str!("mptcp.go")),
        };
        must(compiler.current_dir(home.path()));
        Self { home }
    }

    /// Where it is.
    pub fn path(&self) -> String {
        self.home.text("server")
    }
}

fn go(home: &Home, text: &str) -> Command {
    let source = home.write("server.go", text);
    let mut go = process::command("go");
    go.args(["build", "-o", "server"]).arg(source);
    // A single file of the standard library's only: no module, no network.
    go.env("GO111MODULE", "off").env("CGO_ENABLED", "0").env("GOFLAGS", "");
    go.env("GOCACHE", home.path().join("cache"));
    go
}

fn gcc(home: &Home, text: &str) -> Command {
    let source = home.write("server.c", text);
    let mut gcc = process::command("gcc");
    gcc.args(["-O2", "-pthread", "-Wall", "-Werror", "-o", "server"]).arg(source);
    gcc
}

/// A running one; it answers with its pid, unless told otherwise.
#[derive(Debug)]
pub struct Compiled {
    server: Server,
}

impl Compiled {
    /// Starts it on 0.0.0.0:`port` in `netns`, all its threads bound to `cpu`.
    pub fn start(netns: &Netns, program: &Program, port: u16, cpu: u32) -> Self {
        let what = Become { cpu: Some(cpu), ..Become::default() };
        let mut command = command(netns, program.path(), what);
        command.arg(port.to_string());
        Self::run(&mut command)
    }

    /// Starts a [`Language::Spinning`] one with a thread for each of `cpus`; the thread that served
    /// answers with its id.
    pub fn spinning(netns: &Netns, program: &Program, port: u16, cpus: &[u32]) -> Self {
        let mut command = command(netns, program.path(), Become::default());
        command.arg(port.to_string()).args(cpus.iter().map(u32::to_string));
        Self::run(&mut command)
    }

    fn run(command: &mut Command) -> Self {
        let home = Home::new(None);
        let log = home.log();
        let ready = |_| std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"));
        let server = Server::start("server", home, command, libc::SIGTERM, ready);
        Self { server }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }
}
