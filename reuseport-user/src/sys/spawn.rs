//! Starting programs pinned and tied to us, and what becomes of them: the calls that `std::process`
//! lacks.
#![expect(unsafe_code, reason = "what happens between fork and exec, and waiting for any child")]

use std::ffi::{CString, OsStr, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::ptr;

use super::{SyscallError, check};
use crate::model::{Cpu, CpuSet, Pid};
use crate::sys::sched;

/// `SD_LISTEN_FDS_START`: where a program finds the first listener it is given.
const LISTEN_FDS_START: RawFd = 3;
/// What precedes a process id in the environment, and room for the digits of any.
const LISTEN_PID: &[u8] = b"LISTEN_PID=";
const DIGITS: usize = 10;

/// A program to be started.
#[derive(Debug)]
pub struct Image<'a> {
    /// Program (looked up in `PATH` unless it has a slash) and arguments.
    pub words: &'a [std::ffi::OsString],
    /// Its whole environment.
    pub environment: &'a [(std::ffi::OsString, std::ffi::OsString)],
    /// The CPU it is bound to, with all threads and children it will have.
    pub cpu: Cpu,
    /// A listener to hand over as descriptor 3; `LISTEN_PID` is then set too (`sd_listen_fds`).
    pub listener: Option<BorrowedFd<'a>>,
}

/// Starts the program as leader of a process group of its own, which is killed when the calling
/// *thread* ends, however it ends. `command` says where its output goes; its program and arguments
/// count for nothing.
///
/// Descriptor 3 of this process must be in use by something that the child does not need.
pub fn spawn(command: &mut Command, image: &Image<'_>) -> io::Result<Child> {
    let mut exec = Exec::new(image)?;
    let parent = std::process::id();
    let prepare = move || exec.run(parent);
    // SAFETY: between fork and exec `Exec::run` makes system calls and touches memory that was
    // allocated before: no allocation, no lock.
    unsafe { command.pre_exec(prepare) };
    command.process_group(0).spawn()
}

/// Everything that the child needs, allocated before the fork.
struct Exec {
    words: Vec<CString>,
    /// `NAME=value`, each ending in NUL; the last one is the process id where a listener is given.
    environment: Vec<Vec<u8>>,
    /// Both as `execvpe` takes them.
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    mask: Vec<u64>,
    listener: Option<RawFd>,
}

// SAFETY: the pointers are to heap memory that `words` and `environment` own and that moves with
// nothing; nobody but the child of a fork follows them.
unsafe impl Send for Exec {}
// SAFETY: as above.
unsafe impl Sync for Exec {}

