//! When a copy is started, steered to, replaced and told to end. Pure: events and the time go in,
//! actions come out; the driver carries them out.
//!
//! The first copy is started alone, so that a program that cannot be steered is found out before
//! there are more of it; then the others, together. Once all listen, they are steered, and from then
//! on whoever dies is started again. One way leads to every steering: `stale` says that what is in
//! force is not what should be, and one plan at a time is asked for.

use std::time::{Duration, Instant};

mod lifecycle;
mod note;
mod roll;
#[cfg(test)]
mod tests;

pub(crate) use note::{End, Fatal, Note};

/// A copy that served for as long begins anew with restarts. Arbitrary: longer than what a program
/// takes to fail over a bad configuration or a lost database.
const STABLE: Duration = Duration::from_secs(10);
/// Pause before the first restart; doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Pause before steering that failed is tried again.
const STEER_AGAIN: Duration = Duration::from_secs(5);

/// How patient it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Longest from start to listening.
    pub(crate) listen_timeout: Duration,
    /// Longest that a replaced copy keeps connections before it is told to end.
    pub(crate) drain_timeout: Duration,
    /// Longest from being told to end to being killed.
    pub(crate) stop_timeout: Duration,
    /// Restarts of one worker in a row that are not too many.
    pub(crate) max_restarts: u32,
    /// Whether listeners are ours and outlive the copy they were given to.
    pub(crate) keeps_listeners: bool,
    /// A random number from 0 to 1.
    pub(crate) jitter: fn() -> f64,
}

/// One run of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instance {
    /// Which worker it is.
    pub(crate) seat: usize,
    /// Counts all starts.
    pub(crate) launch: u32,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It was seen to listen (or to accept from the listener it was given).
    Listening(Instance),
    /// It ended or could not be started.
    Ended(Instance, End),
    /// The steering that was asked for is in force, or failed.
    Steered(bool),
    /// A copy that was steered away from has nothing left to do.
    Drained(Instance),
    /// All shall end, told so by this signal.
    Stop(i32),
    /// The first copy cannot be steered; why is the driver's to tell.
    Unfit,
    /// Each copy shall be replaced.
    Roll,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start it; with the listener of this one where it left one.
    Start(Instance, Option<Instance>),
    /// Steer to all that listen but these.
    Steer { away: Vec<Instance> },
    /// Send it a signal.
    Signal(Instance, i32),
    /// Kill it and what it started.
    Kill(Instance),
    /// Tell people.
    Tell(Note),
    /// Nothing is left: end with this.
    Finish(Result<(), Fatal>),
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Must listen by then.
    Starting { by: Instant },
    /// Listens, and steering does not know of it.
    Listening,
    /// Is steered to.
    Serving,
    /// Is to be steered away from; once it is, must have finished by then.
    Retiring { by: Option<Instant> },
    /// Was told to end; is killed then, if it was not yet.
    Ending { kill_at: Option<Instant>, because: Because },
}

/// Why a copy was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Because {
    NeverListened,
    Replaced,
    Unwanted,
}

/// A copy.
#[derive(Clone, Copy, Debug)]
struct Running {
    instance: Instance,
    stage: Stage,
    /// How many rolling restarts had been asked for when it started.
    epoch: u32,
    /// Since when it serves.
    since: Option<Instant>,
}

/// One worker: a copy, or two while one replaces the other, older first.
#[derive(Clone, Debug, Default)]
struct Seat {
    running: Vec<Running>,
    /// Whose listener is kept for the next copy.
    kept: Option<Instance>,
    /// Deaths in a row.
    failures: u32,
    restart_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Up,
    Stopping(Result<(), Fatal>),
    Done,
}

/// What a steering under way covers.
#[derive(Clone, Debug)]
struct UnderWay {
    to: Vec<Instance>,
    away: Vec<Instance>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervisor {
    rules: Rules,
    seats: Vec<Seat>,
    phase: Phase,
    launches: u32,
    epoch: u32,
    rolling: bool,
    stale: bool,
    under_way: Option<UnderWay>,
    steer_at: Option<Instant>,
    actions: Vec<Action>,
}

impl Supervisor {
    /// With nothing started; the first [`Supervisor::tick`] starts.
    pub(crate) fn new(seats: usize, rules: Rules) -> Self {
        Self {
            rules,
            seats: vec![Seat::default(); seats],
            phase: Phase::Starting,
            launches: 0,
            epoch: 0,
            rolling: false,
            stale: false,
            under_way: None,
            steer_at: None,
            actions: Vec::new(),
        }
    }

    /// Takes note of an event.
    pub(crate) fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Listening(instance) => self.listening(instance),
            Event::Ended(instance, end) => self.ended(now, instance, end),
            Event::Steered(done) => self.steered(now, done),
            Event::Drained(instance) => self.drained(now, instance),
            Event::Stop(signal) => self.stop(now, signal),
            Event::Unfit => self.fatal(now, Fatal::Unfit),
            Event::Roll => self.ask_for_roll(),
        }
        self.tick(now)
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Action> {
        self.expire(now);
        match self.phase {
            Phase::Starting => self.start_up(now),
            Phase::Up => {
                self.restart(now);
                self.roll(now);
                self.steer(now);
            }
            Phase::Stopping(outcome) if self.all().next().is_none() => {
                self.phase = Phase::Done;
                self.actions.push(Action::Finish(outcome));
            }
            Phase::Stopping(_) | Phase::Done => {}
        }
        std::mem::take(&mut self.actions)
    }

