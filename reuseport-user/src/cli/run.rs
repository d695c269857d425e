//! `run`.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use super::args::{CommonArgs, CpuOrder, RungArg, duration};
use super::output::{list, table, to_json};
use crate::discover::{NetnsChoice, Target};
use crate::launch::{self, LaunchOptions, Place, Seat, Template, Workers, guard};

/// Start copies of a program, one per CPU, steer them, and keep them running
///
/// Each copy is bound to its CPU before it starts, and listens with SO_REUSEPORT on the port (or
/// takes a listener that is opened for it: --listen). Once all listen, they are steered. A copy that
/// dies is started again; SIGHUP replaces one copy after the other without losing a connection;
/// SIGTERM, SIGINT and SIGQUIT end all of them; SIGUSR1 and SIGUSR2 are passed on. Copies never outlive
/// this command. Signals go to the program itself: let a script `exec` its server. Arguments may hold
/// %i (the worker's number from 0), %c (its CPU) and %% (a percent sign); WORKER_INDEX and WORKER_CPU
/// are in the environment.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer run --port 6432 --workers per-core -- pgbouncer -u postgres /etc/pgbouncer/%i.ini
  reuseport-steer run --port 6432 --workers 4 --place sibling --dry-run -- pgbouncer -u postgres %i.ini
  reuseport-steer run --port 8000 --cpus 2,3 -- gunicorn --reuse-port --bind :8000 app
  reuseport-steer run --listen 0.0.0.0:3000 --workers per-cpu -- node server.js")]
#[command(group = clap::ArgGroup::new("where").required(true).args(["port", "listen"]))]
pub(super) struct Args {
    /// Port that each copy opens a listener on, with SO_REUSEPORT
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Open a listener for each copy here, and hand it over as descriptor 3 (LISTEN_FDS, as systemd
    /// does), for programs that take one but do not set SO_REUSEPORT
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Only the listeners on this local address count (repeatable); without it all on the port
    #[arg(short, long, value_name = "IP", conflicts_with = "listen")]
    addr: Vec<IpAddr>,
    /// How many copies: per-core (one on each physical core, whatever --place says), per-cpu (one for
    /// each hardware thread), or a number
    #[arg(short, long, value_name = "COUNT", default_value = "per-core")]
    workers: Count,
    /// Which CPUs are taken first
    #[arg(long, value_enum, default_value_t = PlaceArg::Core)]
    place: PlaceArg,
    /// One copy on each of these CPUs, in this order
    #[arg(long, value_name = "CPUS", conflicts_with_all = ["workers", "place"])]
    cpus: Option<CpuOrder>,
    /// Print which CPU each copy would get, and start nothing
    #[arg(long)]
    dry_run: bool,
    /// Longest from a copy's start to its listening
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    listen_timeout: Duration,
    /// Longest that a copy that is being replaced keeps its connections
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    drain_timeout: Duration,
    /// Longest from SIGTERM to SIGKILL
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    stop_timeout: Duration,
    /// Restarts of one worker in a row, none of which lasted 10 s, before all is given up
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    max_restarts: u32,
    /// The mechanism; auto takes the best that is permitted and fits, and says why not a better one
    #[arg(long, value_enum, default_value_t = RungArg::Ebpf)]
    rung: RungArg,
    #[command(flatten)]
    common: CommonArgs,
    /// Program and arguments of each copy
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// `--workers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    PerCore,
    PerCpu,
    Number(u32),
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "per-core" => Ok(Self::PerCore),
            "per-cpu" => Ok(Self::PerCpu),
            _ => text.parse().map(Self::Number).map_err(|_not_a_number| {
                format!("`{text}` is neither per-core nor per-cpu nor a number")
            }),
        }
    }
}

/// `--place`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PlaceArg {
    /// A physical core for each copy, before any core gets a second one
    Core,
    /// All hardware threads of a core, before the next core
    Sibling,
    /// All cores of a last-level cache, before the next cache
    SameLlc,
}

impl From<PlaceArg> for Place {
    fn from(arg: PlaceArg) -> Self {
        match arg {
            PlaceArg::Core => Self::Core,
            PlaceArg::Sibling => Self::Sibling,
            PlaceArg::SameLlc => Self::SameLlc,
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_neither| format!("`{text}` is not IP:PORT ([IP]:PORT for IPv6)"))?;
    if address.port() == 0 { Err("port 0 is none to listen on".to_owned()) } else { Ok(address) }
}

impl Args {
    fn workers(&self) -> Workers {
        match (&self.cpus, self.workers) {
            (Some(cpus), _) => Workers::On(cpus.0.clone()),
            (None, Count::PerCore) => Workers::PerCore,
            (None, Count::PerCpu) => Workers::PerCpu,
            (None, Count::Number(count)) => Workers::Count(count),
        }
    }

    fn options(&self) -> Result<LaunchOptions> {
        let port = self.port.or(self.listen.map(|address| address.port())).unwrap_or_default();
        let addrs = self.listen.map_or_else(|| self.addr.clone(), |address| vec![address.ip()]);
        // Our own namespace: that is where the copies are started.
        let netns = NetnsChoice::Pid(std::process::id());
        Ok(LaunchOptions {
            target: Target { addrs, netns, ..Target::tcp(port) },
            listen: self.listen,
            rung: self.rung.into(),
            command: Template::new(self.command.clone()).map_err(launch::LaunchError::from)?,
            listen_timeout: self.listen_timeout,
            drain_timeout: self.drain_timeout,
            stop_timeout: self.stop_timeout,
            max_restarts: self.max_restarts,
            settings: self.common.settings(),
        })
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let options = args.options()?;
    let seats = launch::seats(&args.workers(), args.place.into())?;
    let shown = show(&seats, args.common.json);
    if args.dry_run {
        return shown;
    }
    // That nobody reads it keeps nobody from serving.
    drop(shown);
    Ok(launch::run(&options, &seats)?)
}

pub(super) fn guard() -> Result<()> {
    Ok(guard::run()?)
}

fn show(seats: &[Seat], json: bool) -> Result<()> {
    let mut out = super::stdout();
    if json {
        return to_json(&mut out, &seats);
    }
    let line = |seat: &Seat| {
        vec![
            seat.worker.to_string(),
            seat.cpu.to_string(),
            seat.core.to_string(),
            seat.llc.to_string(),
            seat.node.to_string(),
            list(&seat.core_shared_with),
        ]
    };
    let heads = ["WORKER", "CPU", "CORE", "LLC", "NODE", "SHARES CORE WITH"];
    Ok(table(&mut out, &heads, seats.iter().map(line).collect())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_or_refused() {
        assert_eq!("per-core".parse(), Ok(Count::PerCore));
        assert_eq!("per-cpu".parse(), Ok(Count::PerCpu));
        assert_eq!("0".parse(), Ok(Count::Number(0)));
        for text in ["", "-1", "1.5", "all", "99999999999"] {
            assert!(text.parse::<Count>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_are_read_or_refused() {
        assert_eq!(address("127.0.0.1:80"), Ok("127.0.0.1:80".parse().unwrap()));
        assert_eq!(address("[::1]:80").unwrap().port(), 80);
        for text in
            ["", "80", ":80", "localhost:80", "1.2.3.4", "1.2.3.4:0", "::1:80x", "1.2.3.4:70000"]
        {
            assert!(address(text).is_err(), "{text:?}");
        }
    }
}
