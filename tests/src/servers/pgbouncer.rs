//! PgBouncer: one process, one listener, which it shares a port with by `so_reuseport`.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::netns::Netns;
use crate::servers::postgres::{Postgres, psql};
use crate::servers::{Home, Server, command, user};
use crate::sys::Become;

/// A running PgBouncer. Whoever connects through instance `i` is user `bouncer<i>` in PostgreSQL:
/// `SELECT current_user` says which instance served.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
    name: String,
}

impl PgBouncer {
    /// Starts instance `index` on 0.0.0.0:`port` in `netns`, bound to `cpu` if given, as user
    /// `postgres`, in front of `postgres`.
    pub fn start(
        netns: &Netns,
        postgres: &Postgres,
        index: u32,
        port: u16,
        cpu: Option<u32>,
    ) -> Self {
        Self::start_with(netns, postgres, index, port, cpu, "pool_mode = session\n")
    }

    /// [`PgBouncer::start`], with further lines of configuration.
    pub fn start_with(
        netns: &Netns,
        postgres: &Postgres,
        index: u32,
        port: u16,
        cpu: Option<u32>,
        settings: &str,
    ) -> Self {
        let owner = user("postgres");
        let home = Home::new(Some(owner));
        let text = configuration(netns, postgres, index, port, settings);
        let configuration = home.write("pgbouncer.ini", &text);
        let what = Become { user: Some(owner), cpu, ..Become::default() };
        let mut command = command(netns, "pgbouncer", what);
        command.arg(&configuration).current_dir(home.path());
        // A connection would go to any instance of the port: its own log tells.
        let log = home.log();
        let up = |_| std::fs::read_to_string(&log).is_ok_and(|text| text.contains("process up"));
        // SIGTERM waits for clients in newer versions, SIGQUIT never does.
        let server = Server::start("pgbouncer", home, &mut command, libc::SIGQUIT, up);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        netns
            .run_in(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)))
            .unwrap_or_else(|error| panic!("pgbouncer does not answer on {address}: {error}"));
        Self { server, name: name(index) }
    }

    /// Instances 0, 1, ... on one port, each bound to one of `cpus`.
    pub fn one_per_cpu(netns: &Netns, postgres: &Postgres, port: u16, cpus: &[u32]) -> Vec<Self> {
        (0..)
            .zip(cpus)
            .map(|(index, &cpu)| Self::start(netns, postgres, index, port, Some(cpu)))
            .collect()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Its user in PostgreSQL.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Clients it has let in so far, by its log.
    pub fn logins(&self) -> usize {
        self.server.log().matches("login attempt").count()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Sends it a signal: SIGKILL for a crash, SIGSTOP for a hang.
    pub fn signal(&self, signal: i32) {
        self.server.signal(signal);
    }
}

/// Configurations `0.ini`, `1.ini`, ... of instances that somebody else starts, as root: with
/// `-u postgres`.
#[derive(Debug)]
pub struct PgBouncers {
    home: Home,
}

impl PgBouncers {
    /// Writes `count` of them, for 0.0.0.0:`port`, in front of `postgres`.
    pub fn configure(netns: &Netns, postgres: &Postgres, port: u16, count: u32) -> Self {
        let home = Home::new(Some(user("postgres")));
        for index in 0..count {
            let text = configuration(netns, postgres, index, port, "pool_mode = session\n");
            home.write(&format!("{index}.ini"), &text);
        }
        Self { home }
    }

    /// Where they are, for the launcher to fill in.
    pub fn path(&self) -> String {
        self.home.text("%i.ini")
    }
}

fn name(index: u32) -> String {
    format!("bouncer{index}")
}

/// Whoever connects through this instance is a user of its own in PostgreSQL.
fn configuration(
    netns: &Netns,
    postgres: &Postgres,
    index: u32,
    port: u16,
    settings: &str,
) -> String {
    let (name, backend) = (name(index), postgres.port());
    let role = format!(
        "DO $$ BEGIN CREATE ROLE {name} SUPERUSER LOGIN; \
         EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    );
    psql(netns, backend, &role);
    format!(
        "[databases]\n\
         * = host=127.0.0.1 port={backend} dbname=postgres user={name}\n\
         [pgbouncer]\n\
         listen_addr = 0.0.0.0\n\
         listen_port = {port}\n\
         so_reuseport = 1\n\
         unix_socket_dir =\n\
         auth_type = any\n\
         default_pool_size = 20\n\
         max_client_conn = 1000\n\
         ignore_startup_parameters = extra_float_digits\n\
         {settings}"
    )
}
