//! Network namespaces: which one a thread is in, and doing something inside another. Mount namespaces,
//! where what is done there needs a file system of its own.
#![expect(unsafe_code, reason = "setns, unshare and mount have no safe wrappers in std")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::{SyscallError, check, sockopt};

/// The calling thread's namespace.
pub const OWN: &str = "/proc/thread-self/ns/net";

/// Why nothing could be done inside a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// `setns` is for `CAP_SYS_ADMIN` alone.
    #[error(
        "cannot enter another network namespace: CAP_SYS_ADMIN is missing; run inside it \
         (`nsenter --net=...`, or the sidecar in the same pod) or grant the capability"
    )]
    NotPermitted(#[source] SyscallError),
    /// The file is not a network namespace.
    #[error(
        "not a network namespace (expected a file such as /run/netns/NAME or /proc/PID/ns/net)"
    )]
    NotNetns(#[source] SyscallError),
    /// Anything else.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

/// Inode of a namespace file, as `lsns` shows it.
pub fn inode(path: &Path) -> io::Result<u64> {
    Ok(path.metadata()?.st_ino())
}

/// Where `ip netns` keeps those that it gave names.
pub(crate) const NAMED: &str = "/run/netns";

/// The file below [`NAMED`] that is the calling thread's namespace.
pub(crate) fn own_name() -> Option<PathBuf> {
    let own = inode(OWN.as_ref()).ok()?;
    let named = std::fs::read_dir(NAMED).ok()?.flatten().map(|entry| entry.path());
    named.into_iter().find(|path| inode(path).is_ok_and(|it| it == own))
}

/// `SO_NETNS_COOKIE` of the calling thread's namespace, or `inode` where the kernel has none.
pub fn cookie(inode: u64) -> Result<u64, SyscallError> {
    let socket = std::os::unix::net::UnixDatagram::unbound()
        .map_err(|source| SyscallError { call: "socket(AF_UNIX)", source })?;
    match sockopt::netns_cookie(socket.as_fd()) {
        Err(error) if error.errno() == libc::ENOPROTOOPT => Ok(inode),
        result => result,
    }
}

/// Runs `work` inside the namespace, on a thread that does nothing else and ends with it: no code of
/// ours can find itself in the wrong namespace afterwards.
pub fn inside<R: Send>(netns: &File, work: impl FnOnce() -> R + Send) -> Result<R, NetnsError> {
    let thread = || {
        // SAFETY: takes two numbers; changes only this thread, which ends with the closure.
        let result = unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) };
        match check("setns(CLONE_NEWNET)", i64::from(result)) {
            Ok(_) => Ok(work()),
            Err(error) if error.errno() == libc::EPERM => Err(NetnsError::NotPermitted(error)),
            Err(error) if error.errno() == libc::EINVAL => Err(NetnsError::NotNetns(error)),
            Err(error) => Err(error.into()),
        }
    };
    std::thread::scope(|scope| {
        let handle = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, thread)
            .map_err(|source| SyscallError { call: "clone(thread)", source })?;
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Opens a namespace file; refuses what is not a regular file before opening it, so that a FIFO or
/// a device given by mistake is never touched.
pub fn open(path: &Path) -> io::Result<File> {
    let kind = path.metadata()?.file_type();
    if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() || kind.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    File::open(path)
}

/// A network namespace of nobody, with nothing in it but a loopback interface that is down. It has no
/// name: it goes, with all that is in it, when nobody has it open and no process is in it.
pub fn fresh() -> Result<File, NetnsError> {
    let make = || {
        // SAFETY: takes a number; changes only this thread, which ends with the closure.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        match check("unshare(CLONE_NEWNET)", i64::from(result)) {
            Ok(_) => {
                let call = "open(/proc/thread-self/ns/net)";
                Ok(open(Path::new(OWN)).map_err(|source| SyscallError { call, source })?)
            }
            Err(error) if error.errno() == libc::EPERM => Err(NetnsError::NotPermitted(error)),
            Err(error) => Err(error.into()),
        }
    };
    // On a thread that ends with it.
    std::thread::spawn(make).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// As [`inside`], with a `/sys` that shows the namespace's own interfaces: what is mounted there
/// otherwise shows those of the namespace that mounted it. Only `work`'s thread sees it.
pub fn inside_with_sysfs<R: Send>(
    netns: &File,
    work: impl FnOnce() -> R + Send,
) -> Result<R, NetnsError> {
    inside(netns, || {
        mount_unseen()?;
        mount(Some(c"sysfs"), c"/sys", 0)?;
        Ok(work())
    })?
}

/// A mount namespace of nobody, with a BPF file system of its own mounted on `path`: what is pinned
/// there goes when nobody has the namespace open and no process is in it, whatever ended them.
pub fn fresh_bpffs(path: &Path) -> Result<File, NetnsError> {
    let make = || {
        mount_unseen()?;
        let call = "mount(bpf)";
        let path = CString::new(path.as_os_str().as_bytes())
            .map_err(|error| SyscallError { call, source: error.into() })?;
        mount(Some(c"bpf"), &path, 0).map_err(|error| SyscallError { call, ..error })?;
        let (call, own) = ("open(/proc/thread-self/ns/mnt)", "/proc/thread-self/ns/mnt");
        File::open(own).map_err(|source| SyscallError { call, source })
    };
    // On a thread that ends with it.
    let made = std::thread::scope(|scope| scope.spawn(make).join());
    match made.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
        Err(error) if error.errno() == libc::EPERM => Err(NetnsError::NotPermitted(error)),
        made => Ok(made?),
    }
}

