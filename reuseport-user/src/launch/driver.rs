//! Carries out what the supervisor decides, and tells it what happens.
//!
//! One thread starts, signals and reaps the copies (the kernel ties their lives to it); what takes
//! its time, looking through `/proc` and steering, is done beside it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use crate::discover::family;
use crate::model::Pid;
use crate::steer::change::Handshakes;
use crate::sys::spawn;

use super::child;
use super::finish::{self, tell_manager};
use super::guard::Guard;
use super::logs::Logs;
use super::placement::Seat;
use super::ports;
use super::signals::{Asked, Signals};
use super::supervisor::{Action, End, Event, Fatal, Instance, Note, Rules, Supervisor};
use super::{LaunchError, LaunchOptions};
use jobs::Jobs;

mod jobs;

/// Pause between looks at what copies that ended left of their process groups.
const REST_PAUSE: Duration = Duration::from_millis(50);

/// Starts the copies and keeps them running until a signal ends them all, or a failure does. Nothing
/// that it started is left when it returns.
pub fn run(options: &LaunchOptions, seats: &[Seat]) -> Result<(), LaunchError> {
    ports::refuse_taken(&options.target)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(LaunchError::own("start an event loop"))?;
    runtime.block_on(async {
        let mut driver = Driver::new(options, seats)?;
        let signals = Signals::catch().map_err(LaunchError::own("handle signals"))?;
        driver.work(signals).await;
        driver.finish()
    })
}

/// A copy that runs, or one whose listener is kept for the next.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: Pid,
    /// Whether it was not reaped yet.
    pub(super) alive: bool,
    /// Of its listeners.
    pub(super) cookies: BTreeSet<u64>,
    listener: Option<OwnedFd>,
    /// Whether what it left of its process group was told to end.
    rest_told: bool,
    /// While it drains: handshakes that may still become its connections.
    handshakes: Option<Handshakes>,
}

pub(super) struct Driver<'a> {
    pub(super) options: &'a LaunchOptions,
    pub(super) seats: &'a [Seat],
    pub(super) supervisor: Supervisor,
    pub(super) processes: BTreeMap<Instance, Process>,
    pub(super) guard: Guard,
    pub(super) logs: Logs,
    /// Of the latest copy of each worker.
    pub(super) pids: Vec<Pid>,
    /// Children that we had before we started any.
    pub(super) inherited: BTreeSet<Pid>,
    /// Whether anything was ever steered.
    pub(super) steered: bool,
    pub(super) outcome: Option<Result<(), Fatal>>,
    /// What a fatal condition was about.
    pub(super) failure: Option<LaunchError>,
    jobs: Jobs,
    /// When to see again whether copies and their process groups have ended.
    reap_at: Option<Instant>,
    /// What `/dev/null` keeps free for listeners of children: descriptor 3, if it was not taken.
    _reserved: std::fs::File,
}

impl<'a> Driver<'a> {
    fn new(options: &'a LaunchOptions, seats: &'a [Seat]) -> Result<Self, LaunchError> {
        let reserved =
            std::fs::File::open("/dev/null").map_err(LaunchError::own("open /dev/null"))?;
        spawn::adopt_orphans()?;
        let rules = Rules {
            listen_timeout: options.listen_timeout,
            drain_timeout: options.drain_timeout,
            stop_timeout: options.stop_timeout,
            max_restarts: options.max_restarts,
            keeps_listeners: options.listen.is_some(),
            jitter: || RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64,
        };
        let width = seats.len().saturating_sub(1).to_string().len();
        let logs = Logs::start(width).map_err(LaunchError::own("start the log's thread"))?;
        let inherited = finish::children();
        let guard = Guard::start().map_err(LaunchError::own("start the guard process"))?;
        Ok(Self {
            options,
            seats,
            supervisor: Supervisor::new(seats.len(), rules),
            processes: BTreeMap::new(),
            pids: vec![0; seats.len()],
            guard,
            logs,
            inherited,
            steered: false,
            outcome: None,
            failure: None,
            jobs: Jobs::default(),
            reap_at: None,
            _reserved: reserved,
        })
    }

    async fn work(&mut self, mut signals: Signals) {
        self.tick();
        while self.outcome.is_none() {
            let due = self.supervisor.deadline().into_iter();
            let due = due.chain(self.jobs.look_at).chain(self.reap_at).min();
            tokio::select! {
                asked = signals.next() => self.obey(asked),
                done = finished(&mut self.jobs.steering) => self.note_steering(done),
                seen = finished(&mut self.jobs.look) => self.note_look(seen),
                () = due_at(due) => {}
            }
            if self.reap_at.is_some_and(|at| at <= Instant::now()) {
                self.reap();
            }
            self.tick();
            self.look();
        }
        // What it does to the pins is not to be cut off.
        if let Some(steering) = self.jobs.steering.take() {
            drop(steering.await);
        }
    }

    fn tick(&mut self) {
        let actions = self.supervisor.tick(Instant::now());
        self.carry_out(actions);
    }

