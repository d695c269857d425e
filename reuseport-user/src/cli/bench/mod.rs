//! `bench`: steering against everything else that could be had, with controls.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::args::CommonArgs;
use super::output::to_json;
use crate::bench::judge::Gate;
use crate::bench::record::Matrix;
use crate::bench::{
    self, BenchError, BenchOptions, Mechanism, Record, RecordError, Topology, Workload, report,
};

mod text;

/// Compare steering with everything else on this machine, with controls that say whether to believe it
///
/// Runs a server of its own under each mechanism in turn, in random order, in network namespaces of
/// its own, and compares them pair by pair with the kernel's hash. Where a gate or a control fails,
/// it says "inconclusive" and why, in place of a figure. Needs root, two CPUs, and for the
/// topologies t3 to t5 the programs `ip` and `ethtool`.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(after_long_help = "\
Topologies: how packets arrive
  t1  loopback, clients on every CPU
  t2  loopback, clients on one CPU: skew, where steering by CPU loses
  t3  veth with a queue and a polling thread for each CPU, as a NIC with RSS
  t4  veth with one queue and RPS to every CPU
  t5  veth with one queue

Workloads: what is asked for
  w1  short connections, as fast as it goes    w5  UDP echo
  w2  50 us of work each, at a fixed rate      w6  one worker stops for a second
  w3  20 us of work, 1 in 100 takes 2 ms       w7  the server is replaced by a new process
  w4  keep-alive, 100 requests per connection  w8  packets come to arrive on one CPU only

Mechanisms
  single, shared, hand-off, hash, hash-again (control), classic-bpf, incoming-cpu, ebpf, ebpf-spill,
  ebpf-wrong-cpu (control). If named only, variants of spilling, by what workers say of themselves:
  ebpf-busy, ebpf-ready-0, ebpf-ready-2, ebpf-queue-0, ebpf-queue-1, ebpf-queue-4

Examples:
  reuseport-steer bench --quick
  reuseport-steer bench --topology t1,t3 --workload w1,w4 --output results
  reuseport-steer bench --workload w2 --topology t2 --load 0.2,0.5,0.8 --output skew
  reuseport-steer bench --goals --output published    # all that is claimed; half an hour
  reuseport-steer bench --resume results/bench.json")]
pub(super) struct Args {
    /// How packets arrive [default: t1,t2,t3]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    topology: Vec<Topology>,
    /// What is asked for [default: w1]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    workload: Vec<Workload>,
    /// What is compared; hash and hash-again always are [default: all but variants]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    mechanism: Vec<Mechanism>,
    /// How often each is measured [default: 15; quick: 3; goals: 10]
    #[arg(long, value_name = "N")]
    repetitions: Option<u32>,
    /// Measured seconds of each run; 2 at least of w2, w3 and w6 [default: 1; quick: 0.3]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Connections at a time, where they come as fast as it goes
    #[arg(long, value_name = "N", default_value_t = BenchOptions::default().connections)]
    connections: usize,
    /// Fixed rates, as parts of what the hash serves at most [default: 0.5]
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    load: Vec<f64>,
    /// A fixed rate, in requests per second
    #[arg(long, conflicts_with = "load", value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// What the order and the requests follow from; printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// Check gates and signs only, in short; quote no figure of it
    #[arg(long)]
    quick: bool,
    /// Measure what the goals of the project are about, costs included, and say which are met
    #[arg(long, conflicts_with_all = ["topology", "workload", "load", "rate"])]
    goals: bool,
    /// By connections at a time, 1 to 1024, and by workers on each CPU, 1 to 8; on t3 unless told
    #[arg(long, conflicts_with_all = ["goals", "connections"])]
    series: bool,
    /// Measure also what a selection costs in groups of up to 4096 sockets, memory, attach and detach
    #[arg(long)]
    costs: bool,
    /// Directory for bench.json (saved after every repetition), bench.csv and bench.html
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Go on with a bench.json whose run was interrupted
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["topology", "workload", "mechanism", "repetitions", "seconds", "load",
                              "rate", "seed", "quick", "goals", "series", "costs", "output", "connections"]
    )]
    resume: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Something of ours is wrong, not the machine's noise.
#[derive(Debug, thiserror::Error)]
#[error("{} failed: {}", if .0.len() == 1 { "a gate" } else { "gates" }, .0.join("; "))]
struct Broken(Vec<String>);

pub(super) fn run(args: &Args) -> Result<()> {
    let options = args.options();
    let (record, directory) = if let Some(path) = &args.resume {
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        (Record::read(path)?, Some((directory, path.clone())))
    } else {
        let output = args.output.clone();
        (bench::begin(&options)?, output.map(|it| (it.clone(), it.join("bench.json"))))
    };
    if let Some((directory, path)) = &directory {
        prepare(directory, path, args.resume.is_some())?;
    }
    let mut save = |record: &Record| -> Result<(), BenchError> {
        match &directory {
            Some((_, path)) => Ok(record.write(path)?),
            None => Ok(()),
        }
    };
    let record = match (bench::run(&options, record, &mut save), &directory) {
        (Err(error), Some((_, path))) if path.exists() => {
            let advice = format!("not finished; go on with `--resume {}`", path.display());
            return Err(anyhow::Error::new(error).context(advice));
        }
        (done, _) => done?,
    };
    if let Some((directory, _)) = &directory {
        fs::write(directory.join("bench.csv"), report::to_csv(&record)?)?;
        fs::write(directory.join("bench.html"), report::to_html(&record)?)?;
    }
    let mut out = super::stdout();
    if args.common.json {
        to_json(&mut out, &record)?;
    } else {
        text::print_into(&mut out, &record)?;
        if let Some((directory, _)) = &directory {
            text::files_into(&mut out, directory)?;
        }
    }
    let cells = record.cells.iter().filter_map(|cell| Some((cell, cell.verdict.as_ref()?)));
    let broken: Vec<String> = cells
        .flat_map(|(cell, verdict)| {
            let name = format!("{} {}", cell.topology, cell.workload);
            let each = move |gate: &Gate| format!("{name}: {}: {}", gate.what, gate.found);
            verdict.broken().map(each).collect::<Vec<_>>()
        })
        .collect();
    if broken.is_empty() { Ok(()) } else { Err(Broken(broken).into()) }
}

impl Args {
    fn options(&self) -> BenchOptions {
        BenchOptions {
            topologies: self.topology.clone(),
            workloads: self.workload.clone(),
            mechanisms: self.mechanism.clone(),
            repetitions: self.repetitions,
            seconds: self.seconds,
            connections: self.connections,
            loads: self.load.clone(),
            rate: self.rate,
            seed: self.seed,
            quick: self.quick,
            matrix: match (self.goals, self.series) {
                (true, _) => Matrix::Goals,
                (_, true) => Matrix::Series,
                _ => Matrix::All,
            },
            costs: self.costs,
            bpffs: self.common.settings().bpffs,
            progress: std::io::stderr().is_terminal(),
            ..BenchOptions::default()
        }
    }
}

/// Makes the directory, unless it holds another bench's results.
fn prepare(directory: &Path, path: &Path, resumed: bool) -> Result<(), RecordError> {
    let of = |source| RecordError::Io { path: path.display().to_string(), source };
    if resumed {
        return Ok(());
    }
    if path.exists() {
        let taken = format!("it is there already; `--resume {}` goes on with it", path.display());
        return Err(of(std::io::Error::new(std::io::ErrorKind::AlreadyExists, taken)));
    }
    fs::create_dir_all(directory).map_err(of)
}

pub(super) fn server() -> Result<()> {
    Ok(bench::serve::run()?)
}
