//! `reuseport-steer demo`: what steering changes on this machine, shown on a group of its own.
//!
//! Worker processes, one per CPU, listen on one loopback port; client threads on the same CPUs
//! connect to it; steering goes off and on in interleaved rounds; a [`Report`] says what was seen,
//! with its spread. However it ends, steering is off and the workers are gone. Times are in
//! microseconds where people read them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::time::Duration;

use crate::measure::draw_seed;
use crate::model::{Cpu, CpuSet, Pid};

mod group;
pub mod load;
mod matrix;
mod protocol;
mod report;
mod rounds;
#[cfg(test)]
mod tests;
pub mod worker;

pub use group::WorkerCommand;
pub use load::LoadError;
pub use matrix::Matrix;
pub use report::{Pair, Report, Sample, Summary};

/// Whatever a [`Steering`] reports.
pub type SteeringError = Box<dyn std::error::Error + Send + Sync>;

/// The mechanism that the demo switches on and off.
///
/// Neither method is called within an async runtime, and a call must have taken effect when it
/// returns. An `on` that fails leaves nothing behind; `off` is called once after each `on` that did
/// not fail, while the workers still listen (but for one that died).
pub trait Steering {
    /// Steers the listeners on the loopback `port` by receiving CPU.
    fn on(&mut self, port: u16) -> Result<(), SteeringError>;
    /// Gives them back to the kernel's hash.
    fn off(&mut self, port: u16) -> Result<(), SteeringError>;
}

/// What is switched.
enum Mechanism<'a> {
    Steering(&'a mut dyn Steering),
    /// The kernel's own option, set by the workers.
    IncomingCpu,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Pairs of rounds.
    pub rounds: u32,
    /// Measured time of each round; a pair has two.
    pub duration: Duration,
    /// Full load before each measured time.
    pub warmup: Duration,
    /// Most workers, and most CPUs that the load comes from.
    pub most_workers: usize,
    /// Client threads per CPU, each with one connection at a time.
    pub connections_per_cpu: usize,
    /// What the order within the pairs follows from; `None` draws one.
    pub seed: Option<u64>,
    /// Show a progress bar if standard error is a terminal.
    pub progress: bool,
    /// How to start a worker.
    pub worker: WorkerCommand,
}

impl Default for DemoOptions {
    /// 24 seconds of rounds.
    fn default() -> Self {
        Self {
            rounds: 10,
            duration: Duration::from_secs(1),
            warmup: Duration::from_millis(200),
            most_workers: 8,
            connections_per_cpu: 4,
            seed: None,
            progress: true,
            worker: WorkerCommand::default(),
        }
    }
}

/// Rounds, seconds and connections that a demo may have.
const MOST_ROUNDS: u32 = 1000;
const DURATIONS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_mins(1);
const MOST_CONNECTIONS: usize = 256;

/// Why there is no report. Steering is off and the workers are gone all the same, unless the
/// variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// `--rounds` out of range.
    #[error("{0} rounds: expected 1 to {MOST_ROUNDS}")]
    Rounds(u32),
    /// `--seconds` out of range.
    #[error("rounds of {0:?}: expected {low:?} to {high:?}", low = DURATIONS.start(), high = DURATIONS.end())]
    Duration(Duration),
    /// Connections per CPU out of range.
    #[error("{0} connections per CPU: expected 1 to {MOST_CONNECTIONS}")]
    Connections(usize),
    /// Nothing to choose between.
    #[error(
        "the demo needs two CPUs and may use {}: with one, every connection is local already \
         (see `taskset -p` and the cpuset of this process)",
        if .0.is_empty() { "none".to_owned() } else { format!("only CPU {}", .0) }
    )]
    TooFewCpus(CpuSet),
    /// The demo's own runtime.
    #[error("cannot {operation}: {source}{}", limit_hint(source))]
    Runtime {
        /// What was tried.
        operation: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// No free port.
    #[error("cannot find a free port on 127.0.0.1: {0}{hint}", hint = limit_hint(.0))]
    Port(#[source] io::Error),
    /// Each port was free, and taken when the workers came.
    #[error(
        "{0} free ports of 127.0.0.1 were taken by others before the workers could listen; try again"
    )]
    PortsTaken(usize),
    /// No worker process.
    #[error("cannot start the worker for CPU {cpu}: {source}{}", limit_hint(source))]
    Spawn {
        /// The CPU it was for.
        cpu: Cpu,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A worker said why it cannot go on.
    #[error("the worker on CPU {cpu} (pid {pid}) failed: {message}")]
    WorkerFailed {
        /// Its CPU.
        cpu: Cpu,
        /// Its process.
        pid: Pid,
        /// What it said.
        message: String,
    },
    /// A worker ended without a word.
    #[error(
        "the worker on CPU {cpu} (pid {pid}) ended in the middle of the demo: {}",
        status.map_or_else(|| "status unknown".to_owned(), |status| status.to_string())
    )]
    WorkerDied {
        /// Its CPU.
        cpu: Cpu,
        /// Its process.
        pid: Pid,
        /// How it ended.
        status: Option<ExitStatus>,
    },
    /// A worker hangs.
    #[error("the worker on CPU {cpu} (pid {pid}) did not answer within {limit:?}")]
    WorkerSilent {
        /// Its CPU.
        cpu: Cpu,
        /// Its process.
        pid: Pid,
        /// How long it had.
        limit: Duration,
    },
    /// A worker of another version, or no worker at all.
    #[error("the worker on CPU {cpu} (pid {pid}) answered `{line}`, which is not what was asked")]
    WorkerSpeech {
        /// Its CPU.
        cpu: Cpu,
        /// Its process.
        pid: Pid,
        /// What it said.
        line: String,
    },
    /// The load could not be made.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A whole round without a reply.
    #[error("no connection to {address} was answered in a whole round: {}", list(errors))]
    NoConnections {
        /// Where to.
        address: SocketAddr,
        /// Failures and how many.
        errors: BTreeMap<String, u64>,
    },
    /// Steering failed to start.
    #[error("cannot steer the demo's port {port}: {source}")]
    SteeringOn {
        /// The port.
        port: u16,
        /// Why.
        source: SteeringError,
    },
    /// Steering failed to end. It ends with the workers; its pins may be left.
    #[error("cannot stop steering the demo's port {port}: {source}")]
    SteeringOff {
        /// The port.
        port: u16,
        /// Why.
        source: SteeringError,
    },
    /// Something failed, and then steering could not be stopped. It ends with the workers; its
    /// pins may be left.
    #[error("{first}; and then: {then}")]
    Left {
        /// What failed.
        #[source]
        first: Box<Self>,
        /// [`DemoError::SteeringOff`].
        then: Box<Self>,
    },
    /// A signal.
    #[error("ended by {0}")]
    Interrupted(&'static str),
}

