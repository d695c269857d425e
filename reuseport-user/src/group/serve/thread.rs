//! A worker's thread: pinned, with a runtime of its own.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::LocalSet;

use super::stop::{Phase, Stop};
use super::{Failure, Served, Worker};

/// What a thread tells the supervisor.
#[derive(Debug)]
pub(super) enum Event {
    /// Its runtime is up, and its service made.
    Ready,
    /// It is over, for worker `index`.
    Ended { index: usize, outcome: Result<Served, Failure> },
}

/// The whole life of a worker's thread.
pub(super) fn live<F>(
    worker: Worker,
    stop: Stop,
    events: &UnboundedSender<Event>,
    main: &impl Fn(Worker, Stop) -> F,
) where
    F: Future<Output = Result<Served, Failure>>,
{
    let index = worker.index();
    let alive = || run(worker, stop, events, main);
    let outcome = catch_unwind(AssertUnwindSafe(alive))
        .unwrap_or_else(|panic| Err(Failure::Panicked(message(&*panic))));
    // Nobody listens any more where the supervisor itself panicked.
    let _nobody = events.send(Event::Ended { index, outcome });
}

fn run<F>(
    worker: Worker,
    stop: Stop,
    events: &UnboundedSender<Event>,
    main: &impl Fn(Worker, Stop) -> F,
) -> Result<Served, Failure>
where
    F: Future<Output = Result<Served, Failure>>,
{
    worker.pin().map_err(Failure::Pin)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?;
    // Dropped before the runtime: what is left of its tasks ends within it.
    let tasks = LocalSet::new();
    let aborted = stop.reached(Phase::Abort);
    // It may have been announced after `main` looked last: that gets one more look.
    let aborted = async {
        aborted.await;
        tokio::task::yield_now().await;
    };
    let work = async {
        let mut main = pin!(main(worker, stop));
        // Up to where it first waits: its service is made then, and its sockets registered.
        if let Poll::Ready(outcome) = poll_fn(|it| Poll::Ready(main.as_mut().poll(it))).await {
            return outcome;
        }
        let _nobody = events.send(Event::Ready);
        tokio::select! {
            biased;
            outcome = main => outcome,
            () = aborted => Ok(Served::default()),
        }
    };
    runtime.block_on(tasks.run_until(work))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
