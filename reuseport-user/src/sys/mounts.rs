//! Mount namespaces: whether others see the file systems that this process sees.

use std::fs;
use std::io;
use std::iter::successors;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The nearest ancestor with other mounts than this process, as far as it may be asked: whoever ran `ip
/// netns exec`, which mounts another `/sys` for its command alone. In a container there is none.
pub(crate) fn outside() -> Option<u32> {
    let mounts = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().map(|it| it.ino());
    let us = std::process::id();
    let own = mounts(us)?;
    successors(Some(us), |&pid| parent(pid)).find(|&pid| mounts(pid).is_some_and(|it| it != own))
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    (parent != 0).then_some(parent)
}

/// Whether the file system at `path` is not there for [`outside`]: it goes with this mount namespace.
pub(crate) fn is_ours_alone(path: &Path) -> bool {
    let Some(pid) = outside() else { return false };
    let Ok(path) = path.canonicalize() else { return false };
    let there: PathBuf = Path::new("/proc").join(pid.to_string()).join("root");
    let there = path.strip_prefix("/").map(|path| there.join(path).metadata());
    match (path.metadata(), there) {
        (Ok(here), Ok(Ok(there))) => here.dev() != there.dev(),
        (Ok(_), Ok(Err(error))) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_sees_is_nobodys_alone() {
        assert!(!is_ours_alone(Path::new("/proc")));
        assert!(!is_ours_alone(Path::new("/does/not/exist")));
        assert_eq!(parent(std::process::id()), Some(std::os::unix::process::parent_id()));
        assert_eq!(parent(1), None);
    }
}
