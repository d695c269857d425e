//! The agent, in a thread: what spills from workers that hang or are overloaded.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{ServeError, during};
use crate::agent::{Agent, AgentOptions, Goal, Order, Shared, Stage, Supervisor};
use crate::discover::{NetnsChoice, Target};
use crate::steer::attach::AttachOptions;
use crate::steer::{Settings, SteerError};
use crate::sys::netns;

/// Longest that it may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent at work.
pub(in crate::bench) struct Spilling {
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), SteerError>>>,
}

impl Spilling {
    /// Returns when it keeps the group.
    pub(in crate::bench) fn start(address: SocketAddr, bpffs: &Path) -> Result<Self, ServeError> {
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
        let thread = std::thread::Builder::new().name("agent".into());
        let thread = thread.spawn(move || agent.run(&mut master));
        let thread = Some(thread.map_err(during("start the agent"))?);
        let mut spilling = Self { stop, shared, thread };
        match ready.recv_timeout(PATIENCE) {
            Ok(()) => Ok(spilling),
            Err(RecvTimeoutError::Timeout) => {
                Err(ServeError::Agent(format!("not ready within {PATIENCE:?}")))
            }
            Err(RecvTimeoutError::Disconnected) => {
                spilling.end()?;
                Err(ServeError::Agent("it ended before it was ready".to_owned()))
            }
        }
    }

    /// How often it has noticed that listeners came or went, and what that took together until they
    /// were steered.
    pub(in crate::bench) fn heals(&self) -> (u64, Duration) {
        let state = self.shared.state();
        state.groups.first().map_or((0, Duration::ZERO), |it| (it.latency.count, it.latency.sum))
    }

    pub(super) fn check(&mut self) -> Result<(), ServeError> {
        match &self.thread {
            Some(thread) if thread.is_finished() => {
                self.end()?;
                Err(ServeError::Agent("it ended by itself".to_owned()))
            }
            _ => Ok(()),
        }
    }

    pub(in crate::bench) fn stop(mut self) -> Result<(), ServeError> {
        self.stop.store(true, Ordering::Relaxed);
        self.shared.waker.wake();
        self.end()
    }

    fn end(&mut self) -> Result<(), ServeError> {
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(ServeError::Agent(error.to_string())),
            Some(Err(_)) => Err(ServeError::Panicked),
        }
    }
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