impl Exec {
    fn new(image: &Image<'_>) -> io::Result<Self> {
        let words = image.words.iter().map(|word| CString::new(word.as_bytes()));
        let words = words.collect::<Result<Vec<_>, _>>()?;
        let variable =
            |name: &OsStr, value: &OsStr| [name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat();
        let mut environment: Vec<Vec<u8>> =
            image.environment.iter().map(|(name, value)| variable(name, value)).collect();
        if image.listener.is_some() {
            environment.push([LISTEN_PID, &[0; DIGITS + 1]].concat());
        }
        let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
        argv.push(ptr::null());
        let mut envp: Vec<*const c_char> =
            environment.iter().map(|it| it.as_ptr().cast()).collect();
        envp.push(ptr::null());
        let mask = sched::mask(&CpuSet::from([image.cpu]));
        let listener = image.listener.map(|fd| fd.as_raw_fd());
        Ok(Self { words, environment, argv, envp, mask, listener })
    }

    /// Becomes the program; returns only what went wrong.
    fn run(&mut self, parent: Pid) -> io::Result<()> {
        // SAFETY: numbers only.
        check("prctl", unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }.into())
            .map_err(|error| error.source)?;
        // Had the parent ended before, nobody would tell us.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        sched::set_mask(0, &self.mask).map_err(|error| error.source)?;
        if let Some(listener) = self.listener {
            // SAFETY: numbers only. The duplicate is not closed on exec.
            check("dup2", unsafe { libc::dup2(listener, LISTEN_FDS_START) }.into())
                .map_err(|error| error.source)?;
            if let Some((variable, pointer)) =
                self.environment.last_mut().zip(self.envp.iter_mut().rev().nth(1))
            {
                write_number(&mut variable[LISTEN_PID.len()..], std::process::id());
                *pointer = variable.as_ptr().cast();
            }
        }
        let Some(program) = self.words.first() else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        // SAFETY: the program is a C string, both lists are of C strings and end in null; all of them
        // live in `self`.
        unsafe { libc::execvpe(program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        Err(io::Error::last_os_error())
    }
}

/// Writes decimal digits and a NUL into `place`, without an allocation.
fn write_number(place: &mut [u8], number: u32) {
    let mut digits = [0; DIGITS];
    let mut rest = number;
    let mut length = 0;
    while rest > 0 || length == 0 {
        digits[length] = b'0' + (rest % 10) as u8;
        (rest, length) = (rest / 10, length + 1);
    }
    for (target, digit) in place.iter_mut().zip(digits[..length].iter().rev()) {
        *target = *digit;
    }
    place[length] = 0;
}

/// Makes this process the parent of all orphans below it, as the first process of a container is.
pub fn adopt_orphans() -> Result<(), SyscallError> {
    // SAFETY: numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    check("prctl(PR_SET_CHILD_SUBREAPER)", result.into()).map(drop)
}

/// Whether a child has ended and was not reaped yet. It stays a zombie, so that its id and that of its
/// process group mean nobody else.
pub fn has_ended(child: Pid) -> bool {
    // SAFETY: a siginfo_t is plain numbers; all zero is what the call leaves when there is nobody.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is writable and outlives the call.
    let result = unsafe { libc::waitid(libc::P_PID, child, &raw mut info, flags) };
    // SAFETY: the call filled it in for a child, or left it zero.
    result == 0 && unsafe { info.si_pid() } > 0
}

/// Takes note of the end of a child, whose id is free afterwards; `None` for one that has not ended,
/// or is no child.
pub fn reap(pid: Pid) -> Option<ExitStatus> {
    let mut status: c_int = 0;
    // SAFETY: `status` is writable and outlives the call.
    let result = unsafe { libc::waitpid(pid as libc::pid_t, &raw mut status, libc::WNOHANG) };
    (result > 0).then(|| ExitStatus::from_raw(status))
}

/// Sends a signal to a process.
pub fn kill(pid: Pid, signal: i32) -> Result<(), SyscallError> {
    // SAFETY: numbers only.
    let result = unsafe { libc::kill(pid as libc::pid_t, signal) };
    check("kill", result.into()).map(drop)
}

/// Sends a signal to all processes of a group; there may be none.
pub fn signal_group(leader: Pid, signal: i32) {
    // SAFETY: numbers only. The only failure is that nobody is there (any more).
    unsafe { libc::kill(-(leader as libc::pid_t), signal) };
}

/// Kills all processes of a group; there may be none.
pub fn kill_group(leader: Pid) {
    signal_group(leader, libc::SIGKILL);
}

/// Keeps every signal from the calling thread that can be kept.
pub fn block_signals() {
    // SAFETY: a sigset_t is plain bits; both calls are told of a writable one, or none.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut());
    }
}

/// `SIGTERM`, or the number where it has no common name.
pub fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSYS => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs::File;
    use std::io::{ErrorKind, Read as _};
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;
    use std::process::Stdio;
    use std::thread;

    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn start(image: &Image<'_>) -> io::Result<Child> {
        spawn(Command::new("").stdin(Stdio::null()).stdout(Stdio::piped()), image)
    }

    #[test]
    fn a_child_is_pinned_and_finds_its_listener() {
        let _third = File::open("/dev/null").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cpu = sched::affinity(0).unwrap().first().unwrap();
        let script = "echo $LISTEN_PID $$ $WORD; readlink /proc/self/fd/3; \
                      grep Cpus_allowed_list /proc/self/status";
        let words = words(&["sh", "-c", script]);
        let environment = [("PATH".into(), "/usr/bin:/bin".into()), ("WORD".into(), "x".into())];
        let listener = Some(listener.as_fd());
        let image = Image { words: &words, environment: &environment, cpu, listener };
        let mut child = start(&image).unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        let pid = child.id();
        assert!(child.wait().unwrap().success());
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], format!("{pid} {pid} x"));
        assert!(lines[1].starts_with("socket:["), "{said}");
        assert_eq!(lines[2], format!("Cpus_allowed_list:\t{cpu}"));
    }

    #[test]
    fn a_child_goes_with_the_thread_that_started_it() {
        let cpu = sched::affinity(0).unwrap().first().unwrap();
        let words = words(&["sleep", "600"]);
        let image = Image { words: &words, environment: &[], cpu, listener: None };
        let started = thread::scope(|scope| scope.spawn(|| start(&image)).join().unwrap());
        let status = started.and_then(|mut child| child.wait()).unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn what_cannot_be_started_is_an_error() {
        let cpu = sched::affinity(0).unwrap().first().unwrap();
        let failed = |program: &str| {
            let words = words(&[program]);
            start(&Image { words: &words, environment: &[], cpu, listener: None }).unwrap_err()
        };
        assert_eq!(failed("/nonexistent").kind(), ErrorKind::NotFound);
        assert_eq!(failed("/etc/passwd").kind(), ErrorKind::PermissionDenied);
        assert_eq!(failed("").kind(), ErrorKind::NotFound);
    }

    #[test]
    fn numbers_are_written_in_place() {
        for number in [0, 7, 10, 4_194_304, u32::MAX] {
            let mut place = [b'x'; DIGITS + 1];
            write_number(&mut place, number);
            let text = std::ffi::CStr::from_bytes_until_nul(&place).unwrap();
            assert_eq!(text.to_str().unwrap(), number.to_string());
        }
    }
}
