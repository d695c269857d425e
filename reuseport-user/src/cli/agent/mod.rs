//! `agent`.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{ArgGroup, ValueEnum};
use sd_notify::NotifyState;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tracing_subscriber::filter::LevelFilter;

use super::args::{CommonArgs, PolicyArg, RungArg, WhereArgs, duration};
use super::output::to_json;
use crate::agent::{Agent, AgentOptions, Goal, Order, Shared, Stage, Supervisor, Waker};
use crate::discover::DiscoverError;
use crate::observe::Snapshot;
use crate::observe::http::{Endpoint, ServeError, Server};
use crate::steer::{AttachOptions, SteerError};
use crate::topology::Topology;

mod config;

pub(super) use config::ConfigError;

const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);
const GENERATION_TIMEOUT: Duration = Duration::from_mins(1);

/// Keep ports steered while workers come, go, move and die
///
/// Attaches when a group appears and keeps its mapping right until it is stopped: dead workers are
/// steered around, new ones get their rows, a newer generation takes over from the older one, and a
/// group that was restarted is attached again. Steering does not depend on it: it goes on if the
/// agent is killed, and the next one takes over. What is detached by hand stays detached.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer agent --port 6432
  reuseport-steer agent --port 6432 --metrics 127.0.0.1:9464
  reuseport-steer agent --port 80 --port 443 --log-format json
  reuseport-steer agent --port 6432 --netns /run/netns/blue --detach-on-exit
  reuseport-steer agent --config /etc/reuseport-steer.toml --check

Signals:
  TERM, INT  end after the tick that runs; the ports stay steered (but see --detach-on-exit), and
             workers that were steered around get their connections back: nobody would do it later
  HUP        read --config again; a file that is wrong changes nothing

Configuration (--config), every setting but `port` optional:
  reconcile-interval = \"1s\"
  generation-timeout = \"60s\"
  detach-on-exit = false
  spill = \"on\"
  widen = \"auto\"
  [[target]]
  port = 6432
  addr = [\"10.0.0.5\"]
  netns = \"/run/netns/blue\"
  udp = false
  policy = \"cpu\"
  rung = \"auto\"
  [[target.worker]]       # where it cannot be seen on which CPUs a worker runs
  name = \"web-0\"
  cpus = \"0-1\"")]
#[command(group(ArgGroup::new("what").args(["port", "config"]).required(true)))]
pub(super) struct Args {
    /// Port that listeners share (repeatable)
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Vec<u16>,
    #[command(flatten)]
    place: WhereArgs,
    /// What decides where a connection goes
    #[arg(long, value_enum, default_value_t = PolicyArg::Cpu)]
    policy: PolicyArg,
    /// The mechanism; auto takes the best that is permitted and fits
    #[arg(long, value_enum, default_value_t = RungArg::Auto)]
    rung: RungArg,
    /// How often to look when nothing happens
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    reconcile_interval: Duration,
    /// How long a newer generation of workers may take to replace the older one, which stands by
    /// meanwhile; one that still listens then is an additional worker
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    generation_timeout: Duration,
    /// Give the ports back to the kernel's hash at the end; without it they stay steered
    #[arg(long)]
    detach_on_exit: bool,
    /// Read targets and settings from this TOML file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["addr", "pid", "netns", "udp", "policy", "rung", "reconcile_interval", "generation_timeout", "detach_on_exit", "spill", "widen"])]
    config: Option<PathBuf>,
    /// Say whether the configuration is right, and change nothing
    #[arg(long)]
    check: bool,
    /// Serve metrics for Prometheus (/metrics) and for `top` (/state) here: 127.0.0.1:9464,
    /// unix:/run/reuseport-steer.sock
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<Endpoint>,
    /// Let --metrics listen where other machines can reach it: there is no encryption or password
    #[arg(long, requires = "metrics")]
    metrics_remote: bool,
    /// Whether a worker that does not accept is steered around until it does
    #[arg(long, value_enum, default_value_t = SpillArg::On)]
    spill: SpillArg,
    /// Whether a CPU's connections are shared by all workers while they overload its own and others
    /// idle; takes `--spill on`
    #[arg(long, value_enum, default_value_t = WidenArg::Auto)]
    widen: WidenArg,
    /// How log lines look; --json is short for json
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    #[command(flatten)]
    common: CommonArgs,
}

/// `--spill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SpillArg {
    /// Within 100 ms, and back when it is well
    On,
    /// Never
    Off,
}

