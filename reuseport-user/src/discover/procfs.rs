//! What `/proc` tells about processes: who has a socket open, names, parents, threads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, available_parallelism};

use crate::model::{CpuSet, Holder, Pid};
use crate::sys::procfd::Scanner;
use crate::sys::sched;

mod fdinfo;

/// Ids of all visible processes, ascending.
pub(crate) fn pids() -> Vec<Pid> {
    numbers("/proc")
}

/// Ids of a process's threads, ascending; without the workers of io_uring, which are the kernel's
/// and accept nothing by themselves.
pub(crate) fn tids(pid: Pid) -> Vec<Pid> {
    let mut tids = numbers(&format!("/proc/{pid}/task"));
    if tids.len() > 1 {
        tids.retain(|&tid| !thread_name(pid, tid).starts_with("iou-"));
    }
    tids
}

/// The numeric entries of a directory.
fn numbers(directory: &str) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut numbers: Vec<Pid> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Inode of the network namespace a process lives in; needs ptrace read access to it.
pub(crate) fn netns(pid: Pid) -> io::Result<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net"))?;
    let inode = inode(link.as_os_str().as_encoded_bytes(), b"net:[");
    inode.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// `comm` of a process; its number when it is gone.
pub(crate) fn name(pid: Pid) -> String {
    thread_name(pid, pid)
}

/// `comm` of a thread; its number when it is gone.
pub(crate) fn thread_name(pid: Pid, tid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"))
        .map_or_else(|_| tid.to_string(), |comm| comm.trim_end().to_owned())
}

/// Parent of a process; 0 when it has none we can see.
pub(crate) fn parent(pid: Pid) -> Pid {
    stat(pid, 4) as Pid
}

/// When a process began, in clock ticks since boot; 0 when it is gone.
pub(crate) fn started(pid: Pid) -> u64 {
    stat(pid, 22)
}

/// Process group of a process; 0 when it has ended, reaped or not.
pub(crate) fn group(pid: Pid) -> Pid {
    if field(pid, 3).as_deref() == Some("Z") { 0 } else { stat(pid, 5) as Pid }
}

/// A number of `/proc/PID/stat`, counted as proc(5) does; 0 when the process is gone.
fn stat(pid: Pid, number: usize) -> u64 {
    field(pid, number).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn field(pid: Pid, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses, field 2, may hold anything, parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3).map(str::to_owned)
}

/// Direct children of a process, ascending.
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let of_thread = |tid| fs::read_to_string(format!("/proc/{pid}/task/{tid}/children"));
    let lists: Vec<String> = tids(pid).into_iter().filter_map(|tid| of_thread(tid).ok()).collect();
    let mut children: Vec<Pid> = lists
        .iter()
        .flat_map(|list| list.split_whitespace())
        .filter_map(|it| it.parse().ok())
        .collect();
    children.sort_unstable();
    children
}

/// CPUs a thread may run on; empty when it is gone.
pub(crate) fn affinity(tid: Pid) -> CpuSet {
    sched::affinity(tid).unwrap_or_default()
}

/// The number in `socket:[123]` or `net:[123]`.
fn inode(link: &[u8], prefix: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(prefix)?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// One open descriptor of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// A socket, by inode.
    Socket(u64),
    /// An epoll set.
    Epoll,
    /// An io_uring.
    IoUring,
    /// A BPF program.
    BpfProgram,
    /// A BPF map.
    BpfMap,
}

impl Open {
    fn from_link(link: &[u8]) -> Option<Self> {
        match link {
            b"anon_inode:[eventpoll]" => Some(Self::Epoll),
            b"anon_inode:[io_uring]" => Some(Self::IoUring),
            b"anon_inode:bpf-prog" => Some(Self::BpfProgram),
            b"anon_inode:bpf-map" => Some(Self::BpfMap),
            _ => inode(link, b"socket:[").map(Self::Socket),
        }
    }
}

/// Everything of interest that a process has open.
pub(crate) fn open_files(pid: Pid) -> Result<Vec<(i32, Open)>, io::Error> {
    let directory = match File::open(format!("/proc/{pid}/fd")) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return fdinfo::open_files(pid);
        }
        directory => directory?,
    };
    let mut found = Vec::new();
    Scanner::default()
        .scan(&directory, |fd, link| found.extend(Open::from_link(link).map(|open| (fd, open))))
        .map_err(|error| error.source)?;
    Ok(found)
}

