//! `reuseport-steer bench`: what steering changes on this machine, against everything else that
//! could be had, with its spread and with controls that say whether to believe it.
//!
//! A *cell* is a topology, a workload and a pace. Each repetition of a cell runs all mechanisms in
//! random order, each with a fresh server on a fresh port; what is compared are pairs of one
//! repetition. [`judge`] has the gates and controls between a figure and "inconclusive". However it
//! ends, nothing is left behind: namespaces have no name, and the server ends with its socket.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

mod agent;
pub mod costs;
mod generate;
pub mod goals;
pub mod host;
mod interrupt;
pub mod judge;
pub mod mechanism;
mod protocol;
pub mod record;
pub mod report;
mod run;
mod series;
pub mod serve;
mod server;
pub mod settings;
pub mod topology;
pub mod workload;

pub use generate::LoadError;
pub use mechanism::Mechanism;
pub use record::{Record, RecordError};
pub use server::ServerCommand;
pub use settings::{BenchOptions, Wrong};
pub use topology::Topology;
pub use workload::Workload;

use crate::model::CpuSet;
use crate::sys::sched;
use interrupt::Interrupt;
use series::Series;

/// Why there is no whole record. What was saved before can be resumed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// An option is out of range, or does not go with another.
    #[error(transparent)]
    Options(#[from] Wrong),
    /// Nothing to choose between.
    #[error(
        "a bench needs two CPUs and may use {}: with one, every connection is local already (see \
         `taskset -p` and the cpuset of this process)",
        if .0.is_empty() { "none".to_owned() } else { format!("only CPU {}", .0) }
    )]
    TooFewCpus(CpuSet),
    /// The network could not be set up.
    #[error("cannot set up the network: {0}")]
    Topology(#[from] topology::TopologyError),
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(#[source] io::Error),
    /// `/proc/stat` cannot be read.
    #[error("/proc/stat: {0}")]
    Stat(#[source] io::Error),
    /// A system call.
    #[error(transparent)]
    Syscall(#[from] crate::sys::SyscallError),
    /// No server process.
    #[error("cannot start the server: {0}")]
    Spawn(#[source] io::Error),
    /// The mechanism is not to be had here.
    #[error("{0}")]
    Unavailable(String),
    /// What all others are compared with is not to be had.
    #[error("{mechanism} cannot be measured on {topology} with {workload}: {why}")]
    NoBaseline {
        /// The mechanism.
        mechanism: Mechanism,
        /// The topology.
        topology: Topology,
        /// The workload.
        workload: Workload,
        /// Why.
        why: String,
    },
    /// What spills ended early, or never began.
    #[error("the agent: {0}")]
    Agent(String),
    /// The server said why it cannot go on.
    #[error("the server failed: {0}")]
    ServerFailed(String),
    /// The server ended without a word.
    #[error(
        "the server ended in the middle of a run: {}",
        .0.map_or_else(|| "status unknown".to_owned(), |status| status.to_string())
    )]
    ServerDied(Option<ExitStatus>),
    /// The server hangs.
    #[error("the server did not answer within {0:?}")]
    ServerSilent(Duration),
    /// A server of another version, or none at all.
    #[error("the server answered `{0}`, which is not what was asked")]
    ServerSpeech(String),
    /// A group to measure selections in could not be opened.
    #[error(transparent)]
    Group(#[from] crate::group::GroupError),
    /// The load could not be made.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The rest of a run would not be of the same thing.
    #[error("it cannot be gone on with here, as it was begun elsewhere: {0}; begin a new one")]
    Elsewhere(String),
    /// A record or a report could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Nobody answered.
    #[error("no request was answered with {mechanism}: {}", list(errors))]
    NoReplies {
        /// The mechanism.
        mechanism: Mechanism,
        /// Failures and how many.
        errors: BTreeMap<String, u64>,
    },
    /// A signal.
    #[error("ended by {0}")]
    Interrupted(String),
}

/// `12 x connect: Connection refused, 1 x ...`
fn list(errors: &BTreeMap<String, u64>) -> String {
    let each: Vec<String> =
        errors.iter().map(|(error, count)| format!("{count} x {error}")).collect();
    if each.is_empty() { "all were too slow".to_owned() } else { each.join(", ") }
}

/// Runs a bench, or the rest of one. `save` is called after every repetition.
///
/// SIGINT, SIGTERM and SIGHUP end it with [`BenchError::Interrupted`]; afterwards they stay without
/// their default effect on this process.
pub fn run(
    options: &BenchOptions,
    mut record: Record,
    save: &mut dyn FnMut(&Record) -> Result<(), BenchError>,
) -> Result<Record, BenchError> {
    let here = host::Environment::read(&sched::affinity(0)?);
    if let Some(what) = here.differs(&record.environment) {
        return Err(BenchError::Elsewhere(what));
    }
    let interrupt = Interrupt::catch().map_err(BenchError::Signals)?;
    let mut series = Series::new(options, &interrupt, &record.settings);
    series.run(&mut record, save)?;
    Ok(record)
}

/// A record without a sample, of what the options ask for.
pub fn begin(options: &BenchOptions) -> Result<Record, BenchError> {
    let cpus = sched::affinity(0)?;
    if cpus.len() < 2 {
        return Err(BenchError::TooFewCpus(cpus));
    }
    let settings = options.settings(&cpus)?;
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(Record {
        schema: record::SCHEMA.to_owned(),
        version: record::VERSION,
        started,
        environment: host::Environment::read(&cpus),
        settings,
        cells: Vec::new(),
        costs: None,
        goals: Vec::new(),
    })
}

/// Where pins go and how servers are started, unless told.
impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            topologies: Vec::new(),
            workloads: Vec::new(),
            mechanisms: Vec::new(),
            repetitions: None,
            seconds: None,
            connections: 16,
            loads: Vec::new(),
            rate: None,
            seed: None,
            quick: false,
            matrix: record::Matrix::All,
            costs: false,
            bpffs: PathBuf::from(crate::bpf::pins::BPFFS),
            progress: true,
            server: ServerCommand::default(),
        }
    }
}
