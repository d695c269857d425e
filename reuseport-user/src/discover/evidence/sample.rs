//! Looking at processes: their epoll sets once, what their threads wait for several times.
//!
//! A look stops nobody. A thread that is busy shows nothing, so the looks are repeated, for a bounded
//! time and only while something is still unknown.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use super::epoll::{self, EpollSet};
use super::syscall::{self, Wait};
use super::watch;
use crate::discover::procfs::{self, Open};
use crate::model::{CpuSet, Evidence, Pid};

/// Longest that busy threads are watched, for all processes together. Arbitrary: short for a user
/// who waits, long for a thread that serves one request.
const PATIENCE: Duration = Duration::from_millis(100);
/// Looks that must find a process blocked elsewhere before it is given up: the parent of a family that
/// sleeps in `select` on a pipe (gunicorn's) is, for good.
const GIVE_UP: usize = 40;
/// Pause between looks. A saturated event loop sleeps rarely and briefly: many short looks find it.
const PAUSE: Duration = Duration::from_micros(500);

/// A thread and what it was seen waiting for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) tid: Pid,
    pub(crate) name: String,
    pub(crate) cpus: CpuSet,
    /// Listeners it was blocked on by themselves (`accept`, `poll`, `select`), by inode.
    pub(crate) on: BTreeMap<u64, Evidence>,
    /// Epoll sets it was blocked on.
    pub(crate) epfds: Vec<i32>,
    /// Whether it was seen waiting for children or signals.
    pub(crate) supervising: bool,
    /// Looks that found it blocked on something that is none of our business.
    pub(crate) elsewhere: usize,
}

/// A process that holds listeners of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) parent: Pid,
    pub(crate) name: String,
    pub(crate) threads: Vec<Thread>,
    /// Listeners it holds: descriptor and inode, in order of descriptor.
    pub(crate) held: Vec<(i32, u64)>,
    /// Epoll sets that watch a listener of interest.
    pub(crate) sets: Vec<EpollSet>,
    /// Whether it has an io_uring open.
    pub(crate) io_uring: bool,
    /// Whether we were refused a look at it.
    pub(crate) denied: bool,
}

impl Process {
    /// Names, parent, threads and their CPUs; no evidence yet.
    pub(crate) fn describe(pid: Pid, held: Vec<(i32, u64)>) -> Self {
        let describe = |tid| Thread {
            tid,
            name: procfs::thread_name(pid, tid),
            cpus: procfs::affinity(tid),
            ..Thread::default()
        };
        let threads: Vec<Thread> = procfs::tids(pid).into_iter().map(describe).collect();
        let leader = threads.iter().find(|thread| thread.tid == pid);
        let name = leader.map_or_else(|| procfs::name(pid), |thread| thread.name.clone());
        Self { pid, name, threads, held, ..Self::default() }
    }

    /// Whether all its threads may run on the same CPUs.
    pub(crate) fn is_uniform(&self) -> bool {
        self.threads.windows(2).all(|pair| pair[0].cpus == pair[1].cpus)
    }

    /// Whether one of its epoll sets watches the listener.
    pub(crate) fn polls(&self, inode: u64) -> bool {
        self.sets.iter().any(|set| set.watches(inode))
    }

    /// Threads seen waiting for the listener, and how.
    pub(crate) fn seen(&self, inode: u64) -> impl Iterator<Item = (&Thread, Evidence)> {
        self.threads.iter().filter_map(move |thread| {
            let direct = thread.on.get(&inode).copied();
            let mut waiting = self.sets.iter().filter(|set| thread.epfds.contains(&set.fd));
            let polling = || waiting.any(|set| set.watches(inode)).then_some(Evidence::Polling);
            Some((thread, direct.or_else(polling)?))
        })
    }

    /// Whether it is known to wait for other listeners of interest and not for this one. Epoll sets tell
    /// of busy processes too; being blocked tells of one thread.
    pub(crate) fn attends_elsewhere(&self, inode: u64) -> bool {
        let blocked = |thread: &Thread| !thread.on.is_empty() && !thread.on.contains_key(&inode);
        (!self.sets.is_empty() && !self.polls(inode))
            || (self.threads.len() == 1 && self.threads.iter().all(blocked))
    }

