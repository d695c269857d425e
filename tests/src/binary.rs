//! The command under test, run as a user runs it.
#![expect(clippy::return_self_not_must_use, reason = "a checked outcome needs no further use")]

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::netns::Netns;
use crate::process::{self, must};
use crate::turn::Turn;

/// The built `reuseport-steer`: `$REUSEPORT_STEER`, else the one beside the test binary.
pub fn path() -> PathBuf {
    let path =
        env::var_os("REUSEPORT_STEER").map_or_else(|| beside("reuseport-steer"), PathBuf::from);
    assert!(
        path.is_file(),
        "{} does not exist: build it, or run `cargo xtask test`, which does",
        path.display()
    );
    path
}

/// A binary of this build: beside this one, or one up when this one is a test (`deps/`).
pub(crate) fn beside(name: &str) -> PathBuf {
    let own = env::current_exe().expect("the path of this binary");
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| own.with_file_name(name))
}

/// A run of the command, described.
#[derive(Debug)]
pub struct Cli<'a> {
    binary: Option<PathBuf>,
    through: Vec<OsString>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    netns: Option<&'a Netns>,
    uid: Option<u32>,
    capabilities: Option<Vec<String>>,
    limit: Duration,
}

impl<'a> Cli<'a> {
    /// With these arguments, in the tests' own namespace, as root.
    pub fn new<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let limit = Duration::from_mins(1);
        Self {
            binary: None,
            through: Vec::new(),
            args,
            env: Vec::new(),
            netns: None,
            uid: None,
            capabilities: None,
            limit,
        }
    }

    /// Another program in the command's place.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Started by another command that is given it as its last arguments and becomes it: `unshare
    /// -U`, or [`crate::hostile::seccomp`]. It runs as root; users and capabilities change after it.
    pub fn through<A: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = A>) -> Self {
        self.through.extend(command.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Inside `netns`.
    pub fn netns(mut self, netns: &'a Netns) -> Self {
        self.netns = Some(netns);
        self
    }

    /// With an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// As this user and group, without supplementary groups.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// With these capabilities and no others, named as setpriv names them: `bpf`, `net_admin`.
    /// Without this, root has all and other users none.
    pub fn capabilities(mut self, names: &[&str]) -> Self {
        self.capabilities = Some(names.iter().map(|name| format!("+{name}")).collect());
        self
    }

    /// Killed after this time, which fails the test; a minute unless told.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    pub fn run(&self) -> Outcome {
        let _turn = self.netns.is_none().then(Turn::shared);
        // Another user may not be able to reach the build directory.
        let binary = self.binary.clone().unwrap_or_else(path);
        let reachable = self.uid.map(|_| copy(&binary));
        let binary = reachable.as_ref().map_or(binary, |dir| dir.path().join("reuseport-steer"));
        let mut words = self.through.clone();
        if let Some(flags) = self.wrapper() {
            words.push("setpriv".into());
            words.extend(flags.into_iter().map(OsString::from));
            words.push("--".into());
        }
        words.push(binary.into());
        let mut command = self.command(&words[0]);
        command.args(&words[1..]);
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        let (status, stdout, stderr) = process::capture(&mut command, self.limit);
        let outcome = Outcome { args: self.args.clone(), code: None, stdout, stderr };
        let Some(status) = status else {
            panic!("ran longer than {:?} and was killed: {outcome}", self.limit)
        };
        Outcome { code: status.code(), ..outcome }
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match self.netns {
            Some(netns) => netns.command(program),
            None => process::command(program),
        }
    }

    /// Flags of setpriv, where it is needed.
    fn wrapper(&self) -> Option<Vec<String>> {
        let mut flags = Vec::new();
        if let Some(uid) = self.uid {
            flags.extend([format!("--reuid={uid}"), format!("--regid={uid}")]);
            flags.push("--clear-groups".to_owned());
        }
        if let Some(names) = &self.capabilities {
            // Root gets on exec what the bounding set leaves; others keep what is ambient.
            let set = std::iter::once("-all").chain(names.iter().map(String::as_str));
            let set = set.collect::<Vec<_>>().join(",");
            flags.push(format!("--inh-caps={set}"));
            flags.push(format!("--ambient-caps={set}"));
            flags.push(format!("--bounding-set={set}"));
        }
        (!flags.is_empty()).then_some(flags)
    }
}

fn copy(binary: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    // By another process: a child that a test beside this one forks while we have the copy open for
    // writing would keep it busy.
    must(process::command("cp").arg(binary).arg(directory.path().join("reuseport-steer")));
    directory
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    args: Vec<OsString>,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Asserts success.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Asserts this exit code, and that an error was said on stderr without a panic.
    pub fn fails(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        assert!(!self.stderr.is_empty(), "failed without a word: {self}");
        assert!(!self.stderr.contains("panicked at"), "{self}");
        self
    }

    /// Asserts that the error says `part`.
    pub fn says(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "stderr does not say {part:?}: {self}");
        self
    }

    /// Standard output as one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not JSON ({error}): {self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let args: Vec<_> = self.args.iter().map(|arg| arg.to_string_lossy()).collect();
        writeln!(f, "reuseport-steer {}: exit code {:?}", args.join(" "), self.code)?;
        write!(f, "--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr)
    }
}
