//! What stands below the base directory, looked at without following it: where everybody may write
//! to bpffs, others may have been there first.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{PinsError, io_error};
use crate::sys::caps::Confinement;

/// What a name below the base directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Child {
    /// Nothing.
    Missing,
    /// A directory that only we, the base directory's owner or root may write.
    Directory,
    /// A link or a pin: nothing that we make there.
    Other,
}

/// Looks at `path` below `base`; [`PinsError::Unsafe`] where it is a directory of somebody else's.
pub(super) fn look(base: &Path, path: &Path) -> Result<Child, PinsError> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Child::Missing),
        Err(error) => return Err(io_error("look at", path)(error)),
    };
    let above = fs::symlink_metadata(base).map_err(io_error("look at", base))?;
    if !above.is_dir() {
        return Err(PinsError::NotDirectory { path: base.to_owned() });
    }
    if !meta.is_dir() {
        return Ok(Child::Other);
    }
    let us = Confinement::read().uid;
    check(path, &meta, &[us, above.uid(), 0], us)?;
    Ok(Child::Directory)
}

/// Refuses a directory that is not one of `owners`' or that others may write.
pub(super) fn check(
    path: &Path,
    meta: &Metadata,
    owners: &[u32],
    expected: u32,
) -> Result<(), PinsError> {
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 == 0 && owners.contains(&meta.uid()) {
        return Ok(());
    }
    Err(PinsError::Unsafe { path: path.to_owned(), mode, uid: meta.uid(), expected })
}

/// What to do about an unsafe directory. To make another user's ours would make what they planted
/// in it ours too.
pub(super) fn advice(path: &Path, owner: u32, expected: u32) -> String {
    let path = path.display();
    if owner == expected || owner == 0 {
        format!("run `chmod 0700 {path}`")
    } else {
        format!("it is not yours: run `rm -r {path}` (or run this as user {owner}, to use it)")
    }
}