    fn handle(&mut self, event: Event) {
        let actions = self.supervisor.handle(Instant::now(), event);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            match action {
                Action::Start(instance, left) => {
                    if let Err(error) = self.start(instance, left) {
                        let errno = errno(&error);
                        self.logs.say(format!("worker {}: {error}", instance.seat));
                        self.failure = Some(error);
                        let ended = Event::Ended(instance, End::NotStarted(errno));
                        queue.extend(self.supervisor.handle(Instant::now(), ended));
                    }
                }
                Action::Steer { away } => self.steer(&away),
                Action::Signal(instance, signal) => self.signal(instance, signal),
                Action::Kill(instance) => {
                    if let Some(process) = self.processes.get(&instance).filter(|it| it.alive) {
                        spawn::kill_group(process.pid);
                        // It may have ended before, and waited for the rest.
                        self.reap_at = Some(Instant::now());
                    }
                }
                Action::Tell(note) => self.tell(note),
                Action::Finish(outcome) => self.outcome = Some(outcome),
            }
        }
        let gone = |instance: &Instance, _: &mut Process| !self.supervisor.keeps(*instance);
        for (_, process) in self.processes.extract_if(.., gone) {
            process.listener.as_ref().inspect(|listener| ports::stop_listening(listener));
        }
    }

    fn start(&mut self, instance: Instance, left: Option<Instance>) -> Result<(), LaunchError> {
        let seat = &self.seats[instance.seat];
        let kept = left.and_then(|left| self.processes.remove(&left));
        let (mut listener, mut cookies) = (None, BTreeSet::new());
        if let Some(address) = self.options.listen {
            if let Some(Process { listener: Some(kept), cookies: its, .. }) = kept {
                (listener, cookies) = (Some(kept), its);
            } else {
                let (opened, cookie) = ports::open(address)?;
                (listener, cookies) = (Some(opened), BTreeSet::from([cookie]));
            }
        }
        let LaunchOptions { command, settings, .. } = self.options;
        let given = listener.as_ref();
        let started = child::start(command, seat, given, &settings.bpffs, &self.logs);
        let pid = started.as_ref().copied().unwrap_or(0);
        if pid != 0 {
            self.guard.add(pid);
            self.pids[instance.seat] = pid;
        }
        self.processes.insert(
            instance,
            Process { pid, alive: pid != 0, cookies, listener, rest_told: false, handshakes: None },
        );
        started.map_err(|source| {
            let program = self.options.command.fill(seat).swap_remove(0);
            LaunchError::NotStarted { program, source }
        })?;
        self.logs.say(format!("worker {}: process {pid} on CPU {}", seat.worker, seat.cpu));
        self.jobs.look_soon();
        Ok(())
    }

    fn signal(&self, instance: Instance, signal: i32) {
        if let Some(process) = self.processes.get(&instance).filter(|it| it.alive) {
            // It is a zombie at worst: not reaped, so that its number is its own.
            drop(spawn::kill(process.pid, signal));
        }
    }

    fn tell(&mut self, note: Note) {
        self.logs.say(note.to_string());
        tell_manager(note, &self.logs);
    }

    fn obey(&mut self, asked: Asked) {
        match asked {
            Asked::Stop(signal) => self.handle(Event::Stop(signal)),
            Asked::Roll => self.handle(Event::Roll),
            Asked::Forward(signal) => {
                for &instance in self.processes.keys() {
                    self.signal(instance, signal);
                }
            }
            Asked::Reap => self.reap(),
        }
    }

    /// Takes note of all children that ended: copies, and orphans that became ours.
    fn reap(&mut self) {
        self.reap_at = None;
        for pid in finish::children().into_iter().filter(|&pid| spawn::has_ended(pid)) {
            let its = |(_, process): &(&Instance, &Process)| process.alive && process.pid == pid;
            let instance = self.processes.iter().find(its).map(|(&instance, _)| instance);
            if let Some(instance) = instance {
                if self.supervisor.has_time(instance) && self.waits_for_rest(instance) {
                    continue;
                }
                // What it left behind; before it is reaped, while the group's number is its own.
                spawn::kill_group(pid);
            }
            let Some(status) = spawn::reap(pid) else { continue };
            let end = match (status.code(), status.signal()) {
                (Some(code), _) => End::Exited(code),
                (None, signal) => End::Signalled(signal.unwrap_or(0)),
            };
            if let Some(instance) = instance {
                self.guard.remove(pid);
                if let Some(process) = self.processes.get_mut(&instance) {
                    process.alive = false;
                }
                self.handle(Event::Ended(instance, end));
            } else if pid == self.guard.pid() {
                self.guard_again();
            }
        }
    }

    /// A copy that was told to end may have been a shell, and the server its child: whether some of
    /// its process group is left, which is told then, too.
    fn waits_for_rest(&mut self, instance: Instance) -> bool {
        let Some(process) = self.processes.get_mut(&instance) else { return false };
        let is_left = family::is_group_alive(std::process::id(), process.pid);
        if is_left && !std::mem::replace(&mut process.rest_told, true) {
            spawn::signal_group(process.pid, libc::SIGTERM);
        }
        if is_left {
            // Not everybody's end is told to us.
            self.reap_at = Some(Instant::now() + REST_PAUSE);
        }
        is_left
    }

    /// Somebody ended the guard: another one takes its place.
    fn guard_again(&mut self) {
        match Guard::start() {
            Ok(mut guard) => {
                let alive = self.processes.values().filter(|process| process.alive);
                alive.for_each(|process| guard.add(process.pid));
                self.guard = guard;
                self.logs.say("the guard process ended; another one took its place");
            }
            Err(error) => {
                self.logs.say(format!("the guard process ended; start it again: {error}"));
            }
        }
    }
}

/// Waits for a job, and forgets it; for ever where there is none.
async fn finished<T>(job: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = job else { return pending().await };
    let done = running.await;
    *job = None;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

async fn due_at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => pending().await,
    }
}

/// The error number of a start that failed.
fn errno(error: &LaunchError) -> i32 {
    match error {
        LaunchError::NotStarted { source, .. } | LaunchError::Listen { source, .. } => {
            source.raw_os_error().unwrap_or(0)
        }
        _ => 0,
    }
}