    /// Whether all it does is wait for children or signals.
    pub(crate) fn is_supervisor(&self) -> bool {
        self.threads.iter().all(|thread| thread.supervising)
            && self.held.iter().all(|&(_, inode)| self.seen(inode).next().is_none())
    }

    /// Whether more looks could teach us nothing that matters.
    fn is_settled(&self) -> bool {
        let known = |inode| {
            self.seen(inode).next().is_some() || (self.threads.len() == 1 && self.polls(inode))
        };
        // nginx: a worker holds every listener and polls one of them; the sets say all there is.
        let told_by_sets = self.threads.len() == 1 && !self.sets.is_empty();
        let elsewhere = self.threads.len() == 1 && self.threads[0].elsewhere >= GIVE_UP;
        self.denied
            || told_by_sets
            || elsewhere
            || self.is_supervisor()
            || self.held.iter().all(|&(_, inode)| known(inode))
    }

    /// Reads epoll sets and rings.
    fn read_sets(&mut self, inodes: &[u64]) {
        self.parent = procfs::parent(self.pid);
        let files = match procfs::open_files(self.pid) {
            Ok(files) => files,
            Err(error) => {
                self.denied |= error.kind() == io::ErrorKind::PermissionDenied;
                return;
            }
        };
        self.io_uring = files.iter().any(|(_, open)| *open == Open::IoUring);
        let epolls = files.iter().filter(|(_, open)| *open == Open::Epoll);
        let epfds: Vec<i32> = epolls.map(|(fd, _)| *fd).collect();
        self.sets = epoll::sets(self.pid, &epfds, inodes);
    }

    /// One look at every thread.
    fn look(&mut self) {
        for index in 0..self.threads.len() {
            let path = format!("/proc/{}/task/{}/syscall", self.pid, self.threads[index].tid);
            match fs::read_to_string(path) {
                Ok(line) => self.note(index, syscall::parse(&line)),
                Err(error) => self.denied |= error.kind() == io::ErrorKind::PermissionDenied,
            }
        }
    }

    /// Remembers what thread `index` waits for.
    fn note(&mut self, index: usize, wait: Wait) {
        let (evidence, mut fds) = match wait {
            Wait::Running => return,
            Wait::Epoll(epfd) => {
                let epfds = &mut self.threads[index].epfds;
                if !epfds.contains(&epfd) {
                    epfds.push(epfd);
                }
                return;
            }
            Wait::Supervising => {
                self.threads[index].supervising = true;
                return;
            }
            Wait::Descriptor(fd) => (Evidence::Accepting, vec![fd]),
            // The memory may be gone by now; then the next look tells.
            wait => (Evidence::Polling, watch::watched(self.pid, wait).unwrap_or_default()),
        };
        fds.sort_unstable();
        let has = |fd| fds.binary_search(&fd).is_ok();
        // An event loop within an event loop: poll() on an epoll descriptor.
        let inner: Vec<&EpollSet> = self.sets.iter().filter(|set| has(set.fd)).collect();
        let known = self.threads[index].on.len();
        for &(fd, inode) in &self.held {
            if has(fd) || inner.iter().any(|set| set.watches(inode)) {
                self.threads[index].on.insert(inode, evidence);
            }
        }
        if self.threads[index].on.len() == known {
            self.threads[index].elsewhere += 1;
        }
    }
}

/// Gathers evidence on `processes` about the listeners `inodes` (sorted).
pub(crate) fn observe<'a>(processes: impl Iterator<Item = &'a mut Process>, inodes: &[u64]) {
    let mut open: Vec<&mut Process> = processes.collect();
    for process in &mut open {
        process.read_sets(inodes);
    }
    let start = Instant::now();
    loop {
        for process in &mut open {
            process.look();
        }
        open.retain(|process| !process.is_settled());
        if open.is_empty() || start.elapsed() >= PATIENCE {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}
