//! Passing a program that is pinned nowhere on to the next process: as descriptors it is started
//! with, named in its environment.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::process::Command;

use super::GroupError;
use crate::bpf::pins::{Descriptors, Pinned};
use crate::model::GroupKey;
use crate::sys::{SyscallError, inherited};

/// Holds `NAME=DESCRIPTOR` for each map and the program, commas between; groups are apart by
/// semicolons.
const VARIABLE: &str = "REUSEPORT_STEER_MAPS";

/// What was prepared for a child; see [`Group::pass_to`](super::Group::pass_to).
#[derive(Debug)]
#[must_use = "drop it when the child was started, not before"]
pub struct Passed {
    _descriptors: Vec<OwnedFd>,
}

/// Prepares `command` to be given the maps of all groups, beside those that it is to be given
/// already.
pub(super) fn pass<'a>(
    groups: impl Iterator<Item = &'a Descriptors>,
    command: &mut Command,
) -> Result<Passed, GroupError> {
    let mut descriptors = Vec::new();
    let set = command.get_envs().find(|(name, _)| *name == VARIABLE).and_then(|(_, value)| value);
    let mut texts: Vec<String> =
        set.and_then(OsStr::to_str).map(str::to_owned).into_iter().collect();
    for group in groups {
        let mut text = String::new();
        for (name, fd) in &group.0 {
            let fd = inherited::inheritable(fd.as_fd())?;
            let _infallible = write!(text, "{name}={},", fd.as_raw_fd());
            descriptors.push(fd);
        }
        texts.push(text);
    }
    if texts.is_empty() {
        // What this process was given means nothing to others.
        command.env_remove(VARIABLE);
    } else {
        command.env(VARIABLE, texts.join(";"));
    }
    Ok(Passed { _descriptors: descriptors })
}

/// What the process that started this one says it passed on. It may be somebody else's word: nothing
/// is taken that is not found to be what it should be.
#[derive(Debug)]
pub(super) struct Handed(Vec<Vec<(String, RawFd)>>);

impl Handed {
    pub(super) fn from_env() -> Self {
        Self(parse(&std::env::var(VARIABLE).unwrap_or_default()))
    }

    /// Takes what was passed on for a group. The rest stays for the other groups of this process.
    pub(super) fn take(&self, key: &GroupKey) -> Option<Descriptors> {
        let of_group = |names: &&Vec<(String, RawFd)>| -> bool {
            let Some(look) = each(names, |fd| inherited::duplicate(fd).map(Some)) else {
                return false;
            };
            let config = Pinned::adopt(&look, false).and_then(|pinned| pinned.maps.config());
            config.is_ok_and(|config| config.group == key.to_raw())
        };
        // The last one counts, where a process was told of a group twice.
        each(self.0.iter().rev().find(of_group)?, inherited::take)
    }
}

/// The descriptors of a group, if all can be had.
fn each(
    names: &[(String, RawFd)],
    get: impl Fn(RawFd) -> Result<Option<OwnedFd>, SyscallError>,
) -> Option<Descriptors> {
    let one = |(name, fd): &(String, RawFd)| Some((name.clone(), get(*fd).ok()??));
    names.iter().map(one).collect::<Option<_>>().map(Descriptors)
}

fn parse(text: &str) -> Vec<Vec<(String, RawFd)>> {
    let group = |text: &str| -> Vec<(String, RawFd)> {
        let one = |word: &str| {
            let (name, fd) = word.split_once('=')?;
            Some((name.to_owned(), fd.parse().ok()?))
        };
        text.split(',').filter_map(one).collect()
    };
    text.split(';').map(group).filter(|group| !group.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::SocketAddr;
    use std::path::Path;

    use super::*;
    use crate::group::Group;
    use crate::rungs::Rung;

    #[test]
    fn what_is_no_descriptor_is_left_out() {
        let pair = |name: &str, fd| (name.to_owned(), fd);
        assert_eq!(parse("a=5,b=6,;a=7,"), [vec![pair("a", 5), pair("b", 6)], vec![pair("a", 7)]]);
        for text in ["", ";", "a", "a=", "a=x", ",;,", "=;"] {
            assert!(parse(text).is_empty(), "{text:?}");
        }
    }

    /// A group that is pinned nowhere, so that it has something to pass on.
    fn unpinned() -> Group {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let builder = Group::builder().tcp(address).rung(Rung::Ebpf).bpffs("/proc");
        builder.build().unwrap()
    }

    #[test]
    fn each_group_finds_its_own_and_leaves_the_others() {
        let groups = [unpinned(), unpinned()];
        let mut command = Command::new("true");
        let passed = groups.each_ref().map(|group| group.pass_to(&mut command).unwrap());
        let (_, text) = command.get_envs().find(|(name, _)| *name == VARIABLE).unwrap();
        let handed = Handed(parse(text.and_then(OsStr::to_str).unwrap()));
        assert_eq!(handed.0.len(), 2);
        // They become the takers', as after an exec.
        passed.into_iter().for_each(std::mem::forget);
        for group in groups.iter().rev() {
            let key = group.steered[0].members.group.key;
            let found = handed.take(&key).expect("what was passed on");
            let config = Pinned::adopt(&found, false).unwrap().maps.config().unwrap();
            assert_eq!(config.group, key.to_raw());
            assert!(handed.take(&key).is_none(), "taken already");
        }
    }

    /// A name in the environment is no reason to close what somebody else has open.
    #[test]
    fn a_descriptor_that_is_something_else_is_left_alone() {
        let file = File::open("/dev/null").unwrap();
        let fd = inherited::inheritable(file.as_fd()).unwrap();
        let number = fd.as_raw_fd();
        let handed = Handed(parse(&format!("CONFIG={number},steer={number},")));
        let group = unpinned();
        assert!(handed.take(&group.steered[0].members.group.key).is_none());
        drop(handed);
        let target = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }

    #[test]
    fn what_was_meant_for_this_process_is_not_passed_on() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let group = Group::builder().tcp(address).rung(Rung::Hash).build().unwrap();
        let mut command = Command::new("true");
        drop(group.pass_to(&mut command).unwrap());
        let told: Vec<_> = command.get_envs().collect();
        assert_eq!(told, [(OsStr::new(VARIABLE), None)]);
    }
}
