//! Which of the many rules forbids taking a descriptor (`PTRACE_MODE_ATTACH_REALCREDS`).

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::linux::fs::MetadataExt as _;

use crate::model::Pid;
use crate::sys::pidfd;

const CAP_SYS_PTRACE: u64 = 1 << 19;

/// The rule, and with it what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Not even our own descriptors: a seccomp filter.
    #[error(
        "a seccomp filter forbids pidfd_getfd even on ourselves; Docker and Kubernetes allow it with \
         CAP_SYS_PTRACE (--cap-add SYS_PTRACE; securityContext.capabilities.add: [SYS_PTRACE]), other \
         filters must list pidfd_open and pidfd_getfd"
    )]
    Seccomp,
    /// Yama, scope 3.
    #[error(
        "kernel.yama.ptrace_scope is 3: no process may look into another until reboot, root neither; \
         set it to 2 or less at boot"
    )]
    YamaOff,
    /// Yama, scope 1 or 2, and no capability.
    #[error("kernel.yama.ptrace_scope is {0} and CAP_SYS_PTRACE is missing; grant it")]
    Yama(u8),
    /// The server runs as another user.
    #[error(
        "it runs as another user (uid {theirs}, we are {ours}) and CAP_SYS_PTRACE is missing; grant it, or \
         run as that user"
    )]
    OtherUser {
        /// Our real uid.
        ours: u32,
        /// Its real uid.
        theirs: u32,
    },
    /// We are root, in name only.
    #[error("CAP_SYS_PTRACE is missing; being uid 0 without it does not help, so grant it")]
    RootWithoutCapability,
    /// The server changed its user and is not dumpable.
    #[error(
        "it gave up privileges at its start and became non-dumpable, which shuts out its own user; \
         grant CAP_SYS_PTRACE"
    )]
    NotDumpable,
    /// The server has capabilities that we lack.
    #[error(
        "it has capabilities that we lack (CapPrm bits {0:#x}); grant CAP_SYS_PTRACE, or the same ones"
    )]
    FewerCapabilities(u64),
    /// We have the capability, but not over the server's user namespace.
    #[error(
        "it lives in another user namespace, over which our CAP_SYS_PTRACE has no power; run in the initial \
         user namespace (Kubernetes: hostUsers: true)"
    )]
    UserNamespace,
    /// Nothing we know of.
    #[error(
        "no known rule forbids it: look for a denial by SELinux or AppArmor in the audit log \
         (`ausearch -m avc`, `journalctl -k`)"
    )]
    Unknown,
}

/// What decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Circumstances {
    /// Whether taking a descriptor from ourselves fails too: always allowed but for seccomp.
    self_refused: bool,
    /// `kernel.yama.ptrace_scope`; 0 without Yama.
    yama: u8,
    /// Our real uid, gid.
    ours: (u32, u32),
    /// The target's real, effective and saved uids.
    uids: [u32; 3],
    /// The target's real, effective and saved gids.
    gids: [u32; 3],
    /// Our effective and permitted capabilities.
    effective: u64,
    permitted: u64,
    /// The target's permitted capabilities.
    target_permitted: u64,
    /// Whether the target's `/proc` files belong to its own user, as they do while it is dumpable.
    dumpable: bool,
    /// Whether the target lives in our user namespace; unknown counts as yes.
    same_userns: bool,
}

/// The first rule that forbids, in the kernel's order where the answers would differ.
fn decide(it: &Circumstances) -> Denial {
    let capable = it.effective & CAP_SYS_PTRACE != 0;
    let (uid, gid) = it.ours;
    let same_user = it.uids.iter().all(|&id| id == uid) && it.gids.iter().all(|&id| id == gid);
    let lacking = it.target_permitted & !it.permitted;
    if it.self_refused {
        Denial::Seccomp
    } else if it.yama >= 3 {
        Denial::YamaOff
    } else if capable {
        if it.same_userns { Denial::Unknown } else { Denial::UserNamespace }
    } else if uid == 0 && (!same_user || lacking != 0) {
        Denial::RootWithoutCapability
    } else if !same_user {
        Denial::OtherUser { ours: uid, theirs: it.uids[0] }
    } else if !it.dumpable {
        Denial::NotDumpable
    } else if lacking != 0 {
        Denial::FewerCapabilities(lacking)
    } else if it.yama >= 1 {
        Denial::Yama(it.yama)
    } else if !it.same_userns {
        Denial::UserNamespace
    } else {
        Denial::Unknown
    }
}

