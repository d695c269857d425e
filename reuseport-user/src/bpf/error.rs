//! What can go wrong between this process and `bpf(2)`, sorted by what to do about it.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use super::btf::BtfError;
use crate::sys::SyscallError;
use crate::sys::caps::{Cap, Confinement};

/// A failure of `bpf(2)` or of an object it knows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BpfError {
    /// The kernel refused for lack of privilege.
    #[error("{action}: {reason}")]
    NotPermitted {
        /// What was asked for.
        action: String,
        /// Which privilege is missing and how to get it.
        reason: String,
    },
    /// Kernels before 5.11 charge maps to `RLIMIT_MEMLOCK`.
    #[error(
        "{action}: the RLIMIT_MEMLOCK of {limit} bytes is used up, which this kernel (before 5.11) \
         charges BPF to: raise it with `ulimit -l unlimited` or systemd `LimitMEMLOCK=infinity`"
    )]
    Memlock {
        /// What was asked for.
        action: String,
        /// The limit in force.
        limit: u64,
    },
    /// The kernel has no `bpf(2)`.
    #[error(
        "{action}: there is no bpf system call: this kernel is built without CONFIG_BPF_SYSCALL, or a \
         sandbox (gVisor, a seccomp filter) hides it"
    )]
    NoBpf {
        /// What was asked for.
        action: String,
    },
    /// The verifier refused a program.
    #[error("the kernel's verifier refuses program `{program}` ({source}):\n{excerpt}")]
    Verifier {
        /// The program.
        program: String,
        /// What `bpf(BPF_PROG_LOAD)` answered.
        source: io::Error,
        /// First and last lines of the log, or all of it where that was asked for.
        excerpt: String,
    },
    /// A program would be attached to a function, and never run.
    #[error("kernel.ftrace_enabled is 0: programs at the kernel's functions do not run")]
    FtraceOff,
    /// A pinned object is not what this version makes.
    #[error("a pinned map has another shape: {0}")]
    Shape(String),
    /// Offsets are not to be had.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A raw call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// aya could not work with a map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// aya could not work with a program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// aya could not load the object.
    #[error(transparent)]
    Load(#[from] EbpfError),
    /// aya could not pin.
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
    /// aya could not work with a link.
    #[error(transparent)]
    Link(#[from] aya::programs::links::LinkError),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl BpfError {
    /// The error number of the call that failed; 0 where none did.
    pub fn errno(&self) -> i32 {
        match self {
            // Transparent: a chain of causes goes past these without naming them.
            Self::Io(error) | Self::Map(MapError::IoError(error)) => {
                error.raw_os_error().unwrap_or(0)
            }
            _ => errno(self),
        }
    }

    /// Whether the kernel refused to write to a map that is open: somebody froze it
    /// (`bpftool map freeze`), for good. Only new maps can be written then.
    pub fn is_write_refused(&self) -> bool {
        matches!(self, Self::Syscall(_) | Self::Map(_))
            && matches!(self.errno(), libc::EPERM | libc::EACCES)
    }

    /// Refuses `action` where `cap` is missing: the verifier would only say that it does not know a
    /// helper.
    pub(super) fn require(cap: Cap, action: &str) -> Result<(), Self> {
        let confinement = Confinement::read();
        if confinement.has(cap) {
            return Ok(());
        }
        let reason = confinement.explain(cap);
        Err(Self::NotPermitted { action: action.to_owned(), reason })
    }

    /// Sorts an `EPERM` or `EACCES` of `action` by its cause; passes anything else on.
    pub(super) fn sort<E: Into<Self>>(action: &str, cap: Cap) -> impl FnOnce(E) -> Self {
        move |error| {
            let error = error.into();
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            let limit = crate::sys::caps::memlock_limit();
            let confinement = Confinement::read();
            match Refusal::of(error.errno(), &confinement, cap, limit, &release) {
                Refusal::Other => error,
                Refusal::NoBpf => Self::NoBpf { action: action.to_owned() },
                Refusal::Memlock => Self::Memlock { action: action.to_owned(), limit },
                Refusal::Privilege => Self::NotPermitted {
                    action: action.to_owned(),
                    reason: confinement.explain(cap),
                },
            }
        }
    }

    /// Sorts a failed program load: the verifier's refusals apart from all others.
    pub(super) fn sort_load(program: &str, whole_log: bool) -> impl FnOnce(ProgramError) -> Self {
        move |error| match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                let refused = !log.trim().is_empty();
                if !refused {
                    let sort = Self::sort("load a BPF program", Cap::Bpf);
                    return sort(Self::Io(io_error));
                }
                let excerpt = if whole_log { log } else { excerpt(&log) };
                Self::Verifier { program: program.to_owned(), source: io_error, excerpt }
            }
            error => Self::sort("load a BPF program", Cap::Bpf)(error),
        }
    }
}

