//! One run: a fresh server with one mechanism, one load, and what was seen of both.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::BenchError;
use super::agent::Spilling;
use super::generate::latency::{Seen, new_histogram};
use super::generate::{self, LoadError, Plan, Shared, Window};
use super::host::running;
use super::interrupt::Interrupt;
use super::mechanism::Mechanism;
use super::protocol::{Command, Tally};
use super::record::{Flow, Quantiles, Sample, curve, settled};
use super::server::{Server, ServerCommand};
use super::topology::Scene;
use super::workload::{Event, Pace, Workload};
use crate::measure::Ticks;
use crate::model::{Cpu, Pid};
use crate::sys::netns::{self, NetnsError};

/// Longest wait after the end of a window for what is missing; see [`generate`].
const LEFT: Duration = Duration::from_secs(10);

/// What all runs of a cell have in common.
pub(super) struct Stage<'a> {
    pub(super) scene: &'a Scene,
    pub(super) workload: Workload,
    pub(super) pace: Pace,
    pub(super) cpus: &'a [Cpu],
    /// On each CPU.
    pub(super) workers: u32,
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
    pub(super) bpffs: &'a PathBuf,
    pub(super) server: &'a ServerCommand,
    pub(super) interrupt: &'a Interrupt,
}

/// What the machine did in the window.
struct Machine {
    ran: Duration,
    napi: Duration,
    steal: f64,
}

