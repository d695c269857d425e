//! Whether discovered workers are still who and where they were, asked again and again.
//!
//! [`super::discover`] looks through every descriptor on the host; this reads the affinity of known
//! workers and looks at processes that are new. Whether anything is different is all that it can tell.

use std::collections::HashSet;

use super::procfs::{self, Open};
use crate::model::{CpuSet, Group, Pid, Served, Worker};

/// The processes that were looked at.
#[derive(Debug, Default)]
pub struct Roster(HashSet<Pid>);

impl Roster {
    /// Of the processes there are now. Take it before [`super::discover`]: what comes after is new.
    pub fn take() -> Self {
        Self(procfs::pids().into_iter().collect())
    }

    /// Whether no process that came since the last call holds a listener of `groups`, and their workers
    /// are where they were.
    pub fn is_same(&mut self, groups: &[Group]) -> bool {
        let listeners = || groups.iter().flat_map(|group| &group.listeners);
        let mut workers = listeners().flat_map(|listener| match &listener.served {
            Served::By(workers) => workers.as_slice(),
            Served::Unknown(_) => &[],
        });
        let all_in_place = workers.all(|worker| cpus(worker) == worker.cpus);
        let inodes: HashSet<u64> = listeners().map(|listener| listener.inode).collect();
        let now = Self::take();
        // A process that may not be looked at is no worker that could be kept.
        let holds = |pid: &Pid| {
            let files = procfs::open_files(*pid).unwrap_or_default();
            files.iter().any(|(_, open)| matches!(open, Open::Socket(it) if inodes.contains(it)))
        };
        let nobody_new = !now.0.difference(&self.0).any(holds);
        *self = now;
        all_in_place && nobody_new
    }
}

/// Where a worker may run now; nowhere if it is gone.
fn cpus(worker: &Worker) -> CpuSet {
    match worker.tid {
        Some(tid) => procfs::affinity(tid),
        None => procfs::tids(worker.pid)
            .into_iter()
            .flat_map(|tid| procfs::affinity(tid).iter().collect::<Vec<_>>())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::process::Command;

    use super::*;
    use crate::discover::{NetnsChoice, Target, discover};
    use crate::sys::sched;

    #[test]
    fn sees_a_worker_that_moves_and_a_process_that_inherits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let netns = NetnsChoice::Pid(std::process::id());
        let mut groups = discover(&Target { netns, ..Target::tcp(port) }).unwrap();
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("60");
            command
        };
        // A worker that can be moved: said to serve.
        let mut worker = sleep().spawn().unwrap();
        let Served::By(workers) = &mut groups[0].listeners[0].served else { panic!("unknown") };
        let all = sched::affinity(worker.id()).unwrap();
        (workers[0].pid, workers[0].cpus) = (worker.id(), all.clone());
        let mut roster = Roster::take();
        // Other tests' children hold all we have open between their fork and exec.
        let settles = |roster: &mut Roster| (0..20).any(|_| roster.is_same(&groups));
        assert!(settles(&mut roster));
        if all.len() > 1 {
            sched::set_affinity(worker.id(), &all.first().into_iter().collect()).unwrap();
            assert!(!settles(&mut roster));
            sched::set_affinity(worker.id(), &all).unwrap();
        }
        let mut stranger = sleep().spawn().unwrap();
        assert!(settles(&mut roster));
        let copy = OwnedFd::from(listener.try_clone().unwrap());
        let mut heir = sleep().stdin(copy).spawn().unwrap();
        assert!(!roster.is_same(&groups));
        assert!(settles(&mut roster), "told once");
        for child in [&mut worker, &mut stranger, &mut heir] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(!settles(&mut roster), "a dead one runs nowhere");
    }
}