/// Who has which socket open.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// By inode, in order of process and descriptor.
    pub(crate) by_inode: BTreeMap<u64, Vec<Holder>>,
    /// Processes whose descriptors we may not see.
    pub(crate) unreadable: usize,
}

/// Most threads that look through `/proc` at once: enough to halve the wait twice, few enough to
/// leave a busy host alone.
const SCANNERS: usize = 4;

/// Looks through every process for the sockets `inodes` (sorted).
///
/// Processes that end meanwhile are left out. Takes about 2 us per descriptor on the host, shared
/// among a few threads: `readlink` is all but the whole of it.
pub(crate) fn holders(inodes: &[u64]) -> Holders {
    let pids = pids();
    let next = AtomicUsize::new(0);
    let scan = || {
        let mut part = Holders::default();
        let mut scanner = Scanner::default();
        while let Some(&pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
            scan_process(pid, inodes, &mut scanner, &mut part);
        }
        part
    };
    let helpers = available_parallelism().map_or(1, NonZero::get).min(SCANNERS) - 1;
    let mut holders = thread::scope(|scope| {
        // A thread that cannot be had leaves its share to the others.
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, scan).ok();
        let handles: Vec<_> = (0..helpers).filter_map(spawn).collect();
        let mut all = scan();
        for handle in handles {
            let part = handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.unreadable += part.unreadable;
            for (inode, list) in part.by_inode {
                all.by_inode.entry(inode).or_default().extend(list);
            }
        }
        all
    });
    for list in holders.by_inode.values_mut() {
        list.sort_unstable();
    }
    holders
}

/// Adds what one process holds.
fn scan_process(pid: Pid, inodes: &[u64], scanner: &mut Scanner, found: &mut Holders) {
    let directory = match File::open(format!("/proc/{pid}/fd")) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            match fdinfo::open_files(pid) {
                Ok(files) => {
                    for (fd, open) in files {
                        let Open::Socket(inode) = open else { continue };
                        if inodes.binary_search(&inode).is_ok() {
                            found.by_inode.entry(inode).or_default().push(Holder { pid, fd });
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    found.unreadable += 1;
                }
                Err(_) => {}
            }
            return;
        }
        directory => directory,
    };
    let scanned = directory.and_then(|directory| {
        let result = scanner.scan(&directory, |fd, link| {
            let Some(inode) = inode(link, b"socket:[") else { return };
            if inodes.binary_search(&inode).is_ok() {
                found.by_inode.entry(inode).or_default().push(Holder { pid, fd });
            }
        });
        result.map_err(|error| error.source)
    });
    if scanned.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        found.unreadable += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_told_apart() {
        for (link, expected) in [
            (&b"socket:[12345]"[..], Some(Open::Socket(12345))),
            (b"anon_inode:[eventpoll]", Some(Open::Epoll)),
            (b"anon_inode:[io_uring]", Some(Open::IoUring)),
            (b"anon_inode:bpf-prog", Some(Open::BpfProgram)),
            (b"anon_inode:bpf-map", Some(Open::BpfMap)),
            (b"anon_inode:bpf_link", None),
            (b"socket:[]", None),
            (b"socket:[12", None),
            (b"socket:[1x]", None),
            (b"/tmp/socket:[1]", None),
            (b"pipe:[12345]", None),
        ] {
            assert_eq!(Open::from_link(link), expected);
        }
    }

    #[test]
    fn describes_this_process() {
        let me = std::process::id();
        assert!(pids().contains(&me));
        assert!(tids(me).contains(&me));
        assert_eq!(parent(me), std::os::unix::process::parent_id());
        assert!(started(me) > 0 && started(me) >= started(parent(me)));
        assert_eq!(started(4_194_305), 0);
        assert!(children(parent(me)).contains(&me));
        assert_eq!(
            netns(me).unwrap(),
            crate::sys::netns::inode("/proc/self/ns/net".as_ref()).unwrap()
        );
        assert_eq!(name(4_194_305), "4194305");
    }
}
