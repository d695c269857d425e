//! What steering costs by itself: a selection against the size of the group, memory, attaching.
//!
//! The kernel cannot test-run this kind of program, so packets it is: datagrams over loopback to
//! sockets that nobody reads and whose buffers are full. Each ends in the same cheap drop, whoever
//! chose the socket. Blocks of sends to groups under different mechanisms take turns, in random
//! order; a mechanism's figure is what a datagram takes beyond one to a group under the kernel's
//! hash, block by block.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::interrupt::Interrupt;
use super::mechanism::Mechanism;
use super::record::Settings;
use super::topology::{Scene, Topology};
use super::{BenchError, BenchOptions};
use crate::group::{Group, GroupError, Worker, Workers};
use crate::measure::{Estimate, Rng, differences, quantile};
use crate::model::{Cpu, CpuSet};
use crate::rungs::classic::{Program, Rows, Share};
use crate::rungs::{Rung, Why};
use crate::sys::sched;

mod attaching;

use attaching::Attaching;

/// Flows, each with a hash of its own.
const FLOWS: usize = 64;
/// Datagrams on each flow until its socket is full.
const FILL: usize = 320;
/// Sends on every flow that one block is the median of.
const SENDS: usize = 60;
/// Sizes of the groups.
const SIZES: [usize; 8] = [1, 2, 4, 16, 64, 256, 1024, 4096];
/// What is compared, the hash first. With the largest groups all fit into 20,000 descriptors.
const MECHANISMS: [Mechanism; 4] =
    [Mechanism::Hash, Mechanism::ClassicBpf, Mechanism::IncomingCpu, Mechanism::Ebpf];

/// What steering costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// By size of the group and mechanism.
    pub selection: Vec<Selection>,
    /// What could not be measured, and why: thousands of sockets take as many descriptors.
    pub left_out: Vec<String>,
    /// `attach` of a running server with a worker per CPU, in milliseconds: from looking for its
    /// listeners until they are steered.
    pub attach_ms: Estimate,
    /// `detach`, in milliseconds.
    pub detach_ms: Estimate,
    /// From listeners that came or went until the agent has steered those that are there, in
    /// milliseconds; `None` where the kernel does not tell it of them.
    pub heal_ms: Option<Estimate>,
}

/// One mechanism in groups of one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// Which.
    pub mechanism: Mechanism,
    /// Sockets in the group.
    pub sockets: usize,
    /// What a datagram takes longer than one under the kernel's hash.
    pub nanoseconds: Estimate,
    /// Opening the sockets and putting the mechanism in force, in milliseconds.
    pub setup_ms: f64,
    /// Memory of its BPF maps, in bytes.
    pub memory_bytes: u64,
    /// A run of its program, in nanoseconds, by the kernel's run-time statistics, which cost 20 to 30 ns
    /// each themselves: counted in a block of their own, when nothing else is measured.
    #[serde(default)]
    pub program_ns: Option<f64>,
}

/// A group that is sent to, and takes nothing more.
struct Sink {
    mechanism: Mechanism,
    setup_ms: f64,
    memory_bytes: u64,
    flows: Vec<UdpSocket>,
    /// Kept open, and never read.
    _workers: Vec<Worker>,
    group: Group,
}

/// Measures everything; takes some seconds for each size.
pub(super) fn measure(
    settings: &Settings,
    options: &BenchOptions,
    interrupt: &Interrupt,
) -> Result<Costs, BenchError> {
    let scene = Scene::new(Topology::T1, &settings.cpus, &options.bpffs)?;
    let mut rng = Rng::with_seed(settings.seed);
    let selection = scene.inside(|| selection(settings, options, interrupt, &mut rng))?;
    let (selection, left_out) = selection?;
    let attaching = Attaching { settings, options, scene: &scene, interrupt };
    let (attach_ms, detach_ms) = attaching.measure(&mut rng)?;
    let heal_ms = attaching.healing(&mut rng)?;
    Ok(Costs { selection, left_out, attach_ms, detach_ms, heal_ms })
}

/// By size of the group.
fn selection(
    settings: &Settings,
    options: &BenchOptions,
    interrupt: &Interrupt,
    rng: &mut Rng,
) -> Result<(Vec<Selection>, Vec<String>), BenchError> {
    let sizes = if settings.quick { &SIZES[..4] } else { &SIZES };
    let (mut selection, mut left_out) = (Vec::new(), Vec::new());
    for &sockets in sizes {
        selection.extend(of_size(sockets, settings, options, interrupt, rng, &mut left_out)?);
    }
    Ok((selection, left_out))
}

