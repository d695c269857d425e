//! PostgreSQL: a cluster of the test's own.

use std::fs;
use std::path::PathBuf;

use crate::netns::Netns;
use crate::process::{capture, must};
use crate::servers::{Home, Server, command, user};
use crate::sys::Become;

/// A running PostgreSQL: superuser `postgres`, everybody trusted, nothing synced to disk.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    port: u16,
}

impl Postgres {
    /// Makes a cluster and starts it on 127.0.0.1 in `netns`.
    pub fn start(netns: &Netns, port: u16) -> Self {
        let owner = user("postgres");
        let home = Home::new(Some(owner));
        let data = home.path().join("data");
        let what = Become { user: Some(owner), ..Become::default() };
        let program = |name: &str| {
            let mut command = command(netns, binaries().join(name), what);
            command.current_dir(home.path());
            command
        };
        must(
            program("initdb")
                .args(["--no-sync", "--auth=trust", "--username=postgres", "--locale=C"])
                .args(["--encoding=UTF8", "-D"])
                .arg(&data),
        );
        let mut command = program("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(home.path());
        let port_setting = format!("port={port}");
        let settings = [
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "autovacuum=off",
            "listen_addresses=127.0.0.1",
            "max_connections=200",
            "shared_buffers=32MB",
            &port_setting,
        ];
        for setting in settings {
            command.args(["-c", setting]);
        }
        let ready = |_| {
            let mut probe = netns.command(binaries().join("pg_isready"));
            probe.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
            let (status, _, _) = capture(&mut probe, std::time::Duration::from_secs(10));
            status.is_some_and(|status| status.success())
        };
        // SIGINT is PostgreSQL's fast shutdown.
        let server = Server::start("postgres", home, &mut command, libc::SIGINT, ready);
        Self { server, port }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }
}

/// Runs one statement through psql on a port of 127.0.0.1 in `netns`; unaligned rows without
/// header.
pub fn psql(netns: &Netns, port: u16, statement: &str) -> String {
    let mut command = netns.command(binaries().join("psql"));
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-XAtq"]);
    must(command.args(["-p", &port.to_string(), "-c", statement])).trim().to_owned()
}

/// The newest installed version's directory of programs.
pub fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .expect("PostgreSQL is not installed below /usr/lib/postgresql");
    format!("/usr/lib/postgresql/{newest}/bin").into()
}
