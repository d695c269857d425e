//! How far the end has come, told to every core.

use std::future::Future;

use tokio::sync::watch;

/// What a worker is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Everything.
    #[default]
    Serve,
    /// End: nothing new comes.
    Stop,
    /// Drop what is left.
    Abort,
}

/// Tells a service that its server ends: it should finish what it is at, and close.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<Phase>);

impl Stop {
    pub(super) fn new(phases: watch::Receiver<Phase>) -> Self {
        Self(phases)
    }

    /// Waits until the server ends. New connections go elsewhere by then, where anybody else serves.
    pub fn requested(&self) -> impl Future<Output = ()> + Send + 'static {
        self.reached(Phase::Stop)
    }

    /// Whether the server ends.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() >= Phase::Stop
    }

    /// Waits for a phase, or for the end of whoever announces them.
    pub(super) fn reached(
        &self,
        phase: Phase,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut phases = self.0.clone();
        async move {
            let _ended_too = phases.wait_for(|now| *now >= phase).await;
        }
    }
}