impl Stage<'_> {
    /// Measures one mechanism.
    pub(super) fn run(&self, mechanism: Mechanism, seed: u64) -> Result<Sample, BenchError> {
        let anywhere = SocketAddr::new(self.scene.address, 0);
        let mut server = self.serve(mechanism, anywhere)?;
        // After the server, so that it ends first.
        let spilling = match mechanism {
            Mechanism::EbpfSpill => Some(Spilling::start(self.scene, server.address, self.bpffs)?),
            _ => None,
        };
        let agent = spilling.as_ref().map(|it| it.tid);
        let plan = self.plan(server.address, seed);
        let shared = Arc::new(Shared::staying());
        let window = generate::window(&plan);
        let (seen, machine) = std::thread::scope(|scope| {
            let clients = || {
                let run = || generate::run(&plan, window, &shared);
                netns::inside(&self.scene.clients, run)
            };
            let thread = std::thread::Builder::new().name("load".into());
            let thread = thread
                .spawn_scoped(scope, clients)
                .map_err(|source| LoadError::Spawn { cpu: self.cpus[0], source })?;
            let watched = self.watch(mechanism, &mut server, agent, &shared, window);
            if watched.is_err() {
                shared.stop.store(true, Ordering::Relaxed);
            }
            let seen = self.join(thread, &shared)?;
            watched.map(|machine| (seen, machine))
        })?;
        let tallies = server.tallies()?;
        spilling.map_or(Ok(()), Spilling::stop)?;
        drop(server);
        Ok(self.sample(mechanism, &seen, &machine, &tallies))
    }

    fn serve(&self, mechanism: Mechanism, address: SocketAddr) -> Result<Server, BenchError> {
        self.interrupt.check()?;
        let listen = Command::Listen {
            mechanism,
            address,
            udp: self.workload.is_udp(),
            cpus: self.cpus.repeat(self.workers as usize),
            bpffs: self.bpffs.clone(),
        };
        Server::start(self.server, self.scene, &listen)
    }

    fn plan(&self, address: SocketAddr, seed: u64) -> Plan {
        Plan {
            address,
            udp: self.workload.is_udp(),
            clients: self.scene.topology.clients(self.cpus),
            pace: self.pace,
            work: self.workload.work(),
            requests: self.workload.requests(),
            warmup: self.warmup,
            duration: self.duration,
            seed,
            skew: self.workload.event() == Some(Event::Skew),
        }
    }

    /// Waits for the end of the window, and lets happen what is to happen in it.
    fn watch(
        &self,
        mechanism: Mechanism,
        server: &mut Server,
        agent: Option<Pid>,
        shared: &Shared,
        window: Window,
    ) -> Result<Machine, BenchError> {
        self.interrupt.sleep_until(window.begin)?;
        server.tell(&Command::Reset)?;
        let threads = |server: &Server| {
            let ours = server.threads.iter().copied().chain(agent);
            ours.chain(shared.tids()).collect::<Vec<_>>()
        };
        let (before, ticks) = (running(&threads(server)), Ticks::now().map_err(BenchError::Stat)?);
        let napi = running(&self.scene.napi);
        match self.workload.event() {
            Some(Event::Stall(lasts)) => {
                self.interrupt.sleep_until(window.begin + self.event_at().unwrap_or_default())?;
                server.tell(&Command::Stall { worker: 0, lasts })?;
            }
            Some(Event::Replace) => {
                self.interrupt.sleep_until(window.middle())?;
                let new = self.serve(mechanism, server.address)?;
                server.tell(&Command::Drain)?;
                *server = new;
            }
            Some(Event::Skew) | None => {}
        }
        self.interrupt.sleep_until(window.end)?;
        let napi = running(&self.scene.napi).saturating_sub(napi);
        let ran = running(&threads(server)).saturating_sub(before) + napi;
        shared.stay.store(false, Ordering::Relaxed);
        let (_, steal) = ticks.busy_and_steal(&Ticks::now().map_err(BenchError::Stat)?);
        Ok(Machine { ran, napi, steal: steal / 100.0 })
    }

    /// When what happens in the middle of a run does, from the beginning of its window.
    fn event_at(&self) -> Option<Duration> {
        self.workload.event().map(|event| match event {
            Event::Stall(lasts) => self.duration.saturating_sub(lasts) / 4,
            Event::Replace | Event::Skew => self.duration / 2,
        })
    }

    /// Waits for the clients, who wait for missing replies.
    fn join(
        &self,
        thread: ScopedJoinHandle<'_, Result<Result<Seen, LoadError>, NetnsError>>,
        shared: &Shared,
    ) -> Result<Seen, BenchError> {
        let deadline = crate::sys::clock::monotonic() + LEFT;
        while !thread.is_finished() && crate::sys::clock::monotonic() < deadline {
            if self.interrupt.check().is_err() {
                shared.stop.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        shared.stop.store(true, Ordering::Relaxed);
        let seen = thread.join().or(Err(LoadError::Panicked(self.cpus[0])))?;
        let seen = seen.map_err(|error| BenchError::Topology(error.into()))??;
        self.interrupt.check()?;
        Ok(seen)
    }

    fn sample(
        &self,
        mechanism: Mechanism,
        seen: &Seen,
        machine: &Machine,
        tallies: &[Tally],
    ) -> Sample {
        let requests = seen.latency.len();
        let event = self.event_at();
        let slowest_ms: Vec<f64> = match event {
            Some(_) => seen.slowest.iter().map(|&nanos| nanos as f64 / 1e6).collect(),
            None => Vec::new(),
        };
        // What a new server spent cannot be told from what the old one did.
        let whole = self.workload.event() != Some(Event::Replace) && requests > 0;
        Sample {
            mechanism,
            repetition: 0,
            position: 0,
            requests,
            rate: requests as f64 / self.duration.as_secs_f64(),
            latency: Quantiles::of(&seen.latency),
            curve: curve(&seen.latency),
            accept: Quantiles::of(&accepts(tallies)),
            flows: flows(tallies),
            chosen_remote: chosen_remote(tallies),
            cpu_us: whole.then(|| machine.ran.as_secs_f64() * 1e6 / requests as f64),
            napi_seconds: machine.napi.as_secs_f64(),
            errors: seen.errors.clone(),
            unanswered: seen.unanswered,
            stuck: seen.stuck + seen.unanswered,
            settled_seconds: event.and_then(|at| settled(&slowest_ms, at)),
            slowest_ms,
            steal: machine.steal,
        }
    }
}

fn accepts(tallies: &[Tally]) -> Histogram<u64> {
    let mut all = new_histogram();
    for &(value, count) in tallies.iter().flat_map(|tally| &tally.accept) {
        all.saturating_record_n(value, count);
    }
    all
}

/// As [`Sample::remote`], by what our program counted.
fn chosen_remote(tallies: &[Tally]) -> Option<f64> {
    let chosen =
        || tallies.iter().flat_map(|it| it.chosen.iter().map(|(&cpu, &n)| (cpu, it.cpu, n)));
    let all: u64 = chosen().map(|it| it.2).sum();
    let remote: u64 = chosen().filter(|it| it.0 != it.1).map(|it| it.2).sum();
    (all > 0).then(|| remote as f64 / all as f64)
}

fn flows(tallies: &[Tally]) -> Vec<Flow> {
    let mut flows: BTreeMap<(Cpu, Cpu), u64> = BTreeMap::new();
    for tally in tallies {
        for (&received, &count) in &tally.received {
            *flows.entry((received, tally.cpu)).or_default() += count;
        }
    }
    let flow = |((received, served), count)| Flow { received, served, count };
    flows.into_iter().map(flow).collect()
}