/// What to do about the limits and the set-up that most often stand in the way.
fn limit_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => " (raise RLIMIT_NOFILE: `ulimit -n`)",
        Some(libc::EAGAIN) => " (see RLIMIT_NPROC, `ulimit -u`, and the cgroup's pids.max)",
        Some(libc::ENETUNREACH) => " (bring the loopback up: `ip link set lo up`)",
        _ => "",
    }
}

/// `12 x connect: Connection refused, 1 x ...`
fn list(errors: &BTreeMap<String, u64>) -> String {
    let each: Vec<String> =
        errors.iter().map(|(error, count)| format!("{count} x {error}")).collect();
    if each.is_empty() { "all were too slow".to_owned() } else { each.join(", ") }
}

/// Runs the demo with `steering`, which is tried before the first round, so that what forbids it
/// is told at once.
///
/// SIGINT, SIGTERM and SIGHUP end it with [`DemoError::Interrupted`]; afterwards they stay without
/// their default effect on this process.
pub fn run(options: &DemoOptions, steering: &mut dyn Steering) -> Result<Report, DemoError> {
    run_with(options, Mechanism::Steering(steering))
}

/// Runs the demo with the kernel's own `SO_INCOMING_CPU` as the mechanism. It needs no privilege.
///
/// # Minimum kernel version
/// 6.2; before, the option changes nothing, and the report says so.
pub fn run_with_incoming_cpu(options: &DemoOptions) -> Result<Report, DemoError> {
    run_with(options, Mechanism::IncomingCpu)
}

fn run_with(options: &DemoOptions, mut mechanism: Mechanism<'_>) -> Result<Report, DemoError> {
    if !(1..=MOST_ROUNDS).contains(&options.rounds) {
        return Err(DemoError::Rounds(options.rounds));
    }
    if !DURATIONS.contains(&options.duration) {
        return Err(DemoError::Duration(options.duration));
    }
    if !(1..=MOST_CONNECTIONS).contains(&options.connections_per_cpu) {
        return Err(DemoError::Connections(options.connections_per_cpu));
    }
    let cpus: CpuSet = allowed_cpus().iter().take(options.most_workers).collect();
    if cpus.len() < 2 {
        return Err(DemoError::TooFewCpus(cpus));
    }
    let seed = options.seed.unwrap_or_else(draw_seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DemoError::Runtime { operation: "start the runtime", source })?;
    let entered = runtime.enter();
    let mut interrupts = rounds::Interrupts::catch()?;
    drop(entered);
    let mut group = runtime.block_on(group::Group::start(&options.worker, &cpus))?;
    let seen =
        rounds::run(&runtime, options, &cpus, seed, &mut group, &mut mechanism, &mut interrupts)?;
    let mechanism = match mechanism {
        Mechanism::Steering(_) => "eBPF",
        Mechanism::IncomingCpu => "SO_INCOMING_CPU",
    };
    Ok(Report::new(options, &cpus, group.pids(), seed, mechanism, seen))
}

/// CPUs that this thread may run on; the kernel leaves out those that are offline.
fn allowed_cpus() -> CpuSet {
    core_affinity::get_core_ids()
        .unwrap_or_default()
        .into_iter()
        .filter_map(|core| Cpu::try_from(core.id).ok())
        .collect()
}
