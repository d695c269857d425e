//! What takes its time and is done beside: steering, and looks at copies that start or drain.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reuseport_common::abi::Role;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::launch::finish;
use crate::launch::look::{self, Retiring, Seen};
use crate::launch::steering::{self, Request};
use crate::launch::supervisor::{Event, Instance};
use crate::model::CpuSet;
use crate::steer::{AttachReport, SteerError};

use super::{Driver, Process};

/// Pauses between looks: the first, and the longest.
const LOOK_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// What is under way, one of each kind.
#[derive(Debug)]
pub(super) struct Jobs {
    pub(super) steering: Option<JoinHandle<Result<Vec<AttachReport>, SteerError>>>,
    /// Cookies of listeners that are or may be steered away from.
    away: BTreeSet<u64>,
    /// Those that are once the steering under way is in force.
    away_next: BTreeSet<u64>,
    pub(super) look: Option<JoinHandle<Seen>>,
    pub(super) look_at: Option<Instant>,
    look_pause: Duration,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            steering: None,
            away: BTreeSet::new(),
            away_next: BTreeSet::new(),
            look: None,
            look_at: None,
            look_pause: LOOK_PAUSE.0,
        }
    }
}

impl Jobs {
    /// Somebody has just started.
    pub(super) fn look_soon(&mut self) {
        (self.look_at, self.look_pause) = (Some(Instant::now()), LOOK_PAUSE.0);
    }
}

impl Driver<'_> {
    pub(super) fn steer(&mut self, away: &[Instance]) {
        let cookies = |instance: &Instance| self.processes.get(instance).map(|it| &it.cookies);
        let away: BTreeSet<u64> = away.iter().filter_map(cookies).flatten().copied().collect();
        let alive = || self.processes.iter().filter(|(_, process)| process.alive);
        // Only for who is there to accept: what an ended copy left behind may still keep its listener.
        let served: BTreeSet<u64> = alive().flat_map(|(_, it)| &it.cookies).copied().collect();
        let back = served.intersection(&self.jobs.away).filter(|&it| !away.contains(it));
        let back = back.map(|&cookie| (cookie, Role::Active));
        let roles = back.chain(away.iter().map(|&cookie| (cookie, Role::Drained))).collect();
        let place = |(instance, process): (&Instance, &Process)| {
            (process.pid, CpuSet::from([self.seats[instance.seat].cpu]))
        };
        let request = Request {
            target: self.options.target.clone(),
            rung: self.options.rung,
            settings: self.options.settings.clone(),
            alone: self.options.listen.is_some(),
            roles,
            copies: alive().map(place).collect(),
        };
        self.steered = true;
        self.jobs.away.extend(&away);
        self.jobs.away_next = away;
        self.jobs.steering = Some(spawn_blocking(move || steering::steer(&request)));
    }

    pub(super) fn note_steering(&mut self, done: Result<Vec<AttachReport>, SteerError>) {
        let steered = done.is_ok();
        match done {
            Ok(reports) => {
                self.jobs.away = std::mem::take(&mut self.jobs.away_next);
                finish::tell_steering(&reports, !self.supervisor.is_up(), &self.logs);
            }
            Err(error) => {
                if self.supervisor.is_up() {
                    self.logs.say(format!("steering: {error}"));
                }
                self.failure = Some(error.into());
            }
        }
        self.handle(Event::Steered(steered));
    }

    /// Looks at copies that start or drain, where that is due.
    pub(super) fn look(&mut self) {
        let (starting, retiring) = (self.supervisor.starting(), self.supervisor.retiring());
        if starting.is_empty() && retiring.is_empty() {
            (self.jobs.look_at, self.jobs.look_pause) = (None, LOOK_PAUSE.0);
            return;
        }
        let due = self.jobs.look_at.is_none_or(|at| at <= Instant::now());
        if !due || self.jobs.look.is_some() {
            return;
        }
        let look_at = |retiring: Instance| {
            let process = self.processes.get_mut(&retiring).filter(|it| it.alive)?;
            Some(Retiring {
                instance: retiring,
                pid: process.pid,
                cookies: process.cookies.clone(),
                handshakes: process.handshakes.take(),
            })
        };
        let retiring = retiring.into_iter().filter_map(look_at).collect();
        let alive = |it: &Instance| Some((*it, self.processes.get(it).filter(|it| it.alive)?));
        let request = look::Request {
            target: self.options.target.clone(),
            given: self.options.listen.is_some(),
            examine: !self.supervisor.is_up(),
            starting: starting
                .iter()
                .filter_map(alive)
                .map(|(instance, it)| (instance, it.pid, it.cookies.clone()))
                .collect(),
            retiring,
        };
        self.jobs.look = Some(spawn_blocking(move || look::look(request)));
        self.jobs.look_at = None;
    }

    pub(super) fn note_look(&mut self, seen: Seen) {
        for (instance, cookies) in seen.listening {
            if let Some(process) = self.processes.get_mut(&instance) {
                process.cookies.extend(cookies);
            }
            self.handle(Event::Listening(instance));
        }
        for (instance, handshakes) in seen.handshakes {
            if let Some(process) = self.processes.get_mut(&instance) {
                process.handshakes = Some(handshakes);
            }
        }
        for instance in seen.drained {
            self.handle(Event::Drained(instance));
        }
        if let Some(error) = seen.failure {
            if self.supervisor.is_up() {
                self.logs.say(format!("look at the copies: {error}"));
            } else {
                self.failure = Some(error);
                self.handle(Event::Unfit);
            }
        }
        self.jobs.look_at = Some(Instant::now() + self.jobs.look_pause);
        self.jobs.look_pause = (self.jobs.look_pause * 2).min(LOOK_PAUSE.1);
    }
}