    /// When [`Supervisor::tick`] is due next, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let stages = self.all().filter_map(|it| match it.stage {
            Stage::Starting { by } => Some(by),
            Stage::Retiring { by } => by,
            Stage::Ending { kill_at, .. } => kill_at,
            Stage::Listening | Stage::Serving => None,
        });
        let restarts = self.seats.iter().filter_map(|seat| seat.restart_at);
        stages.chain(restarts).chain(self.steer_at).min()
    }

    /// Copies that are to be watched until they listen.
    pub(crate) fn starting(&self) -> Vec<Instance> {
        self.where_stage(|stage| matches!(stage, Stage::Starting { .. }))
    }

    /// Copies that are steered away from, to be watched until they are drained.
    pub(crate) fn retiring(&self) -> Vec<Instance> {
        self.where_stage(|stage| matches!(stage, Stage::Retiring { by: Some(_) }))
    }

    /// Whether `instance` was told to end, and its time for that is not over.
    pub(crate) fn has_time(&self, instance: Instance) -> bool {
        let has_time = |stage| matches!(stage, Stage::Ending { kill_at: Some(_), .. });
        self.all().any(|it| it.instance == instance && has_time(it.stage))
    }

    /// Whether the listener given to `instance` is still of use.
    pub(crate) fn keeps(&self, instance: Instance) -> bool {
        self.all().any(|it| it.instance == instance)
            || self.seats.iter().any(|seat| seat.kept == Some(instance))
    }

    /// Whether all were up once and none was told to end since.
    pub(crate) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    fn all(&self) -> impl Iterator<Item = &Running> {
        self.seats.iter().flat_map(|seat| &seat.running)
    }

    fn where_stage(&self, fits: impl Fn(Stage) -> bool) -> Vec<Instance> {
        self.all().filter(|it| fits(it.stage)).map(|it| it.instance).collect()
    }

    fn find(&mut self, instance: Instance) -> Option<&mut Running> {
        let seat = self.seats.get_mut(instance.seat)?;
        seat.running.iter_mut().find(|it| it.instance == instance)
    }

    fn tell(&mut self, note: Note) {
        self.actions.push(Action::Tell(note));
    }

    /// Copies that new connections should go to, and listeners that they should not go to.
    fn wanted(&self) -> UnderWay {
        let keeps = self.rules.keeps_listeners;
        let to = self.where_stage(|stage| matches!(stage, Stage::Listening | Stage::Serving));
        let mut away = self.where_stage(|stage| match stage {
            Stage::Retiring { .. } | Stage::Ending { .. } => true,
            // It was given one, which listens before it does.
            Stage::Starting { .. } => keeps,
            Stage::Listening | Stage::Serving => false,
        });
        away.extend(self.seats.iter().filter_map(|seat| seat.kept));
        UnderWay { to, away }
    }

    /// Asks for steering where what is in force is not what should be.
    fn steer(&mut self, now: Instant) {
        if !self.stale || self.under_way.is_some() || self.steer_at.is_some_and(|at| at > now) {
            return;
        }
        (self.stale, self.steer_at) = (false, None);
        let wanted = self.wanted();
        if wanted.to.is_empty() {
            // Whoever comes next makes it stale again.
            return;
        }
        let away = wanted.away.clone();
        // There is nothing to choose between. But a listener that we open for the next copy listens
        // before that does, and gets nothing only where the one that is there is steered to.
        let alone = wanted.to.len() + away.len() < 2 && !self.rules.keeps_listeners;
        self.under_way = Some(wanted);
        if alone {
            self.steered(now, true);
        } else {
            self.actions.push(Action::Steer { away });
        }
    }

    fn steered(&mut self, now: Instant, done: bool) {
        let Some(UnderWay { to, away }) = self.under_way.take() else { return };
        if !done {
            return self.steering_failed(now);
        }
        for instance in to {
            if let Some(it) = self.find(instance)
                && it.stage == Stage::Listening
            {
                (it.stage, it.since) = (Stage::Serving, Some(now));
            }
        }
        let by = Some(now + self.rules.drain_timeout);
        for instance in away {
            if let Some(it) = self.find(instance)
                && it.stage == (Stage::Retiring { by: None })
            {
                it.stage = Stage::Retiring { by };
            }
        }
    }

    fn steering_failed(&mut self, now: Instant) {
        match self.phase {
            Phase::Starting => self.fatal(now, Fatal::Steering),
            Phase::Up => {
                (self.stale, self.steer_at) = (true, Some(now + STEER_AGAIN));
                self.roll_cannot_steer(now);
            }
            Phase::Stopping(_) | Phase::Done => {}
        }
    }
}
