//! A closed-loop load of short connections, from chosen CPUs.
//!
//! Each client thread is pinned and repeats: connect, send 32 bytes, read the reply to its end,
//! close with a reset. On loopback the softirq runs on the sender's CPU, so a connection is received
//! on the CPU of the thread that made it. Latencies are in nanoseconds, from the call of `connect`
//! to the last byte of the reply. Being a closed loop it measures throughput well and tails badly: a
//! slow reply delays the requests that would have followed it.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use hdrhistogram::Histogram;
use socket2::{Domain, SockAddr, Socket, Type};

use super::protocol::{REPLY, REQUEST};
use crate::model::{Cpu, CpuSet};

/// Longest that a connect, a send or a receive may take: beyond one retransmission of a SYN (1 s),
/// short enough that an interrupted demo ends soon.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after an error, so that a dead port does not make the load spin.
const PAUSE: Duration = Duration::from_millis(1);

/// Longest latency that the histogram tells apart.
const LONGEST_NS: u64 = 60_000_000_000;

/// What to connect to, from where, for how long.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The server.
    pub address: SocketAddr,
    /// CPUs to connect from.
    pub cpus: CpuSet,
    /// Client threads per CPU; each has one connection at a time.
    pub connections_per_cpu: usize,
    /// Time before the measured window, at full load.
    pub warmup: Duration,
    /// The measured window.
    pub duration: Duration,
}

/// What the load saw.
#[derive(Clone, Debug)]
pub struct LoadResult {
    /// Connections whose reply came within the window.
    pub connections: u64,
    /// Connections answered before or after it.
    pub outside_window: u64,
    /// Failures, those of the warm-up included, by the step and the error.
    pub errors: BTreeMap<String, u64>,
    /// Length of the window.
    pub elapsed: Duration,
    /// Connect-to-reply of the connections in the window, in nanoseconds.
    pub latency: Histogram<u64>,
}

impl LoadResult {
    /// Connections per second.
    pub fn rate(&self) -> f64 {
        self.connections as f64 / self.elapsed.as_secs_f64()
    }

    /// How many failed, whatever the error.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A client thread could not be started.
    #[error("cannot start a client thread for CPU {cpu}: {source}{}", super::limit_hint(source))]
    Spawn {
        /// Its CPU.
        cpu: Cpu,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A client thread could not be pinned.
    #[error(
        "a client thread cannot run on CPU {0}: see `taskset -p` and the cpuset of this process"
    )]
    Pin(Cpu),
    /// A client thread panicked: a bug.
    #[error("a client thread for CPU {0} panicked")]
    Panicked(Cpu),
}

/// Runs a load to its end.
pub fn run(options: &LoadOptions) -> Result<LoadResult, LoadError> {
    start(options)?.finish()
}

