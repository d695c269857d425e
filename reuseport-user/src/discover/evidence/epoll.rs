//! Epoll sets, from `/proc/PID/fdinfo`.

use std::fs;

use crate::model::Pid;

/// One member of an epoll set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The descriptor's number when it was added; it may mean another file by now.
    pub(crate) fd: i32,
    /// Inode of the file that is watched.
    pub(crate) inode: u64,
}

/// An epoll descriptor and what it watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EpollSet {
    /// The descriptor's number in its process.
    pub(crate) fd: i32,
    /// Inodes of the listeners of interest among what it watches, sorted.
    pub(crate) watched: Vec<u64>,
}

impl EpollSet {
    /// Whether it watches the listener.
    pub(crate) fn watches(&self, inode: u64) -> bool {
        self.watched.binary_search(&inode).is_ok()
    }
}

/// Members listed in the text of a `fdinfo` file.
pub(crate) fn members(fdinfo: &str) -> impl Iterator<Item = Member> + '_ {
    fdinfo.lines().filter_map(|line| {
        let fields = line.strip_prefix("tfd:")?;
        let fd = fields.split_whitespace().next()?.parse().ok()?;
        // `ino:` since 4.13; all kernels with pidfd_getfd have it.
        let inode = fields.split_once(" ino:")?.1.split_whitespace().next()?;
        Some(Member { fd, inode: u64::from_str_radix(inode, 16).ok()? })
    })
}

/// Reads the epoll sets `epfds` of a process, and keeps those that watch one of `inodes` (sorted),
/// directly or through another epoll set.
pub(crate) fn sets(pid: Pid, epfds: &[i32], inodes: &[u64]) -> Vec<EpollSet> {
    let read = |fd: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
        Some((*fd, members(&text).collect::<Vec<_>>()))
    };
    let all: Vec<(i32, Vec<Member>)> = epfds.iter().filter_map(read).collect();
    resolve(&all, inodes)
}

/// Follows nested sets: a set that watches a set watches what that one watches.
fn resolve(all: &[(i32, Vec<Member>)], inodes: &[u64]) -> Vec<EpollSet> {
    let mut sets: Vec<EpollSet> = all
        .iter()
        .map(|(fd, members)| {
            let known = members.iter().map(|member| member.inode);
            let watched = known.filter(|inode| inodes.binary_search(inode).is_ok()).collect();
            EpollSet { fd: *fd, watched }
        })
        .collect();
    // The kernel allows four levels below the first (EP_MAX_NESTS).
    for _ in 0..4 {
        for (index, (_, members)) in all.iter().enumerate() {
            let inner = members.iter().filter_map(|member| {
                sets.iter().find(|set| set.fd == member.fd && set.fd != sets[index].fd)
            });
            let inherited: Vec<u64> = inner.flat_map(|set| set.watched.clone()).collect();
            sets[index].watched.extend(inherited);
            sets[index].watched.sort_unstable();
            sets[index].watched.dedup();
        }
    }
    sets.retain(|set| !set.watched.is_empty());
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    const FDINFO: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t2057\n\
        tfd:       10 events: 80002019 data:     7f2d2c1010f0  pos:0 ino:1a2b sdev:9\n\
        tfd:        7 events:       19 data:                7  pos:0 ino:809 sdev:e\n";

    #[test]
    fn reads_members() {
        let found: Vec<Member> = members(FDINFO).collect();
        assert_eq!(found, [Member { fd: 10, inode: 0x1a2b }, Member { fd: 7, inode: 0x809 }]);
        assert_eq!(members("tfd: x ino:1\ntfd: 1 events: 1\ntfd:\n").count(), 0);
    }

    #[test]
    fn follows_nested_sets() {
        let member = |fd, inode| Member { fd, inode };
        let all = [
            (3, vec![member(4, 5)]),
            (4, vec![member(9, 100), member(8, 7)]),
            (5, vec![member(10, 200)]),
            (6, vec![member(11, 300), member(6, 5)]),
        ];
        let sets = resolve(&all, &[100, 200]);
        let set = |fd, inode| EpollSet { fd, watched: vec![inode] };
        assert_eq!(sets, [set(3, 100), set(4, 100), set(5, 200)]);
    }
}
