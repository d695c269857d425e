//! The agent, in a thread of the bench: what spills from workers that hang or are overloaded. Beside the
//! server, as it runs elsewhere, so that it outlives a server that is replaced.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::BenchError;
use super::topology::Scene;
use crate::agent::{Agent, AgentOptions, Goal, Order, Shared, Stage, Supervisor};
use crate::discover::{NetnsChoice, Target};
use crate::model::Pid;
use crate::steer::attach::AttachOptions;
use crate::steer::{Settings, SteerError};
use crate::sys::{netns, sched};

/// Longest that it may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent at work. Dropping it ends it.
pub(super) struct Spilling {
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), SteerError>>>,
    /// So that its time can be counted.
    pub(super) tid: Pid,
}

impl Spilling {
    /// Returns when it keeps the group.
    pub(super) fn start(
        scene: &Scene,
        address: SocketAddr,
        bpffs: &Path,
    ) -> Result<Self, BenchError> {
        scene.inside(|| Self::start_here(address, bpffs))?
    }

    fn start_here(address: SocketAddr, bpffs: &Path) -> Result<Self, BenchError> {
        let target = Target {
            addrs: vec![address.ip()],
            netns: NetnsChoice::Path(netns::OWN.into()),
            ..Target::tcp(address.port())
        };
        let settings = Settings { bpffs: bpffs.into(), ..Settings::default() };
        let attach = AttachOptions { settings, ..AttachOptions::new(target) };
        let agent = Agent::new(AgentOptions {
            goals: vec![Goal { attach, workers: Vec::new() }],
            interval: Duration::from_secs(1),
            generation_timeout: Duration::from_secs(10),
            detach_on_exit: false,
            spill: true,
            widen: true,
        })?;
        let (stop, shared) = (Arc::new(AtomicBool::new(false)), agent.shared());
        let (told, ready) = channel();
        let mut master = Master { stop: Arc::clone(&stop), ready: told };
        let (named, tid) = channel();
        let thread = std::thread::Builder::new().name("agent".into());
        let thread = thread.spawn(move || {
            let _waited_for = named.send(sched::thread_id());
            agent.run(&mut master)
        });
        let thread = Some(thread.map_err(|error| failed(&error))?);
        let tid = tid.recv().map_err(|error| failed(&error))?;
        let mut spilling = Self { stop, shared, thread, tid };
        match ready.recv_timeout(PATIENCE) {
            Ok(()) => Ok(spilling),
            Err(RecvTimeoutError::Timeout) => {
                Err(BenchError::Agent(format!("not ready within {PATIENCE:?}")))
            }
            Err(RecvTimeoutError::Disconnected) => {
                spilling.end()?;
                Err(BenchError::Agent("it ended before it was ready".to_owned()))
            }
        }
    }

    /// How often it has noticed that listeners came or went, and what that took together until they
    /// were steered.
    pub(super) fn heals(&self) -> (u64, Duration) {
        let state = self.shared.state();
        state.groups.first().map_or((0, Duration::ZERO), |it| (it.latency.count, it.latency.sum))
    }

    /// Ends it; fails where it had ended by itself.
    pub(super) fn stop(mut self) -> Result<(), BenchError> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.end()?;
            return Err(BenchError::Agent("it ended by itself".to_owned()));
        }
        self.end()
    }

    fn end(&mut self) -> Result<(), BenchError> {
        self.stop.store(true, Ordering::Relaxed);
        self.shared.waker.wake();
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(failed(&error)),
            Some(Err(_)) => Err(BenchError::Agent("it panicked".to_owned())),
        }
    }
}

impl Drop for Spilling {
    fn drop(&mut self) {
        // What failed before is told already.
        let _ended = self.end();
    }
}

fn failed(error: &dyn std::fmt::Display) -> BenchError {
    BenchError::Agent(error.to_string())
}

/// Whoever gives the agent its orders.
struct Master {
    stop: Arc<AtomicBool>,
    ready: Sender<()>,
}

impl Supervisor for Master {
    fn order(&mut self) -> Option<Order> {
        self.stop.load(Ordering::Relaxed).then_some(Order::Stop)
    }

    fn reload(&mut self) -> Result<AgentOptions, String> {
        Err("it has no configuration".to_owned())
    }

    fn tell(&mut self, stage: Stage) {
        if stage == Stage::Ready {
            // Nobody waits any more when it says so again.
            let _told = self.ready.send(());
        }
    }

    fn patience(&self) -> Option<Duration> {
        None
    }
}