/// Starts a load and returns at once.
pub fn start(options: &LoadOptions) -> Result<Running, LoadError> {
    let begin = Instant::now() + options.warmup;
    let window = Window { begin, end: begin + options.duration };
    let mut running =
        Running { window, stop: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
    for cpu in options.cpus.iter() {
        for _ in 0..options.connections_per_cpu {
            let (address, stop) = (options.address, Arc::clone(&running.stop));
            let thread = std::thread::Builder::new()
                .name(format!("load/{cpu}"))
                .spawn(move || client(cpu, address, window, &stop))
                .map_err(|source| LoadError::Spawn { cpu, source })?;
            running.threads.push((cpu, thread));
        }
    }
    Ok(running)
}

/// A load under way. Dropping it stops it and waits for its threads.
#[derive(Debug)]
pub struct Running {
    window: Window,
    stop: Arc<AtomicBool>,
    threads: Vec<(Cpu, JoinHandle<Result<Tally, LoadError>>)>,
}

impl Running {
    /// When the measured window ends.
    pub fn end(&self) -> Instant {
        self.window.end
    }

    /// Waits for the end and adds up.
    pub fn finish(mut self) -> Result<LoadResult, LoadError> {
        let mut total = Tally::default();
        while let Some((cpu, thread)) = self.threads.pop() {
            // On an error, dropping `self` ends the others.
            let tally = thread.join().or(Err(LoadError::Panicked(cpu))).flatten()?;
            total.add(&tally);
        }
        Ok(LoadResult {
            connections: total.latency.0.len(),
            outside_window: total.outside_window,
            errors: total.errors,
            elapsed: self.window.end - self.window.begin,
            latency: total.latency.0,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (_, thread) in self.threads.drain(..) {
            // Its outcome is not wanted any more.
            drop(thread.join());
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Window {
    begin: Instant,
    end: Instant,
}

/// A histogram with the bounds that all share, so that adding two never fails.
#[derive(Debug)]
struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "the bounds are constants, and valid")]
        Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds"))
    }
}

/// What one thread saw.
#[derive(Debug, Default)]
struct Tally {
    latency: Latency,
    outside_window: u64,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.latency.0 += &other.latency.0;
        self.outside_window += other.outside_window;
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
    }
}

fn client(
    cpu: Cpu,
    address: SocketAddr,
    window: Window,
    stop: &AtomicBool,
) -> Result<Tally, LoadError> {
    if !core_affinity::set_for_current(CoreId { id: cpu as usize }) {
        return Err(LoadError::Pin(cpu));
    }
    let (domain, address) = (Domain::for_address(address), SockAddr::from(address));
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) && Instant::now() < window.end {
        match exchange(domain, &address) {
            Ok((started, replied)) if replied >= window.begin && replied < window.end => {
                let latency = (replied - started).as_nanos();
                tally.latency.0.saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
            }
            Ok(_) => tally.outside_window += 1,
            Err(failure) => {
                *tally.errors.entry(failure.to_string()).or_default() += 1;
                std::thread::sleep(PAUSE);
            }
        }
    }
    Ok(tally)
}

/// A connection that failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{step}: {source}{}", super::limit_hint(source))]
    Io { step: &'static str, source: io::Error },
    #[error("{0}: no answer within {TIMEOUT:?}")]
    Timeout(&'static str),
    #[error("reply of {0} bytes instead of {REPLY}")]
    Length(usize),
}

fn during(step: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| match source.raw_os_error() {
        // What SO_SNDTIMEO makes of connect(), and SO_RCVTIMEO of recv().
        Some(libc::EINPROGRESS | libc::EAGAIN) => Failure::Timeout(step),
        _ => Failure::Io { step, source },
    }
}

/// One connection: when `connect` was called and when the reply was complete.
fn exchange(domain: Domain, address: &SockAddr) -> Result<(Instant, Instant), Failure> {
    let socket = Socket::new(domain, Type::STREAM, None).map_err(during("socket"))?;
    // Closing sends a reset, which frees the port at once on both sides.
    socket.set_linger(Some(Duration::ZERO)).map_err(during("set SO_LINGER"))?;
    socket.set_write_timeout(Some(TIMEOUT)).map_err(during("set SO_SNDTIMEO"))?;
    socket.set_read_timeout(Some(TIMEOUT)).map_err(during("set SO_RCVTIMEO"))?;
    let started = Instant::now();
    socket.connect(address).map_err(during("connect"))?;
    (&socket).write_all(&[b'?'; REQUEST]).map_err(during("send"))?;
    // One byte more than a reply, so that a longer one is noticed.
    let (mut reply, mut length, mut replied) = ([0; REPLY + 1], 0, started);
    loop {
        match (&socket).read(&mut reply[length..]).map_err(during("receive"))? {
            0 if length == REPLY => return Ok((started, replied)),
            0 => return Err(Failure::Length(length)),
            received => length += received,
        }
        replied = Instant::now();
        if length > REPLY {
            return Err(Failure::Length(length));
        }
    }
}
