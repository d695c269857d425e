//! This process's capabilities and confinement, read from `/proc`: for messages, never for
//! decisions. What the kernel allows is learnt by asking it.

use std::fs;

/// A capability this program has use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Cap {
    /// Take a listener from another user's process.
    SysPtrace = 19,
    /// Enter another network namespace; before Linux 5.8 also load BPF.
    SysAdmin = 21,
    /// See which program is attached to a group.
    Perfmon = 38,
    /// Create maps, load programs.
    Bpf = 39,
}

impl Cap {
    /// The name, as `capsh` and systemd spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// What `/proc/self` says about this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// `CapEff`.
    pub effective: u64,
    /// Effective user id.
    pub uid: u32,
    /// A seccomp filter is in force.
    pub seccomp: bool,
    /// Runs in a user namespace other than the initial one.
    pub user_namespace: bool,
}

impl Confinement {
    /// Reads it. What cannot be read counts as unconfined.
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let uid_map = fs::read_to_string("/proc/self/uid_map").ok();
        Self::parse(&status, uid_map.as_deref())
    }

    fn parse(status: &str, uid_map: Option<&str>) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).unwrap_or_default()
        };
        // Empty in a namespace that nobody has mapped yet.
        let is_initial = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
        Self {
            effective: u64::from_str_radix(field("CapEff"), 16).unwrap_or(u64::MAX),
            uid: field("Uid")
                .split_whitespace()
                .nth(1)
                .and_then(|uid| uid.parse().ok())
                .unwrap_or(0),
            seccomp: field("Seccomp") == "2",
            user_namespace: !uid_map.is_none_or(is_initial),
        }
    }

    /// Whether `cap` is effective. `CAP_SYS_ADMIN` stands for the ones split from it in 5.8.
    pub fn has(&self, cap: Cap) -> bool {
        let bit = |cap: Cap| self.effective >> (cap as u32) & 1 == 1;
        bit(cap) || (matches!(cap, Cap::Bpf | Cap::Perfmon) && bit(Cap::SysAdmin))
    }

    /// What to do about an `EPERM` that `cap` would have prevented.
    pub fn explain(&self, cap: Cap) -> String {
        let name = cap.name();
        // Before all: there, to be given the capability does not help.
        if self.user_namespace {
            return format!(
                "this process runs in a user namespace, and the kernel asks for {name} in the initial \
                 one: run it there (not in a rootless container; in Kubernetes, in a pod without \
                 `hostUsers: false`)"
            );
        }
        if !self.has(cap) {
            let root = if self.uid == 0 { " (uid 0 without it does not help)" } else { "" };
            return format!(
                "{name} is missing{root}: run as root with full capabilities, or grant it, e.g. \
                 `setcap cap_bpf,cap_perfmon,cap_sys_ptrace+ep` on the binary, systemd \
                 `AmbientCapabilities={name}`, or the container's securityContext"
            );
        }
        if self.seccomp {
            return format!(
                "{name} is held, so a seccomp filter refuses: allow bpf, pidfd_open and pidfd_getfd \
                 in the container's profile (Docker's default allows them with CAP_BPF and \
                 CAP_SYS_PTRACE)"
            );
        }
        format!(
            "{name} is held, so a security module refuses (see the audit log: `ausearch -m avc`, \
             `dmesg`), or kernel lockdown"
        )
    }
}

/// Soft `RLIMIT_MEMLOCK` in bytes; `u64::MAX` where there is none.
pub(crate) fn memlock_limit() -> u64 {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    soft.and_then(|soft| soft.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: &str = "         0          0 4294967295\n";

    fn status(caps: u64, uid: u32, seccomp: u32) -> String {
        format!(
            "Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapEff:\t{caps:016x}\nSeccomp:\t{seccomp}\n"
        )
    }

    #[test]
    fn says_which_obstacle_it_is() {
        let bpf = 1 << 39;
        for (caps, uid, seccomp, uid_map, expected) in [
            (0, 1000, 0, IDENTITY, "CAP_BPF is missing: "),
            (0, 0, 0, IDENTITY, "uid 0 without it does not help"),
            (bpf, 0, 2, IDENTITY, "seccomp"),
            (bpf, 0, 2, "0 100000 65536", "user namespace"),
            (0, 65534, 0, "", "user namespace"),
            (bpf, 0, 0, IDENTITY, "security module"),
        ] {
            let confinement = Confinement::parse(&status(caps, uid, seccomp), Some(uid_map));
            let text = confinement.explain(Cap::Bpf);
            assert!(text.contains(expected), "{expected:?} not in {text:?}");
        }
    }

    #[test]
    fn sys_admin_stands_for_what_was_split_from_it() {
        let confinement = Confinement::parse(&status(1 << 21, 0, 0), Some(IDENTITY));
        assert!(confinement.has(Cap::Bpf) && confinement.has(Cap::Perfmon));
        assert!(!confinement.has(Cap::SysPtrace));
    }
}
