//! One copy's way from start to end, and what follows from each end.

use std::time::{Duration, Instant};

use super::{
    Action, Because, End, FIRST_PAUSE, Fatal, Instance, LONGEST_PAUSE, Note, Phase, Running,
    STABLE, Stage, Supervisor,
};

impl Supervisor {
    /// Starts one more copy of a worker.
    pub(super) fn start(&mut self, now: Instant, seat: usize) {
        let instance = Instance { seat, launch: self.launches };
        self.launches += 1;
        let stage = Stage::Starting { by: now + self.rules.listen_timeout };
        let running = Running { instance, stage, epoch: self.epoch, since: None };
        self.seats[seat].running.push(running);
        self.seats[seat].restart_at = None;
        let left = self.seats[seat].kept.take();
        self.actions.push(Action::Start(instance, left));
    }

    /// The first copy, then the others, then steering.
    pub(super) fn start_up(&mut self, now: Instant) {
        match self.seats[0].running.first().map(|it| it.stage) {
            None => self.start(now, 0),
            Some(Stage::Listening) => {
                for seat in 1..self.seats.len() {
                    if self.seats[seat].running.is_empty() {
                        self.start(now, seat);
                    }
                }
            }
            Some(_) => {}
        }
        let all = |stage| self.all().filter(|it| it.stage == stage).count() == self.seats.len();
        if all(Stage::Listening) {
            self.steer(now);
        }
        let all = |stage| self.all().filter(|it| it.stage == stage).count() == self.seats.len();
        if all(Stage::Serving) {
            self.phase = Phase::Up;
            self.tell(Note::Up);
        }
    }

    /// Starts whose pause is over.
    pub(super) fn restart(&mut self, now: Instant) {
        for seat in 0..self.seats.len() {
            if self.seats[seat].restart_at.is_some_and(|at| at <= now) {
                self.start(now, seat);
            }
        }
    }

    pub(super) fn listening(&mut self, instance: Instance) {
        if let Some(it) = self.find(instance)
            && matches!(it.stage, Stage::Starting { .. })
        {
            it.stage = Stage::Listening;
            self.stale = true;
        }
    }

    pub(super) fn drained(&mut self, now: Instant, instance: Instance) {
        if self.retiring().contains(&instance) {
            self.end(now, instance, Because::Replaced);
        }
    }

    /// Tells a copy to end.
    pub(super) fn end(&mut self, now: Instant, instance: Instance, because: Because) {
        let kill_at = Some(now + self.rules.stop_timeout);
        if let Some(it) = self.find(instance) {
            it.stage = Stage::Ending { kill_at, because };
            self.actions.push(Action::Signal(instance, libc::SIGTERM));
        }
    }

    /// Deals with whoever's time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        let all: Vec<Running> = self.all().copied().collect();
        for Running { instance, stage, .. } in all {
            match stage {
                Stage::Starting { by } if by <= now && self.phase == Phase::Starting => {
                    self.fatal(now, Fatal::NeverListened(instance));
                }
                Stage::Starting { by } if by <= now => {
                    self.tell(Note::NeverListened(instance));
                    self.end(now, instance, Because::NeverListened);
                }
                Stage::Retiring { by: Some(by) } if by <= now => {
                    self.tell(Note::StillBusy(instance));
                    self.end(now, instance, Because::Replaced);
                }
                Stage::Ending { kill_at: Some(at), because } if at <= now => {
                    self.tell(Note::Killed(instance));
                    self.kill(instance, because);
                }
                _ => {}
            }
        }
    }

    fn kill(&mut self, instance: Instance, because: Because) {
        if let Some(it) = self.find(instance) {
            it.stage = Stage::Ending { kill_at: None, because };
            self.actions.push(Action::Kill(instance));
        }
    }

    /// A copy is no more.
    pub(super) fn ended(&mut self, now: Instant, instance: Instance, end: End) {
        let Some(seat) = self.seats.get_mut(instance.seat) else { return };
        let Some(place) = seat.running.iter().position(|it| it.instance == instance) else {
            return;
        };
        let gone = seat.running.remove(place);
        let other = seat.running.first().copied();
        if self.rules.keeps_listeners && other.is_none() {
            seat.kept = Some(instance);
        }
        self.stale = true;
        match (self.phase, other) {
            (Phase::Starting, _) => self.fatal(now, Fatal::EndedAtOnce(instance, end)),
            (Phase::Up, None) => self.died(now, &gone, end),
            (Phase::Up, Some(other)) if other.instance < instance => {
                self.new_copy_ended(&gone, end);
            }
            // The old one, before it was told to.
            (Phase::Up, Some(_)) if !matches!(gone.stage, Stage::Ending { .. }) => {
                self.tell(Note::EndedEarly(instance, end));
            }
            (Phase::Up | Phase::Stopping(_) | Phase::Done, _) => {}
        }
    }

    /// Nobody is left of a worker: a new copy after a pause, unless that was too often.
    fn died(&mut self, now: Instant, gone: &Running, end: End) {
        let seat = &mut self.seats[gone.instance.seat];
        if gone.since.is_some_and(|since| now.saturating_duration_since(since) >= STABLE) {
            seat.failures = 0;
        }
        seat.failures += 1;
        if seat.failures > self.rules.max_restarts {
            return self.fatal(now, Fatal::CrashLoop(gone.instance, end));
        }
        let pause = pause(seat.failures, (self.rules.jitter)());
        seat.restart_at = Some(now + pause);
        self.tell(Note::Restarting(gone.instance, end, pause));
    }

    /// Ends everything. The first reason counts.
    pub(super) fn fatal(&mut self, now: Instant, fatal: Fatal) {
        if matches!(self.phase, Phase::Starting | Phase::Up) {
            self.wind_up(now, Err(fatal), libc::SIGTERM);
        }
    }

    /// All shall end; asked twice, at once.
    pub(super) fn stop(&mut self, now: Instant, signal: i32) {
        match self.phase {
            Phase::Starting | Phase::Up => {
                self.tell(Note::Stopping(signal));
                self.wind_up(now, Ok(()), signal);
            }
            Phase::Stopping(_) => {
                for instance in self.where_stage(|_| true) {
                    self.kill(instance, Because::Unwanted);
                }
            }
            Phase::Done => {}
        }
    }

    fn wind_up(&mut self, now: Instant, outcome: Result<(), Fatal>, signal: i32) {
        self.phase = Phase::Stopping(outcome);
        let kill_at = Some(now + self.rules.stop_timeout);
        for seat in &mut self.seats {
            (seat.restart_at, seat.kept) = (None, None);
            for it in &mut seat.running {
                if !matches!(it.stage, Stage::Ending { .. }) {
                    it.stage = Stage::Ending { kill_at, because: Because::Unwanted };
                    self.actions.push(Action::Signal(it.instance, signal));
                }
            }
        }
    }
}

/// Pause before a restart, after that many deaths in a row: doubled each time, and up to a fifth
/// more or less, so that workers that died together do not come back together.
pub(super) fn pause(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE).mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))
}
