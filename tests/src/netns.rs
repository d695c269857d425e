//! A network namespace of a test's own.
//!
//! It has no name and no mount: an open descriptor is all that keeps it, so it goes with the test
//! even when the test is killed. `/proc/PID/fd/N` is a path for `--netns` and for iproute2.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use crate::process::{self, must};
use crate::require;
use crate::sys::{self, Become};
use crate::turn::Turn;

/// An empty network namespace with `lo` up for v4 and v6.
#[derive(Debug)]
pub struct Netns {
    file: File,
    _turn: Turn,
}

impl Netns {
    /// Makes one. Needs root.
    #[expect(clippy::new_without_default, reason = "makes a kernel object")]
    pub fn new() -> Self {
        require::root();
        let turn = Turn::shared();
        let make = || {
            sys::unshare_net().expect("unshare(CLONE_NEWNET)");
            File::open("/proc/thread-self/ns/net").expect("open the new namespace")
        };
        let file = thread::spawn(make).join().expect("a thread for the namespace");
        let netns = Self { file, _turn: turn };
        must(netns.command("ip").args(["link", "set", "lo", "up"]));
        netns
    }

    /// The one that a process lives in.
    pub fn of(pid: u32) -> Self {
        let turn = Turn::shared();
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).unwrap_or_else(|error| panic!("open {path}: {error}"));
        Self { file, _turn: turn }
    }

    /// A path that opens it, for this process's children and for iproute2.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Its inode, as `ls -l /proc/PID/ns/net` shows it.
    pub fn inode(&self) -> u64 {
        self.file.metadata().expect("stat a namespace").ino()
    }

    /// Its `SO_NETNS_COOKIE`.
    pub fn cookie(&self) -> u64 {
        self.run_in(|| {
            let socket = sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0).expect("a socket");
            sys::netns_cookie(socket.as_fd()).expect("SO_NETNS_COOKIE")
        })
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_as(program, Become::default())
    }

    /// A command that will run inside, on a CPU or as a user. Spawn it while the namespace lives,
    /// on a thread that outlives the child.
    pub fn command_as(&self, program: impl AsRef<OsStr>, what: Become) -> Command {
        let mut command = process::command(program);
        sys::on_spawn(&mut command, Become { netns: Some(self.file.as_raw_fd()), ..what });
        command
    }

    /// Runs a program inside that must succeed; its standard output.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        must(self.command(program).args(args))
    }

    /// Runs `work` on a thread inside and returns its result; its panic is ours.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            sys::enter_netns(&self.file).expect("setns");
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Its file, for a thread that enters by itself.
    pub fn file(&self) -> File {
        self.file.try_clone().expect("dup a namespace")
    }

    /// Sets a sysctl inside, by its path below `/proc/sys`: `net/ipv4/tcp_syncookies`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = PathBuf::from("/proc/sys").join(name);
        self.run_in(|| std::fs::write(&path, value))
            .unwrap_or_else(|error| panic!("sysctl {name}={value}: {error}"));
    }

    /// Joins two namespaces by a veth pair, both ends called `veth0`: 10.0.0.1 and fd00::1 here,
    /// 10.0.0.2 and fd00::2 there.
    pub fn veth(&self, peer: &Self) {
        let there = peer.path();
        let there = there.to_str().expect("a path of ours is text");
        self.run(
            "ip",
            &["link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", there],
        );
        for (netns, host) in [(self, 1), (peer, 2)] {
            let (v4, v6) = (format!("10.0.0.{host}/24"), format!("fd00::{host}/64"));
            netns.run("ip", &["address", "add", &v4, "dev", "veth0"]);
            netns.run("ip", &["address", "add", &v6, "dev", "veth0", "nodad"]);
            netns.run("ip", &["link", "set", "veth0", "up"]);
        }
    }
}
