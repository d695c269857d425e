//! A BPF file system of a test's own: its pins and its lock are nobody else's.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use crate::process::{command, tool};
use crate::require;
use crate::turn::Turn;

/// A mounted, empty bpffs; unmounted on drop.
#[derive(Debug)]
pub struct Bpffs {
    directory: tempfile::TempDir,
    _turn: Turn,
}

impl Bpffs {
    /// Mounts one that belongs to root.
    #[expect(clippy::new_without_default, reason = "makes a kernel object")]
    pub fn new() -> Self {
        require::root();
        let turn = Turn::shared();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let bpffs = Self { directory, _turn: turn };
        bpffs.mount();
        bpffs
    }

    /// Mounts an empty one in its place, where it was unmounted.
    pub fn mount(&self) {
        let path = self.path().to_str().expect("a path of ours is text");
        tool("mount", &["-t", "bpf", "bpf", path]);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod a bpffs");
    }

    /// Leaves an empty directory in its place.
    pub fn unmount(&self) {
        tool("umount", &[self.path().to_str().expect("a path of ours is text")]);
    }

    /// Gives it to a user.
    pub fn owned_by(&self, uid: u32) {
        chown(self.path(), Some(uid), Some(uid)).expect("chown a bpffs");
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The directory that holds the pins, which need not exist.
    pub fn base(&self) -> PathBuf {
        self.path().join("reuseport-steer")
    }

    /// Names below the base directory: one for each pinned or half-made group.
    pub fn pins(&self) -> Vec<String> {
        let entries = fs::read_dir(self.base()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Lazily: a child that is about to end may still hold it.
        drop(command("umount").arg("--lazy").arg(self.path()).status());
    }
}
