//! Replacing one copy after the other, each new one before its old one.

use std::time::Instant;

use super::{Because, End, Note, Phase, Running, Seat, Stage, Supervisor};

impl Supervisor {
    /// Every copy that runs now shall be replaced; asked again meanwhile, those that were once more.
    pub(super) fn ask_for_roll(&mut self) {
        self.epoch += 1;
        if !self.rolling && matches!(self.phase, Phase::Starting | Phase::Up) {
            self.rolling = true;
            self.tell(Note::Rolling);
        }
    }

    /// The next step of a rolling restart.
    pub(super) fn roll(&mut self, now: Instant) {
        if !self.rolling {
            return;
        }
        if let Some(seat) = self.seats.iter_mut().find(|seat| seat.running.len() > 1) {
            if let [old, new] = seat.running.as_mut_slice()
                && matches!(old.stage, Stage::Serving | Stage::Listening)
                && new.stage == Stage::Listening
            {
                old.stage = Stage::Retiring { by: None };
                let new = new.instance;
                self.stale = true;
                self.tell(Note::Replacing(new));
            }
            return;
        }
        // Whoever is missing comes back first, and comes back new.
        let serves = |seat: &Seat| seat.running.iter().any(|it| it.stage == Stage::Serving);
        if !self.seats.iter().all(serves) {
            return;
        }
        let epoch = self.epoch;
        let is_old = |seat: &Seat| seat.running.iter().any(|it| it.epoch < epoch);
        if let Some(seat) = self.seats.iter().position(is_old) {
            self.start(now, seat);
        } else {
            self.rolling = false;
            self.tell(Note::Rolled);
        }
    }

    /// The new copy ended beside the old one.
    pub(super) fn new_copy_ended(&mut self, gone: &Running, end: End) {
        // What was told already need not be told again.
        if let Stage::Ending { because, .. } = gone.stage
            && because != Because::NeverListened
        {
            return;
        }
        let seat = gone.instance.seat;
        if matches!(self.seats[seat].running[0].stage, Stage::Ending { .. }) {
            // Too late: the old one was told to end. When it has, a new one is started.
            self.tell(Note::EndedEarly(gone.instance, end));
            return;
        }
        self.give_up(gone);
    }

    /// Steering fails: a new copy that waits for it would wait for good.
    pub(super) fn roll_cannot_steer(&mut self, now: Instant) {
        let waits = |it: &Running| it.stage == Stage::Retiring { by: None };
        let under_way = self.seats.iter().find(|seat| seat.running.first().is_some_and(waits));
        if let Some(&new) = under_way.and_then(|seat| seat.running.get(1)) {
            self.end(now, new.instance, Because::Unwanted);
            self.give_up(&new);
        }
    }

    /// The old copies stay.
    fn give_up(&mut self, new: &Running) {
        self.rolling = false;
        let old = &mut self.seats[new.instance.seat].running[0];
        if matches!(old.stage, Stage::Retiring { .. }) {
            old.stage = Stage::Serving;
        }
        self.stale = true;
        self.tell(Note::RollGivenUp(new.instance));
    }
}
