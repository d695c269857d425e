//! From the first thread to the last: start, wait, and the orderly end.

use std::future::{Future, pending};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::stop::{Phase, Stop};
use super::thread::{Event, live};
use super::{CoreReport, Failure, Reason, Report, ServeError, Served, Server};
use crate::group::Group;
use crate::model::Cpu;

/// Longest that handshakes under way are waited for: a SYN-ACK that was lost is sent again after one
/// second and after three. Somebody who only scans never ends his.
const UNDER_WAY: Duration = Duration::from_millis(3500);
/// How often it is looked whether queues are empty, while all wait for that.
const LOOK: Duration = Duration::from_millis(20);
/// How often it is looked whether a newer process has taken over. Nobody waits for that: connections
/// go to the newer one already.
const LOOK_FOR_NEWER: Duration = Duration::from_millis(100);
/// How long after a takeover that failed it is tried again. Nobody is without service meanwhile.
const TRY_AGAIN: Duration = Duration::from_secs(5);

impl Server {
    /// Runs `main` on a thread for each worker, to the end of all.
    pub(super) fn execute<F>(
        mut self,
        main: &(impl Fn(super::Worker, Stop) -> F + Sync),
    ) -> Result<Report, ServeError>
    where
        F: Future<Output = Result<Served, Failure>>,
    {
        if Handle::try_current().is_ok() {
            return Err(ServeError::InsideRuntime);
        }
        let workers = self.group.take_workers();
        if workers.is_empty() {
            return Err(ServeError::NoWorkers);
        }
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| ServeError::Start { what: "the supervisor".to_owned(), source })?;
        let (phases, phase) = watch::channel(Phase::default());
        let (events, inbox) = unbounded_channel();
        let cpus = workers.iter().map(super::Worker::cpu).collect();
        let mut supervisor = Supervisor { phases, inbox, outcomes: Outcomes::new(cpus) };
        thread::scope(|scope| {
            let mut started = Ok(());
            for worker in workers {
                let (index, cpu) = (worker.index(), worker.cpu());
                let name = format!("{}/{cpu}", self.name);
                let (stop, events) = (Stop::new(phase.clone()), events.clone());
                let life = move || live(worker, stop, &events, main);
                if let Err(source) = thread::Builder::new().name(name).spawn_scoped(scope, life) {
                    let what = format!("the thread of CPU {cpu}");
                    started = Err(ServeError::Start { what, source });
                    supervisor.outcomes.never_began(index);
                }
            }
            drop(events);
            runtime.block_on(supervisor.run(&mut self, started))
        })
    }
}

/// Watches over the threads.
struct Supervisor {
    phases: watch::Sender<Phase>,
    inbox: UnboundedReceiver<Event>,
    outcomes: Outcomes,
}

impl Supervisor {
    async fn run(
        mut self,
        server: &mut Server,
        started: Result<(), ServeError>,
    ) -> Result<Report, ServeError> {
        let began = match started {
            Ok(()) => self.serve(server).await,
            Err(error) => Err(error),
        };
        self.end(&mut server.group, server.drain).await;
        // What made it end is told, before what went wrong because of that.
        let reason = began?;
        Ok(Report { reason, cores: self.outcomes.reports()? })
    }

    /// Until there is a reason to end.
    async fn serve(&mut self, server: &mut Server) -> Result<Reason, ServeError> {
        let mut asked = match server.until.take() {
            Some(stop) => stop,
            None => Box::pin(signals()?),
        };
        while self.outcomes.ready < self.outcomes.running() {
            tokio::select! {
                biased;
                () = &mut asked => return Ok(Reason::Asked),
                heard = self.hear() => heard?,
            }
        }
        let superseded = async {
            // Not before: who is taken over from must not be let go for one that cannot serve.
            take_over(&mut server.group).await;
            superseded(&server.group, server.until_superseded).await;
        };
        tokio::select! {
            () = asked => Ok(Reason::Asked),
            () = superseded => Ok(Reason::Superseded),
            failed = self.failure() => Err(failed),
        }
    }