fn of_size(
    sockets: usize,
    settings: &Settings,
    options: &BenchOptions,
    interrupt: &Interrupt,
    rng: &mut Rng,
    left_out: &mut Vec<String>,
) -> Result<Vec<Selection>, BenchError> {
    // Listeners are for CPUs that this thread may run on, and it then sends on the first.
    sched::set_affinity(0, &settings.cpus.iter().copied().collect())?;
    let mut targets = Vec::new();
    for mechanism in MECHANISMS {
        match Sink::new(mechanism, sockets, &settings.cpus, &options.bpffs) {
            Ok(sink) => targets.push(sink),
            Err(error) => left_out.push(format!("{mechanism} with {sockets} sockets: {error}")),
        }
    }
    if targets.first().is_none_or(|sink| sink.mechanism != Mechanism::Hash) {
        return Ok(Vec::new());
    }
    sched::set_affinity(0, &CpuSet::from([settings.cpus[0]]))?;
    for target in &targets {
        for _ in 0..FILL {
            target.send();
        }
    }
    let blocks = if settings.quick { 10 } else { 100 };
    // The hash's group twice: whatever it differs from itself by is noise.
    let again = targets.len();
    let mut times = vec![Vec::new(); again + 1];
    let mut order: Vec<usize> = (0..=again).collect();
    for _ in 0..blocks {
        interrupt.check()?;
        rng.shuffle(&mut order);
        for &place in &order {
            times[place].push(targets[place % again].time());
        }
    }
    let program_ns: Vec<Option<f64>> = targets.iter().map(Sink::program_ns).collect();
    let found = times.iter().enumerate().skip(1).filter_map(|(place, of_one)| {
        let target = &targets[place % again];
        let mechanism = if place == again { Mechanism::HashAgain } else { target.mechanism };
        Some(Selection {
            mechanism,
            sockets,
            nanoseconds: Estimate::of(&differences(of_one, &times[0]), rng)?,
            setup_ms: target.setup_ms,
            memory_bytes: target.memory_bytes,
            program_ns: program_ns[place % again],
        })
    });
    Ok(found.collect())
}

impl Sink {
    /// Sockets of which one is for the CPU that sends.
    fn new(
        mechanism: Mechanism,
        sockets: usize,
        cpus: &[Cpu],
        bpffs: &Path,
    ) -> Result<Self, GroupError> {
        let workers = (0..sockets).map(|place| if place == 0 { cpus[0] } else { cpus[1] });
        let rung = match mechanism {
            Mechanism::IncomingCpu => Rung::IncomingCpu,
            Mechanism::Ebpf => Rung::Ebpf,
            _ => Rung::Hash,
        };
        let (began, before) = (Instant::now(), map_memory());
        let mut group = Group::builder()
            .udp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .workers(Workers::On(workers.collect()))
            .rung(rung)
            .bpffs(bpffs)
            .build()?;
        let workers = group.take_workers();
        if mechanism == Mechanism::ClassicBpf
            && let Some(first) = workers.first().and_then(|worker| worker.sockets().next())
        {
            // A row for each of thousands of sockets would be too long a program.
            let rows = Rows::from([(cpus[0], vec![Share { place: 0, part: 1 }])]);
            let program = Program::new(&rows).map_err(|error| GroupError::Rung {
                rung: Rung::ClassicBpf,
                why: Why::Untried(error.to_string()),
            })?;
            program.attach(first)?;
        }
        let setup_ms = began.elapsed().as_secs_f64() * 1e3;
        let address = group.addresses()[0];
        let flow = || {
            let call = "socket(SOCK_DGRAM)";
            let flow = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
            let flow = flow.and_then(|flow| flow.connect(address).map(|()| flow));
            flow.map_err(|source| crate::sys::SyscallError { call, source })
        };
        let flows = (0..FLOWS).map(|_| flow()).collect::<Result<_, _>>()?;
        let memory_bytes = map_memory().saturating_sub(before);
        Ok(Self { mechanism, setup_ms, memory_bytes, flows, _workers: workers, group })
    }

    /// A run of our program, where it is in force and the kernel keeps such statistics.
    fn program_ns(&self) -> Option<f64> {
        let id = self.group.program_id()?;
        // They are off again when this is closed.
        let _on = aya::sys::enable_stats(aya::sys::Stats::RunTime).ok()?;
        let (time, runs) = run_time(id)?;
        for _ in 0..SENDS {
            self.send();
        }
        let (more, later) = run_time(id)?;
        (later > runs).then(|| (more - time) as f64 / (later - runs) as f64)
    }

    fn send(&self) {
        for flow in &self.flows {
            // A full buffer is no error of the sender's.
            drop(flow.send(b"x"));
        }
    }

    /// Nanoseconds per datagram: the median of some rounds, so that being preempted does not count.
    fn time(&self) -> f64 {
        let round = || {
            let start = Instant::now();
            self.send();
            start.elapsed().as_nanos() as f64 / FLOWS as f64
        };
        let mut times: Vec<f64> = (0..SENDS).map(|_| round()).collect();
        times.sort_unstable_by(f64::total_cmp);
        quantile(&times, 0.5)
    }
}

/// Nanoseconds that a program ran, and how often.
fn run_time(id: u32) -> Option<(u64, u64)> {
    let program = aya::programs::loaded_programs().flatten().find(|it| it.id() == id)?;
    let fd = program.fd().ok()?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()?;
    Some((field(&text, "run_time_ns:")?, field(&text, "run_cnt:")?))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Memory of the BPF maps that this process has open, each counted once.
fn map_memory() -> u64 {
    let files = fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten();
    let mut maps = std::collections::BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        if let (Some(id), Some(bytes)) = (field(&text, "map_id:"), field(&text, "memlock:")) {
            maps.insert(id, bytes);
        }
    }
    maps.values().sum()
}