/// `--widen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WidenArg {
    /// Where and while it helps
    Auto,
    /// Never
    Off,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// A line of text
    Human,
    /// A JSON object per line
    Json,
}

impl Args {
    fn options(&self) -> Result<AgentOptions> {
        let settings = self.common.settings();
        if let Some(path) = &self.config {
            let possible = Topology::read().map_err(SteerError::from)?.possible();
            return Ok(config::read(path, &settings, &possible)?);
        }
        let goal = |&port: &u16| Goal {
            attach: AttachOptions {
                policy: self.policy.into(),
                rung: self.rung.into(),
                settings: settings.clone(),
                ..AttachOptions::new(self.place.target(port))
            },
            workers: Vec::new(),
        };
        let mut ports = self.port.clone();
        ports.sort_unstable();
        ports.dedup();
        Ok(AgentOptions {
            goals: ports.iter().map(goal).collect(),
            interval: self.reconcile_interval,
            generation_timeout: self.generation_timeout,
            detach_on_exit: self.detach_on_exit,
            spill: self.spill == SpillArg::On,
            widen: self.widen == WidenArg::Auto,
        })
    }

    /// Serves what the agent knows, where asked to, for as long as the result lives.
    fn serve(&self, shared: Arc<Shared>) -> Result<Option<Server>, ServeError> {
        let Some(endpoint) = self.metrics.clone() else { return Ok(None) };
        // The guard of the state lives for the copy alone.
        let look = move || {
            let state = shared.state().clone();
            Snapshot::of_agent(&shared.targets(), state)
        };
        let server = Server::start(endpoint.clone(), self.metrics_remote, look)?;
        tracing::info!("metrics on {endpoint}");
        Ok(Some(server))
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let options = args.options()?;
    if args.check {
        let checked = Checked { targets: options.goals.len() };
        let mut out = super::stdout();
        if args.common.json {
            return to_json(&mut out, &checked);
        }
        writeln!(out, "the configuration is right: {} target(s)", checked.targets)?;
        return Ok(());
    }
    start_log(if args.common.json { LogFormat::Json } else { args.log_format });
    let agent = Agent::new(options).map_err(DiscoverError::from).map_err(SteerError::from)?;
    let _server = args.serve(agent.shared())?;
    let mut process = Process::new(args, &agent.shared().waker).context("handle signals")?;
    Ok(agent.run(&mut process)?)
}

/// A configuration that is right.
#[derive(Serialize)]
struct Checked {
    targets: usize,
}

/// This process, as the agent's supervisor: signals order, systemd is told.
struct Process<'a> {
    args: &'a Args,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    /// Half of what systemd waits until it takes the agent for dead.
    patience: Option<Duration>,
}

impl<'a> Process<'a> {
    fn new(args: &'a Args, waker: &Waker) -> io::Result<Self> {
        let [stop, reload] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        for (signal, flag) in [(SIGTERM, &stop), (SIGINT, &stop), (SIGHUP, &reload)] {
            signal_hook::flag::register(signal, Arc::clone(flag))?;
            // After the flag: actions run in the order of their registration.
            signal_hook::low_level::pipe::register(signal, waker.socket()?)?;
        }
        let patience = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        Ok(Self { args, stop, reload, patience })
    }
}

impl Supervisor for Process<'_> {
    fn order(&mut self) -> Option<Order> {
        if self.stop.load(Ordering::Relaxed) {
            return Some(Order::Stop);
        }
        self.reload.swap(false, Ordering::Relaxed).then_some(Order::Reload)
    }

    fn reload(&mut self) -> Result<AgentOptions, String> {
        self.args.options().map_err(|error| super::message(&error))
    }

    fn tell(&mut self, stage: Stage) {
        let now = NotifyState::monotonic_usec_now();
        let states = match stage {
            Stage::Ready => vec![NotifyState::Ready],
            Stage::Alive if self.patience.is_none() => return,
            Stage::Alive => vec![NotifyState::Watchdog],
            Stage::Reloading => std::iter::once(NotifyState::Reloading).chain(now.ok()).collect(),
            Stage::Stopping => vec![NotifyState::Stopping],
        };
        // Nobody need listen; and who does not is no reason to stop.
        let _nobody_listens = sd_notify::notify(&states);
    }

    fn patience(&self) -> Option<Duration> {
        self.patience
    }
}

/// One line per decision, to standard error.
fn start_log(format: LogFormat) {
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(LevelFilter::INFO)
        .with_target(false);
    match format {
        LogFormat::Human => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
