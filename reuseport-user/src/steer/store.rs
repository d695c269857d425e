//! Where a group's program and maps are kept: pinned, or with this process alone.

use crate::bpf::BpfError;
use crate::bpf::object::Object;
use crate::bpf::owner::Attached;
use crate::bpf::pins::{Descriptors, LockedPins, Pinned, PinsError};
use crate::model::{Group, GroupKey};

use super::SteerError;
use super::ownership::{self, Ours};

/// Where to look, and where to put.
pub(super) enum Store<'a> {
    /// For everybody, and after us.
    Pins(&'a LockedPins),
    /// For this process, and those that it passes them on to.
    Process {
        /// What is in force.
        current: Option<Descriptors>,
        /// What may be soon.
        staged: Option<Descriptors>,
    },
}

impl Store<'_> {
    /// Puts right what a crash left. What a process had goes with it.
    pub(super) fn recover(&self, group: &Group, attached: &Attached) -> Result<(), SteerError> {
        match self {
            Self::Pins(pins) => ownership::recover(pins, group, attached),
            Self::Process { .. } => Ok(()),
        }
    }

    /// What is there, and whether it is in force.
    pub(super) fn examine(&self, group: &Group, attached: &Attached) -> Result<Ours, SteerError> {
        if let Self::Pins(pins) = self {
            return ownership::examine(pins, group, attached);
        }
        let pinned = self.open(&group.key).map_err(SteerError::from)?;
        let in_force = match &pinned {
            Some(pinned) => ownership::is_in_force(pinned, group, attached)?,
            None => false,
        };
        Ok(Ours { pinned, in_force, notices: Vec::new() })
    }

    /// Ids of the programs that are ours, for this group or another.
    pub(super) fn program_ids(&self) -> Result<Vec<u32>, SteerError> {
        match self {
            Self::Pins(pins) => Ok(pins.program_ids()?),
            Self::Process { current, .. } => {
                let adopted = current.iter().filter_map(|it| Pinned::adopt(it, false).ok());
                Ok(adopted.map(|pinned| pinned.program_id).collect())
            }
        }
    }

    /// Puts a loaded object aside.
    pub(super) fn stage(
        &mut self,
        group: &GroupKey,
        object: &mut Object,
        migrates: bool,
    ) -> Result<Pinned, SteerError> {
        match self {
            Self::Pins(pins) => Ok(pins.stage(group, object, migrates)?),
            Self::Process { staged, .. } => {
                let of = SteerError::of(group);
                let descriptors = object.descriptors(migrates).map_err(&of)?;
                let pinned = Pinned::adopt(&descriptors, true).map_err(&of)?;
                *staged = Some(descriptors);
                Ok(pinned)
            }
        }
    }

    /// Puts what was staged in the place of what is there.
    pub(super) fn commit(&mut self, new: &mut Pinned, group: &GroupKey) -> Result<(), SteerError> {
        match self {
            Self::Pins(pins) => pins.commit(new, group)?,
            Self::Process { current, staged } => *current = staged.take(),
        }
        Ok(())
    }

    /// Throws away what was staged.
    pub(super) fn discard(&mut self, group: &GroupKey) -> Result<(), SteerError> {
        match self {
            Self::Pins(pins) => pins.remove(&pins.staged(group))?,
            Self::Process { staged, .. } => *staged = None,
        }
        Ok(())
    }

    /// Frees the sockets of what another version left.
    pub(super) fn release(&self, group: &GroupKey) -> Result<(), SteerError> {
        match self {
            Self::Pins(pins) => Ok(pins.release(group)?),
            // Another version's descriptors are not taken over in the first place.
            Self::Process { .. } => Ok(()),
        }
    }

    /// Opens what is there for the group, if there is anything.
    pub(super) fn open(&self, group: &GroupKey) -> Result<Option<Pinned>, PinsError> {
        match self {
            Self::Pins(pins) => pins.open(group),
            Self::Process { current: None, .. } => Ok(None),
            Self::Process { current: Some(descriptors), .. } => {
                match Pinned::adopt(descriptors, false) {
                    Ok(pinned) => Ok(is_of(&pinned, group)?.then_some(pinned)),
                    // Passed on by another version.
                    Err(BpfError::Shape(_)) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

fn is_of(pinned: &Pinned, group: &GroupKey) -> Result<bool, BpfError> {
    Ok(pinned.maps.config()?.group == group.to_raw())
}
