//! A system booted by systemd: our units as an init system runs them, on a copy of this machine's
//! files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::bpffs::Bpffs;
use crate::eventually;
use crate::netns::Netns;
use crate::process::{self, Reaped, children, tool};
use crate::require;

const PATIENCE: Duration = Duration::from_mins(1);

/// The files of this machine, to be written over without changing them.
#[derive(Debug)]
pub struct Files {
    home: tempfile::TempDir,
}

impl Files {
    /// Lays an empty layer in memory over the root.
    #[expect(clippy::new_without_default, reason = "makes a kernel object")]
    pub fn new() -> Self {
        require::root();
        let home = tempfile::tempdir().expect("a directory");
        let files = Self { home };
        for name in ["layer", "root"] {
            fs::create_dir(files.home.path().join(name)).expect("make a directory");
        }
        let layer = files.home.path().join("layer");
        tool("mount", &["-t", "tmpfs", "tmpfs", text(&layer)]);
        for name in ["upper", "work"] {
            fs::create_dir(layer.join(name)).expect("make a directory");
        }
        let layer = layer.display();
        let options = format!("lowerdir=/,upperdir={layer}/upper,workdir={layer}/work");
        tool("mount", &["-t", "overlay", "-o", &options, "overlay", text(&files.root())]);
        files
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    /// Puts a file there.
    pub fn write(&self, path: &str, content: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("mkdir");
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Copies a program there.
    pub fn install(&self, from: &Path, path: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("mkdir");
        fs::copy(from, &path).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    /// Boots it into `target`, with a network of its own and with `bpffs` where it belongs.
    pub fn boot(self, target: &str, bpffs: &Bpffs) -> Booted {
        let log = fs::File::create(self.home.path().join("console")).expect("make a file");
        let mut nspawn = process::command("systemd-nspawn");
        nspawn.arg(format!("--directory={}", self.root().display()));
        nspawn.arg(format!("--bind={}:/sys/fs/bpf", bpffs.path().display()));
        nspawn.args(["--boot", "--private-network", "--register=no", "--keep-unit"]);
        nspawn.args([
            "--capability=CAP_BPF,CAP_PERFMON",
            "--system-call-filter=bpf pidfd_getfd",
            "--quiet",
        ]);
        nspawn.arg(format!("--machine=steer-test-{}", std::process::id()));
        nspawn.arg(format!("systemd.unit={target}"));
        nspawn.stdin(Stdio::null()).stdout(log.try_clone().expect("dup a file")).stderr(log);
        let nspawn = Reaped(nspawn.spawn().expect("start systemd-nspawn"));
        let mut booted = Booted { nspawn, init: 0, files: self };
        let up = eventually(PATIENCE, || {
            booted.init = children(booted.nspawn.pid()).first().copied().unwrap_or_default();
            booted.init != 0 && booted.systemctl(&["is-active", target]).trim() == "active"
        });
        assert!(up, "it does not boot:\n{}", booted.console());
        booted
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for name in ["root", "layer"] {
            let path = self.home.path().join(name);
            drop(process::command("umount").arg("--lazy").arg(path).status());
        }
    }
}

/// A booted system; switched off on drop.
#[derive(Debug)]
pub struct Booted {
    nspawn: Reaped,
    init: u32,
    files: Files,
}

impl Booted {
    /// A command inside, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = process::command("nsenter");
        command.args(["--all", "--target", &self.init.to_string(), program]);
        command
    }

    /// `systemctl`; what it printed, whatever it thought of it.
    pub fn systemctl(&self, args: &[&str]) -> String {
        let mut command = self.command("systemctl");
        let (_, stdout, stderr) = process::capture(command.args(args), PATIENCE);
        stdout + &stderr
    }

    /// A property of a unit, as `systemctl show` has it.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(&["show", "--value", "--property", name, unit]).trim().to_owned()
    }

    /// Its network.
    pub fn netns(&self) -> Netns {
        Netns::of(self.init)
    }

    /// What the unit logged.
    pub fn journal(&self, unit: &str) -> String {
        let mut command = self.command("journalctl");
        command.args(["--no-pager", "--output", "cat", "--unit", unit]);
        process::capture(&mut command, PATIENCE).1
    }

    /// What the system said of itself.
    pub fn console(&self) -> String {
        fs::read_to_string(self.files.home.path().join("console")).unwrap_or_default()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Its first process is ours to end: everything inside goes with it.
        if self.init != 0 {
            drop(crate::sys::kill(self.init, libc::SIGKILL));
        }
        self.nspawn.wait(Duration::from_secs(10));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is text")
}