/// As [`inside`], and inside a mount namespace, too. The working directory is its root.
pub fn inside_with_mounts<R: Send>(
    netns: &File,
    mounts: &File,
    work: impl FnOnce() -> R + Send,
) -> Result<R, NetnsError> {
    inside(netns, || {
        // The kernel refuses a thread whose root and working directory are the process's.
        // SAFETY: takes a number; changes only this thread, which ends with the closure.
        let result = unsafe { libc::unshare(libc::CLONE_FS) };
        check("unshare(CLONE_FS)", i64::from(result))?;
        // SAFETY: takes two numbers; changes only this thread, which ends with the closure.
        let result = unsafe { libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS) };
        check("setns(CLONE_NEWNS)", i64::from(result))?;
        Ok(work())
    })?
}

/// From now on, what this thread mounts is seen by it and its children alone.
fn mount_unseen() -> Result<(), SyscallError> {
    // SAFETY: takes a number; changes only this thread, which ends with the caller's closure.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    check("unshare(CLONE_NEWNS)", i64::from(result))?;
    mount(None, c"/", libc::MS_REC | libc::MS_SLAVE)
}

fn mount(kind: Option<&CStr>, on: &CStr, flags: libc::c_ulong) -> Result<(), SyscallError> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: all strings end in a zero byte and outlive the call; the data may be null.
    let result =
        unsafe { libc::mount(c"none".as_ptr(), on.as_ptr(), kind, flags, std::ptr::null()) };
    check("mount", i64::from(result)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_inside_another_and_stays_outside() {
        let here = inode(Path::new(OWN)).unwrap();
        let file = fresh().unwrap();
        let there = file.metadata().unwrap().st_ino();
        assert_ne!(here, there);
        let seen = inside(&file, || (inode(Path::new(OWN)).unwrap(), cookie(there).unwrap()));
        let (seen, inner) = seen.unwrap();
        assert_eq!(seen, there);
        assert_eq!(inode(Path::new(OWN)).unwrap(), here);
        assert_ne!(inner, cookie(here).unwrap());
    }

    #[test]
    fn a_bpffs_of_its_own_is_seen_inside_only_and_goes() {
        let (netns, path) = (fresh().unwrap(), Path::new("/sys/fs/bpf"));
        let name = path.join(format!("unseen-{}", std::process::id()));
        let mounts = fresh_bpffs(path).unwrap();
        let there = || inside_with_mounts(&netns, &mounts, || name.exists()).unwrap();
        inside_with_mounts(&netns, &mounts, || std::fs::create_dir(&name)).unwrap().unwrap();
        assert!(there() && !name.exists());
        // Another has another.
        let other = fresh_bpffs(path).unwrap();
        assert!(!inside_with_mounts(&netns, &other, || name.exists()).unwrap());
        assert!(there());
        assert!(matches!(fresh_bpffs(Path::new("/proc/self/status")), Err(NetnsError::Syscall(_))));
    }

    #[test]
    fn refuses_what_is_no_namespace() {
        let file = File::open("/proc/self/status").unwrap();
        assert!(matches!(inside(&file, || ()), Err(NetnsError::NotNetns(_))));
        let other = File::open("/proc/self/ns/uts").unwrap();
        assert!(matches!(inside(&other, || ()), Err(NetnsError::NotNetns(_))));
        assert!(open(Path::new("/dev/null")).is_err());
        assert!(open(Path::new("/proc")).is_err());
    }
}