/// Finds out why process `pid` refused us.
pub(super) fn diagnose(pid: Pid) -> Denial {
    // Capabilities are a thread's.
    let us = Status::read("thread-self");
    let them = Status::read(&pid.to_string());
    let owner = |file: &str| fs::metadata(format!("/proc/{pid}/{file}")).map(|it| it.st_uid());
    let userns = |who: &str| fs::read_link(format!("/proc/{who}/ns/user")).ok();
    let theirs = userns(&pid.to_string());
    decide(&Circumstances {
        self_refused: self_refused(),
        yama: fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
            .ok()
            .and_then(|scope| scope.trim().parse().ok())
            .unwrap_or(0),
        ours: (us.uids[0], us.gids[0]),
        uids: them.uids,
        gids: them.gids,
        effective: us.effective,
        permitted: us.permitted,
        target_permitted: them.permitted,
        dumpable: owner("environ").map_or(true, |uid| uid == them.uids[1]),
        same_userns: theirs.is_none() || theirs == userns("self"),
    })
}

/// Takes a descriptor from ourselves, which every rule allows but a seccomp filter.
fn self_refused() -> bool {
    let Ok(me) = pidfd::open(std::process::id()) else { return true };
    let target = me.as_raw_fd();
    pidfd::getfd(me.as_fd(), target).is_err_and(|error| error.errno() == libc::EPERM)
}

/// The lines of `/proc/PID/status` that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    uids: [u32; 3],
    gids: [u32; 3],
    effective: u64,
    permitted: u64,
}

impl Status {
    fn read(who: &str) -> Self {
        Self::parse(&fs::read_to_string(format!("/proc/{who}/status")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut status = Self::default();
        let ids = |rest: &str| {
            let mut ids = rest.split_whitespace().map(|id| id.parse().unwrap_or(u32::MAX));
            [(); 3].map(|()| ids.next().unwrap_or(u32::MAX))
        };
        let bits = |rest: &str| u64::from_str_radix(rest.trim(), 16).unwrap_or(0);
        for (name, rest) in text.lines().filter_map(|line| line.split_once(':')) {
            match name {
                "Uid" => status.uids = ids(rest),
                "Gid" => status.gids = ids(rest),
                "CapEff" => status.effective = bits(rest),
                "CapPrm" => status.permitted = bits(rest),
                _ => {}
            }
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server of our own user that nothing forbids.
    fn allowed() -> Circumstances {
        Circumstances {
            ours: (100, 100),
            uids: [100; 3],
            gids: [100; 3],
            dumpable: true,
            same_userns: true,
            ..Circumstances::default()
        }
    }

    #[test]
    fn each_rule_is_named() {
        let it = allowed();
        let root = Circumstances { ours: (0, 0), ..it };
        let ptrace = Circumstances { effective: CAP_SYS_PTRACE, permitted: CAP_SYS_PTRACE, ..it };
        for (circumstances, expected) in [
            (it, Denial::Unknown),
            (Circumstances { self_refused: true, yama: 3, ..it }, Denial::Seccomp),
            (Circumstances { yama: 3, ..ptrace }, Denial::YamaOff),
            (Circumstances { yama: 2, ..it }, Denial::Yama(2)),
            (Circumstances { yama: 1, ..it }, Denial::Yama(1)),
            (Circumstances { yama: 1, ..ptrace }, Denial::Unknown),
            (Circumstances { uids: [7; 3], ..it }, Denial::OtherUser { ours: 100, theirs: 7 }),
            (
                Circumstances { gids: [100, 7, 7], ..it },
                Denial::OtherUser { ours: 100, theirs: 100 },
            ),
            (root, Denial::RootWithoutCapability),
            (Circumstances { dumpable: false, ..it }, Denial::NotDumpable),
            (Circumstances { target_permitted: 1 << 10, ..it }, Denial::FewerCapabilities(1 << 10)),
            (
                Circumstances { target_permitted: 1 << 10, permitted: 1 << 10, ..it },
                Denial::Unknown,
            ),
            (Circumstances { same_userns: false, ..ptrace }, Denial::UserNamespace),
            (Circumstances { same_userns: false, ..it }, Denial::UserNamespace),
        ] {
            assert_eq!(decide(&circumstances), expected, "{circumstances:?}");
        }
    }

    #[test]
    fn status_is_read() {
        let text = "Name:\tx: y\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapPrm:\t0000000000080000\n\
            CapEff:\t0000000000000400\n";
        let expected = Status {
            uids: [1, 2, 3],
            gids: [5, 6, 7],
            effective: 1 << 10,
            permitted: CAP_SYS_PTRACE,
        };
        assert_eq!(Status::parse(text), expected);
        assert_eq!(Status::parse(""), Status::default());
        assert_eq!(
            Status::read("self").uids[0],
            Status::parse(&fs::read_to_string("/proc/self/status").unwrap()).uids[0]
        );
    }

    #[test]
    fn we_may_take_from_ourselves() {
        assert!(!self_refused());
    }
}