/// The first error number in a chain of causes.
fn errno(error: &(dyn Error + 'static)) -> i32 {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if let Some(number) = number {
            return number;
        }
        cause = error.source();
    }
    0
}

/// Why `bpf(2)` said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// A privilege is missing, or something stronger than privileges.
    Privilege,
    /// The memory that a user may lock is used up.
    Memlock,
    /// There is no such call.
    NoBpf,
    /// Not for want of permission.
    Other,
}

impl Refusal {
    fn of(errno: i32, us: &Confinement, cap: Cap, memlock: u64, release: &str) -> Self {
        match errno {
            libc::ENOSYS => Self::NoBpf,
            // Newer kernels charge the memory cgroup and never answer EPERM for it.
            libc::EPERM if us.has(cap) && memlock != u64::MAX && is_before(release, (5, 11)) => {
                Self::Memlock
            }
            libc::EPERM | libc::EACCES => Self::Privilege,
            _ => Self::Other,
        }
    }
}

/// Whether a kernel's release is older than (major, minor); for messages only.
fn is_before(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(a), Some(b)) => (a, b) < version,
        _ => false,
    }
}

/// The first and last lines of a verifier log: what was checked, and what it stumbled over.
fn excerpt(log: &str) -> String {
    const HEAD: usize = 4;
    const TAIL: usize = 8;
    let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.len() <= HEAD + TAIL {
        return lines.join("\n");
    }
    let mut text = lines[..HEAD].join("\n");
    let left_out = lines.len() - HEAD - TAIL;
    let _infallible =
        write!(text, "\n... {left_out} lines left out, --verifier-log shows all ...\n");
    text + &lines[lines.len() - TAIL..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_keeps_both_ends_and_counts_the_rest() {
        let log = (1..=50).map(|line| format!("line {line}")).collect::<Vec<_>>().join("\n");
        let text = excerpt(&log);
        assert!(text.starts_with("line 1\n") && text.ends_with("line 50"));
        assert!(text.contains("38 lines left out") && !text.contains("line 20\n"));
        assert_eq!(excerpt("a\n\nb\n"), "a\nb");
    }

    #[test]
    fn refusals_are_told_apart() {
        let bpf = Confinement { effective: 1 << 39, ..Confinement::default() };
        let none = Confinement::default();
        let (limited, unlimited) = (65536, u64::MAX);
        for (errno, us, limit, release, expected) in [
            (libc::EPERM, bpf, limited, "5.10.0-28-amd64", Refusal::Memlock),
            (libc::EPERM, bpf, limited, "4.19.1", Refusal::Memlock),
            (libc::EPERM, bpf, unlimited, "5.10.0-28-amd64", Refusal::Privilege),
            (libc::EPERM, bpf, limited, "5.11.0", Refusal::Privilege),
            (libc::EPERM, bpf, limited, "6.18.44", Refusal::Privilege),
            (libc::EPERM, bpf, limited, "", Refusal::Privilege),
            (libc::EPERM, none, limited, "5.10.0", Refusal::Privilege),
            (libc::EACCES, bpf, limited, "5.10.0", Refusal::Privilege),
            (libc::ENOSYS, none, limited, "5.10.0", Refusal::NoBpf),
            (libc::EBUSY, none, limited, "5.10.0", Refusal::Other),
            (0, none, limited, "5.10.0", Refusal::Other),
        ] {
            let refusal = Refusal::of(errno, &us, Cap::Bpf, limit, release);
            assert_eq!(refusal, expected, "{errno} {us:?} {limit} {release}");
        }
        let text = BpfError::Memlock { action: "create".to_owned(), limit: 65536 }.to_string();
        assert!(text.contains("RLIMIT_MEMLOCK of 65536 bytes") && text.contains("ulimit -l"));
    }

    #[test]
    fn the_error_number_is_found_deep_in_the_chain() {
        let io = io::Error::from_raw_os_error(libc::EBUSY);
        let error = BpfError::Syscall(SyscallError { call: "bpf", source: io });
        assert_eq!(error.errno(), libc::EBUSY);
        assert!(!error.is_write_refused());
        let io = io::Error::from_raw_os_error(libc::EPERM);
        let frozen = MapError::IoError(io);
        assert!(BpfError::from(frozen).is_write_refused());
        let io = io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(BpfError::Io(io).errno(), libc::EPERM);
        assert_eq!(BpfError::Shape(String::new()).errno(), 0);
    }
}
