//! Real servers, each in a namespace that the test gives it, with a directory of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::netns::Netns;
use crate::process::{Reaped, children};
use crate::sys::Become;
use crate::{eventually, sys};

mod compiled;
mod gunicorn;
mod haproxy;
mod nginx;
mod pgbouncer;
pub mod postgres;
mod prefork;
mod script;

pub use compiled::{Compiled, Language, Program};
pub use gunicorn::{Application, Gunicorn};
pub use haproxy::Haproxy;
pub use nginx::{Nginx, NginxDaemon};
pub use pgbouncer::{PgBouncer, PgBouncers};
pub use postgres::Postgres;
pub use prefork::{Prefork, Sharing};
pub use script::Script;

/// A directory for a server: its configuration, its sockets, its log.
#[derive(Debug)]
pub(crate) struct Home(TempDir);

impl Home {
    /// Made for `user`, readable for all.
    pub(crate) fn new(user: Option<(u32, u32)>) -> Self {
        let directory = TempDir::with_prefix("reuseport-test-").expect("a temporary directory");
        let path = directory.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        if let Some((uid, gid)) = user {
            chown(path, Some(uid), Some(gid)).expect("chown");
        }
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file into it.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("write {name}: {error}"));
        path
    }

    /// A path in it, as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path().join(name).into_os_string().into_string().expect("a path of ours is text")
    }

    fn log(&self) -> PathBuf {
        self.path().join("log")
    }
}

/// The command that starts a server. Should the test die, the server is asked to end, so that it
/// takes its children along.
pub(crate) fn command(netns: &Netns, program: impl AsRef<OsStr>, what: Become) -> Command {
    netns.command_as(program, Become { orphaned: Some(libc::SIGTERM), ..what })
}

/// A running server: the process we started, which may have children of its own.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    stop: i32,
    process: Reaped,
    home: Home,
}

impl Server {
    /// Starts it as leader of a process group, its output going to a log, and waits for `ready`.
    /// `stop` is the signal that makes it leave quickly.
    pub(crate) fn start(
        name: &'static str,
        home: Home,
        command: &mut Command,
        stop: i32,
        mut ready: impl FnMut(u32) -> bool,
    ) -> Self {
        let log = File::create(home.log()).expect("create a log");
        command.process_group(0).stdout(log.try_clone().expect("dup a log")).stderr(log);
        let process = command.spawn().unwrap_or_else(|error| {
            panic!("start {name}: {error} (`cargo xtask test` installs what is missing)")
        });
        let mut server = Self { name, stop, process: Reaped(process), home };
        let mut alive = true;
        let up = eventually(Duration::from_secs(30), || {
            alive = server.process.alive();
            !alive || ready(server.process.pid())
        });
        // Its log is shown on drop.
        assert!(alive, "{name} ended while starting");
        assert!(up, "{name} is not ready after 30 s");
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    /// Its process's children, ascending.
    pub(crate) fn children(&self) -> Vec<u32> {
        children(self.pid())
    }

    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(self.home.log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Server {
    #[expect(clippy::print_stderr, reason = "the log of a server explains a failed test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("--- log of {} (pid {})\n{tail}\n---", self.name, self.pid());
        }
        let family = self.children();
        if self.process.alive() {
            drop(sys::kill(self.pid(), self.stop));
        }
        let left = self.process.wait(Duration::from_secs(5)).is_some()
            && eventually(Duration::from_secs(2), || {
                family.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
            });
        if !left {
            drop(sys::kill_group(self.pid()));
        }
    }
}

/// User and group id of a user of this machine.
pub(crate) fn user(name: &str) -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let entry = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entry.into_iter().find(|fields| fields.first() == Some(&name) && fields.len() > 3);
    let fields = entry.unwrap_or_else(|| panic!("no user {name}: is its package installed?"));
    let number = |text: &str| text.parse().expect("a number in /etc/passwd");
    (number(fields[2]), number(fields[3]))
}
