//! Passing a program that is pinned nowhere on to the next process: as descriptors it is started
//! with, named in its environment.

use std::fmt::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::process::Command;

use super::GroupError;
use crate::bpf::pins::{Descriptors, Pinned};
use crate::model::GroupKey;
use crate::sys::inherited;

/// Holds `NAME=DESCRIPTOR` for each map and the program, commas between; groups are apart by
/// semicolons.
const VARIABLE: &str = "REUSEPORT_STEER_MAPS";

/// What was prepared for a child; see [`Group::pass_to`](super::Group::pass_to).
#[derive(Debug)]
#[must_use = "drop it when the child was started, not before"]
pub struct Passed {
    _descriptors: Vec<OwnedFd>,
}

/// Prepares `command` to be given the maps of all groups.
pub(super) fn pass<'a>(
    groups: impl Iterator<Item = &'a Descriptors>,
    command: &mut Command,
) -> Result<Passed, GroupError> {
    let mut descriptors = Vec::new();
    let mut groups_text = Vec::new();
    for group in groups {
        let mut text = String::new();
        for (name, fd) in &group.0 {
            let fd = inherited::inheritable(fd.as_fd())?;
            let _infallible = write!(text, "{name}={},", fd.as_raw_fd());
            descriptors.push(fd);
        }
        groups_text.push(text);
    }
    if !descriptors.is_empty() {
        command.env(VARIABLE, groups_text.join(";"));
    }
    Ok(Passed { _descriptors: descriptors })
}

/// What the process that started this one passed on.
pub(super) fn from_env() -> Result<Vec<Descriptors>, GroupError> {
    let mut groups = Vec::new();
    for group in parse(&std::env::var(VARIABLE).unwrap_or_default()) {
        let mut descriptors = Vec::new();
        for (name, fd) in group {
            descriptors.extend(inherited::take(fd)?.map(|fd| (name, fd)));
        }
        groups.push(Descriptors(descriptors));
    }
    Ok(groups)
}

/// Takes the one of a group out of what was passed on; what is no program of ours is nobody's.
pub(super) fn find(passed: &mut Vec<Descriptors>, key: &GroupKey) -> Option<Descriptors> {
    let is_of = |descriptors: &Descriptors| {
        let config = Pinned::adopt(descriptors, false).ok()?.maps.config().ok()?;
        Some(config.group == key.to_raw())
    };
    let place = passed.iter().position(|it| is_of(it) == Some(true))?;
    Some(passed.swap_remove(place))
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
    use super::*;

    #[test]
    fn what_is_no_descriptor_is_left_out() {
        let pair = |name: &str, fd| (name.to_owned(), fd);
        assert_eq!(parse("a=5,b=6,;a=7,"), [vec![pair("a", 5), pair("b", 6)], vec![pair("a", 7)]]);
        for text in ["", ";", "a", "a=", "a=x", ",;,", "=;"] {
            assert!(parse(text).is_empty(), "{text:?}");
        }
    }
}
