//! The user's own load command, run once: bounded, alone in its process group, its output kept.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::sys::signal::is_ignored;
use crate::sys::spawn;

/// How often to look whether it has ended.
const POLL: Duration = Duration::from_millis(10);

/// What it printed.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Output {
    /// The last lines, for an error.
    pub(super) fn tail(&self) -> String {
        const LINES: usize = 5;
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let lines: Vec<&str> = text.trim().lines().collect();
        let tail = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
        if tail.is_empty() {
            "it printed nothing".to_owned()
        } else {
            format!("it printed\n  {tail}")
        }
    }
}

/// Why a run of the load gave no output.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It never ran.
    #[error("cannot start `{command}` with /bin/sh: {source}")]
    Start {
        /// What was to be run.
        command: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("the load command failed ({status}): {tail}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        tail: String,
    },
    /// It hangs, or takes long.
    #[error(
        "the load command was killed after {} s (--timeout); {tail}", limit.as_secs_f64()
    )]
    TooLong {
        /// What it had.
        limit: Duration,
        /// The end of what it printed.
        tail: String,
    },
    /// A signal came for us, and it was killed.
    #[error("ended by a signal")]
    Interrupted,
}

/// Signals that end an experiment, caught: the last that came.
#[derive(Debug)]
pub(super) struct Interrupts(Arc<AtomicUsize>);

impl Interrupts {
    /// From now on they do not end the process.
    pub(super) fn catch() -> io::Result<Self> {
        let last = Arc::new(AtomicUsize::new(0));
        // Whoever started us with `nohup` wants us to outlive the terminal.
        let minded = [SIGINT, SIGTERM, SIGQUIT, SIGHUP].into_iter();
        for signal in minded.filter(|&it| it != SIGHUP || !is_ignored(it).unwrap_or(false)) {
            signal_hook::flag::register_usize(signal, Arc::clone(&last), signal as usize)?;
        }
        Ok(Self(last))
    }

    /// Which came.
    pub(super) fn came(&self) -> Option<&'static str> {
        match self.0.load(Relaxed) as i32 {
            0 => None,
            SIGINT => Some("SIGINT"),
            SIGTERM => Some("SIGTERM"),
            SIGQUIT => Some("SIGQUIT"),
            _ => Some("SIGHUP"),
        }
    }
}

/// A run of the load; its whole group is killed when this is dropped, also what the shell left.
struct Running {
    child: Child,
    ended: bool,
}

impl Running {
    fn end(&mut self) -> io::Result<ExitStatus> {
        // A zombie at worst, so that the number of its group is its own; after the wait it is not.
        spawn::kill_group(self.child.id());
        self.ended = true;
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _status = self.end();
        }
    }
}

/// Runs `command` by a shell until it ends.
pub(super) fn run(
    command: &str,
    limit: Duration,
    interrupts: &Interrupts,
) -> Result<Output, LoadError> {
    let start = |source| LoadError::Start { command: command.to_owned(), source };
    // Files, not pipes: what it leaves in the background cannot make us wait.
    let (stdout, stderr) = (tempfile::tempfile(), tempfile::tempfile());
    let mut files = [stdout.map_err(start)?, stderr.map_err(start)?];
    let [stdout, stderr] = files.each_ref().map(File::try_clone);
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null());
    shell.stdout(stdout.map_err(start)?).stderr(stderr.map_err(start)?);
    // Out of reach of the terminal's Ctrl-C: we end it, and then restore.
    let mut running =
        Running { child: shell.process_group(0).spawn().map_err(start)?, ended: false };
    let begin = Instant::now();
    let status = loop {
        if spawn::has_ended(running.child.id()) {
            break Some(running.end().map_err(start)?);
        }
        if interrupts.came().is_some() {
            return Err(LoadError::Interrupted);
        }
        if begin.elapsed() > limit {
            break None;
        }
        sleep(POLL);
    };
    drop(running);
    let [stdout, stderr] = files.each_mut().map(text);
    let output = Output { stdout: stdout.map_err(start)?, stderr: stderr.map_err(start)? };
    match status {
        Some(status) if status.success() => Ok(output),
        Some(status) => Err(LoadError::Failed { status, tail: output.tail() }),
        None => Err(LoadError::TooLong { limit, tail: output.tail() }),
    }
}

fn text(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_quietly(command: &str, limit: Duration) -> Result<Output, LoadError> {
        run(command, limit, &Interrupts(Arc::default()))
    }

    #[test]
    fn both_outputs_are_kept() {
        let output = run_quietly("echo out; echo err >&2", Duration::from_mins(1)).unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn a_failure_tells_the_end_of_what_was_printed() {
        let error = run_quietly("seq 9; exit 3", Duration::from_mins(1)).unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.ends_with("5\n  6\n  7\n  8\n  9"),
            "{error}"
        );
        let error = run_quietly("no-such-program", Duration::from_mins(1)).unwrap_err().to_string();
        assert!(error.contains("127") && error.contains("not found"), "{error}");
        let error = run_quietly("false", Duration::from_mins(1)).unwrap_err().to_string();
        assert!(error.contains("it printed nothing"), "{error}");
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        let begin = Instant::now();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("late");
        let late = format!("(sleep 2; touch {}) & sleep 600", file.display());
        let error = run_quietly(&late, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, LoadError::TooLong { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_mins(1));
        sleep(Duration::from_millis(2500));
        assert!(!file.exists(), "a child of it went on");
    }

    #[test]
    fn what_it_leaves_in_the_background_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("late");
        let late = format!("(sleep 1; touch {}) & echo left", file.display());
        let output = run_quietly(&late, Duration::from_mins(1)).unwrap();
        assert_eq!(output.stdout, "left\n");
        sleep(Duration::from_millis(1500));
        assert!(!file.exists(), "it went on");
    }

    #[test]
    fn a_signal_ends_it() {
        let interrupts = Interrupts(Arc::new(AtomicUsize::new(SIGTERM as usize)));
        let error = run("sleep 600", Duration::from_mins(10), &interrupts).unwrap_err();
        assert!(matches!(error, LoadError::Interrupted), "{error}");
        assert_eq!(interrupts.came(), Some("SIGTERM"));
    }
}