    /// Steers away, drains, closes; joins all that can be joined in time, and cuts off the rest.
    async fn end(&mut self, group: &mut Group, limit: Duration) {
        let end = Instant::now() + limit;
        // Where steering cannot be changed, the end is as without it: the queues are emptied.
        let away = group.steer_away().unwrap_or_else(|error| {
            warn!("connections are not steered away before the end: {error}");
            false
        });
        if away {
            let deadline = end.min(Instant::now() + UNDER_WAY);
            // What cannot be seen is not waited for.
            let mut drained = || group.is_drained().unwrap_or(true);
            while self.outcomes.running() > 0 && Instant::now() < deadline && !drained() {
                // A worker may end meanwhile, and takes its queue with it.
                let _heard = timeout_at(Instant::now() + LOOK, self.hear()).await;
            }
        }
        // What is left then, the next one puts right.
        let _left = group.leave_inherited();
        for (phase, until) in [(Phase::Stop, Some(end)), (Phase::Abort, None)] {
            // Refused where everybody has ended.
            let _nobody = self.phases.send(phase);
            while self.outcomes.running() > 0 {
                let heard = match until {
                    Some(deadline) => timeout_at(deadline, self.hear()).await,
                    None => Ok(self.hear().await),
                };
                if heard.is_err() {
                    break;
                }
            }
        }
    }

    /// Waits for a worker to end before it was asked to.
    async fn failure(&mut self) -> ServeError {
        loop {
            if let Err(error) = self.hear().await {
                return error;
            }
        }
    }

    /// Takes one event down. An end is an error, unless it was asked for.
    async fn hear(&mut self) -> Result<(), ServeError> {
        match self.inbox.recv().await {
            // All ended, and were heard.
            None => pending().await,
            Some(Event::Ready) => {
                self.outcomes.ready += 1;
                Ok(())
            }
            Some(Event::Ended { index, outcome }) => {
                let asked = *self.phases.borrow() >= Phase::Stop;
                self.outcomes.ended(index, outcome, asked)
            }
        }
    }
}

/// What came of each worker.
struct Outcomes {
    cpus: Vec<Cpu>,
    ready: usize,
    ended: Vec<Option<Served>>,
    /// The first that went wrong after the end was asked for.
    failed: Option<ServeError>,
}

impl Outcomes {
    fn new(cpus: Vec<Cpu>) -> Self {
        let ended = vec![None; cpus.len()];
        Self { cpus, ready: 0, ended, failed: None }
    }

    fn running(&self) -> usize {
        self.ended.iter().filter(|ended| ended.is_none()).count()
    }

    fn never_began(&mut self, index: usize) {
        if let Some(ended) = self.ended.get_mut(index) {
            *ended = Some(Served::default());
        }
    }

    fn ended(
        &mut self,
        index: usize,
        outcome: Result<Served, Failure>,
        asked: bool,
    ) -> Result<(), ServeError> {
        let (Some(&cpu), Some(ended)) = (self.cpus.get(index), self.ended.get_mut(index)) else {
            return Ok(());
        };
        *ended = Some(Served::default());
        match outcome {
            Ok(served) if asked => *ended = Some(served),
            Ok(_) => return Err(ServeError::EndedEarly { cpu }),
            Err(failure) if asked => {
                self.failed.get_or_insert(ServeError::of(cpu, failure));
            }
            Err(failure) => return Err(ServeError::of(cpu, failure)),
        }
        Ok(())
    }

    fn reports(self) -> Result<Vec<CoreReport>, ServeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let report = |(cpu, served): (Cpu, Option<Served>)| {
            let Served { served, cut_off } = served.unwrap_or_default();
            CoreReport { cpu, served, cut_off }
        };
        Ok(self.cpus.into_iter().zip(self.ended).map(report).collect())
    }
}

/// SIGTERM or SIGINT.
fn signals() -> Result<impl Future<Output = ()>, ServeError> {
    let listen = |kind| {
        let what = || "waiting for signals".to_owned();
        signal(kind).map_err(|source| ServeError::Start { what: what(), source })
    };
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Takes over where an older process is to be taken over from. It serves on until that can be done.
async fn take_over(group: &mut Group) {
    while group.waits()
        && let Err(error) = group.take_over()
    {
        warn!("the older process serves on until this one can take over: {error}");
        sleep(TRY_AGAIN).await;
    }
}

/// Until a newer process has taken over, if that is to be looked at.
async fn superseded(group: &Group, look: bool) {
    if !look {
        return pending().await;
    }
    while !group.is_superseded() {
        sleep(LOOK_FOR_NEWER).await;
    }
}
