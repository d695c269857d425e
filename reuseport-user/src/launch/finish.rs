//! The end of a launch, and what is told on the way.

use std::collections::BTreeSet;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::discover::family;
use crate::model::Pid;
use crate::rungs::PassedOver;
use crate::steer::{AttachReport, detach};
use crate::sys::{clock, spawn};

use super::driver::Driver;
use super::logs::Logs;
use super::notify::notify;
use super::supervisor::{End, Fatal, Note};
use super::{LaunchError, Status};

/// Longest that killed processes are waited for.
const BURIAL: Duration = Duration::from_secs(5);

impl Driver<'_> {
    /// Clears up, and says how it went.
    pub(super) fn finish(mut self) -> Result<(), LaunchError> {
        let outcome = match self.outcome.take() {
            Some(Err(fatal)) => Err(self.explain(fatal)),
            _ => Ok(()),
        };
        bury(&self.inherited, self.guard.pid());
        // With the listeners the group goes, and with the group the program; only pins stay.
        self.processes.clear();
        if self.steered
            && let Err(error) = detach(&self.options.target, &self.options.settings)
        {
            self.logs.say(format!("remove the pins: {error}"));
        }
        self.guard.end();
        self.logs.finish();
        outcome
    }

    /// The error that a fatal condition is.
    fn explain(&mut self, fatal: Fatal) -> LaunchError {
        let failure = self.failure.take();
        let unknown = || LaunchError::own("supervise")(io::ErrorKind::Other.into());
        let (instance, end) = match fatal {
            Fatal::Unfit | Fatal::Steering => return failure.unwrap_or_else(unknown),
            Fatal::NeverListened(instance) => {
                let (worker, after) =
                    (self.seats[instance.seat].worker, self.options.listen_timeout);
                let pid = self.pids[instance.seat];
                let port = self.options.target.port;
                return if self.options.listen.is_some() {
                    LaunchError::NeverAccepted { worker, pid, after }
                } else {
                    LaunchError::NeverListened { worker, pid, port, after }
                };
            }
            Fatal::EndedAtOnce(instance, end) | Fatal::CrashLoop(instance, end) => (instance, end),
        };
        let status = match end {
            End::Exited(status) => Status::Exited(status),
            End::Signalled(signal) => Status::Signalled(signal),
            End::NotStarted(_) => return failure.unwrap_or_else(unknown),
        };
        let worker = self.seats[instance.seat].worker;
        match fatal {
            Fatal::CrashLoop(..) => {
                LaunchError::CrashLoop { worker, times: self.options.max_restarts + 1, status }
            }
            _ => LaunchError::EndedAtOnce { worker, pid: self.pids[instance.seat], status },
        }
    }
}

/// Our children.
pub(super) fn children() -> BTreeSet<Pid> {
    family::children(std::process::id()).into_iter().collect()
}

/// Kills and reaps what became ours when copies ended, and what becomes ours by that.
fn bury(inherited: &BTreeSet<Pid>, guard: Pid) {
    let deadline = Instant::now() + BURIAL;
    loop {
        let strays = children().into_iter().filter(|pid| *pid != guard && !inherited.contains(pid));
        let strays: Vec<Pid> = strays.collect();
        if strays.is_empty() || Instant::now() >= deadline {
            return;
        }
        for pid in strays {
            if spawn::reap(pid).is_none() {
                // It fails for one that ended in between: the next round reaps it.
                drop(spawn::kill(pid, libc::SIGKILL));
            }
        }
        sleep(Duration::from_millis(1));
    }
}

/// Tells the service manager.
pub(super) fn tell_manager(note: Note, logs: &Logs) {
    let told = match note {
        Note::Up | Note::Rolled | Note::RollGivenUp(_) => notify("READY=1"),
        Note::Rolling => {
            notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic().as_micros()))
        }
        Note::Stopping(_) => notify("STOPPING=1"),
        _ => Ok(()),
    };
    if let Err(error) = told {
        logs.say(format!("NOTIFY_SOCKET: {error}"));
    }
}

/// Tells what is steered; what is to be known about it only the first time.
pub(super) fn tell_steering(reports: &[AttachReport], first: bool, logs: &Logs) {
    for report in reports {
        let workers = report.group.listeners.len();
        let (key, policy) = (report.group.key, report.plan.policy.name());
        let rung = report.rung.rung;
        logs.say(format!("steering {key}: {workers} listeners, policy {policy}, rung {rung}"));
        if first {
            for PassedOver { rung, why } in &report.rung.passed_over {
                logs.say(format!("not {rung}: {why}"));
            }
            for warning in &report.plan.warnings {
                logs.say(format!("note: {warning}"));
            }
            for notice in &report.notices {
                logs.say(format!("! {}: {}", notice.what, notice.remedy));
            }
        }
    }
}
