//! How long it takes to steer a server that runs, to let go of it, and to notice that it has changed.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bench::agent::Spilling;
use crate::bench::interrupt::Interrupt;
use crate::bench::mechanism::Mechanism;
use crate::bench::protocol::Command;
use crate::bench::record;
use crate::bench::server::Server;
use crate::bench::topology::Scene;
use crate::bench::{BenchError, BenchOptions};
use crate::discover::{NetnsChoice, Target};
use crate::measure::{Estimate, Rng};
use crate::steer::{AttachOptions, Settings, SteerError, attach, detach};
use crate::sys::netns;

/// Longest wait for the agent to notice a change.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two changes, and how much longer at most.
const APART: Duration = Duration::from_millis(100);
const SPREAD: Duration = Duration::from_millis(100);

/// Where it is measured.
pub(super) struct Attaching<'a> {
    pub(super) settings: &'a record::Settings,
    pub(super) options: &'a BenchOptions,
    pub(super) scene: &'a Scene,
    pub(super) interrupt: &'a Interrupt,
}

impl Attaching<'_> {
    fn rounds(&self) -> usize {
        if self.settings.quick { 3 } else { 20 }
    }

    /// A server that knows nothing of steering, on a port or on any.
    fn serve(&self, port: u16) -> Result<Server, BenchError> {
        let listen = Command::Listen {
            mechanism: Mechanism::Hash,
            address: SocketAddr::new(self.scene.address, port),
            udp: false,
            cpus: self.settings.cpus.clone(),
            bpffs: self.options.bpffs.clone(),
        };
        Server::start(&self.options.server, self.scene, &listen)
    }

    fn target(server: &Server) -> Target {
        let target = Target::tcp(server.address.port());
        Target { netns: NetnsChoice::Path(netns::OWN.into()), ..target }
    }

    fn steering(&self) -> Settings {
        Settings { bpffs: self.options.bpffs.clone(), ..Settings::default() }
    }

    /// Milliseconds of the verbs `attach` and `detach`.
    pub(super) fn measure(&self, rng: &mut Rng) -> Result<(Estimate, Estimate), BenchError> {
        let server = self.serve(0)?;
        let (target, settings) = (Self::target(&server), self.steering());
        let options =
            AttachOptions { settings: settings.clone(), ..AttachOptions::new(target.clone()) };
        let (mut on, mut off) = (Vec::new(), Vec::new());
        let work = || -> Result<(), SteerError> {
            for _ in 0..self.rounds() {
                let began = Instant::now();
                attach(&options)?;
                on.push(milliseconds(began.elapsed()));
                let began = Instant::now();
                detach(&target, &settings)?;
                off.push(milliseconds(began.elapsed()));
                if self.interrupt.check().is_err() {
                    break;
                }
            }
            Ok(())
        };
        self.scene.inside(work)?.map_err(|error| failed("attach and detach", &error))?;
        self.interrupt.check()?;
        let estimates = Estimate::of(&on, rng).zip(Estimate::of(&off, rng));
        estimates.ok_or_else(|| failed("attach and detach", &"nothing was measured"))
    }

    /// Milliseconds from listeners that came or went until the agent has steered what is there, by
    /// its own account.
    pub(super) fn healing(&self, rng: &mut Rng) -> Result<Option<Estimate>, BenchError> {
        let server = self.serve(0)?;
        let (target, settings) = (Self::target(&server), self.steering());
        let spilling = Spilling::start(self.scene, server.address, &self.options.bpffs)?;
        let healed = self.heal(&server, &spilling, rng);
        let stopped = spilling.stop();
        let detached = self.scene.inside(|| detach(&target, &settings))?;
        let times = healed?;
        stopped?;
        detached.map_err(|error| failed("detach", &error))?;
        Ok(Estimate::of(&times, rng))
    }

    /// Has as many workers again come and go.
    fn heal(
        &self,
        server: &Server,
        agent: &Spilling,
        rng: &mut Rng,
    ) -> Result<Vec<f64>, BenchError> {
        let mut times = Vec::new();
        for _ in 0..self.rounds() {
            // Not in step with the agent, who takes changes that come soon after one another together.
            let mut pause = || sleep(APART + SPREAD.mul_f64(rng.f64()));
            pause();
            let before = agent.heals();
            let more = self.serve(server.address.port())?;
            let came = self.noticed(agent, before)?;
            pause();
            let before = agent.heals();
            drop(more);
            let went = self.noticed(agent, before)?;
            if came.or(went).is_none() && times.is_empty() {
                return Ok(times);
            }
            // As long as it was waited for, and it is not over.
            times.extend([came, went].map(|it| it.unwrap_or(milliseconds(PATIENCE))));
        }
        Ok(times)
    }

    /// What the next change took, where there is one in time.
    fn noticed(
        &self,
        agent: &Spilling,
        (count, sum): (u64, Duration),
    ) -> Result<Option<f64>, BenchError> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.interrupt.check()?;
            let (now, total) = agent.heals();
            if now > count {
                return Ok(Some(milliseconds(total.saturating_sub(sum)) / (now - count) as f64));
            }
            sleep(Duration::from_millis(1));
        }
        Ok(None)
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> BenchError {
    BenchError::Unavailable(format!("{what}: {error}"))
}
