//! How far the end has come, told to every core.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

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
        let (now, mut later) = (self.0.clone(), self.0.clone());
        async move {
            let mut told = pin!(later.wait_for(|now| *now >= phase));
            // The channel wakes one waiter after the other: who was woken for something else in
            // between would be told an old phase.
            poll_fn(|context| {
                if *now.borrow() >= phase {
                    Poll::Ready(())
                } else {
                    told.as_mut().poll(context).map(|_ended_too| ())
                }
            })
            .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_phase_is_seen_by_who_was_not_woken_for_it() {
        let (phases, phase) = watch::channel(Phase::default());
        let mut aborted = pin!(Stop::new(phase).reached(Phase::Abort));
        let mut context = Context::from_waker(Waker::noop());
        assert!(aborted.as_mut().poll(&mut context).is_pending());
        phases.send_if_modified(|phase| {
            *phase = Phase::Abort;
            false
        });
        assert!(aborted.as_mut().poll(&mut context).is_ready());
    }
}
