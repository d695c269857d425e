//! Whose program a group runs, and whether it is ours to replace or remove.

use crate::bpf::BpfError;
use crate::bpf::maps::Sizes;
use crate::bpf::object::{LoadOptions, Object};
use crate::bpf::owner::{self, Attached, Members};
use crate::bpf::pins::{LockedPins, Pinned, Pins, PinsError};
use crate::discover::Target;
use crate::model::{Group, Protocol};

use super::{Notice, Settings, SteerError, in_netns};

/// Who is attached to what on a port, asked of the kernel once for all groups of a target.
///
/// Only the lack of BTF or of `CAP_PERFMON` makes it unknown; for UDP there is no iterator here.
pub(crate) struct Census(Result<Members, String>);

impl Census {
    /// Asks through `object`; all `groups` are in one namespace, as discovery finds them.
    pub(crate) fn take(
        object: &mut Object,
        groups: &[Group],
        target: &Target,
    ) -> Result<Self, SteerError> {
        let Some(first) = groups.first() else { return Ok(Self::of_nobody()) };
        if target.protocol != Protocol::Tcp {
            return Ok(Self(Err("the kernel is asked about TCP listeners only".to_owned())));
        }
        match in_netns(first, target, || owner::members(object))? {
            Ok(members) => Ok(Self(Ok(members))),
            Err(error @ (BpfError::Btf(_) | BpfError::NotPermitted { .. } | BpfError::Load(_))) => {
                Ok(Self::unknown(&error))
            }
            Err(error) => Err(SteerError::of(&first.key)(error)),
        }
    }

    /// Asks through an object that is loaded only for it: its maps are as small as they get.
    pub(super) fn ask(
        groups: &[Group],
        target: &Target,
        settings: &Settings,
    ) -> Result<Self, SteerError> {
        let Some(first) = groups.first() else { return Ok(Self::of_nobody()) };
        let options = LoadOptions {
            sizes: Sizes::for_group(0, 0),
            port: target.port,
            log: false,
            verifier_log: settings.verifier_log,
        };
        let mut object = Object::load(&options).map_err(SteerError::of(&first.key))?;
        Self::take(&mut object, groups, target)
    }

    /// There is nobody to ask about.
    pub(crate) fn of_nobody() -> Self {
        Self(Ok(Members::new()))
    }

    /// It could not be asked at all.
    pub(super) fn unknown(why: &dyn std::error::Error) -> Self {
        Self(Err(why.to_string()))
    }

    /// What is attached to `group`.
    pub(crate) fn attached(&self, group: &Group) -> Attached {
        let members = match &self.0 {
            Ok(members) => members,
            Err(why) => return Attached::Unknown { why: why.clone() },
        };
        let mut found = group.listeners.iter().filter_map(|it| members.get(&it.cookie));
        match found.next() {
            Some(member) => Attached::from_member(member),
            None => Attached::Unknown { why: "its listeners changed meanwhile".to_owned() },
        }
    }
}

/// The group's pins and what they mean now.
pub(super) struct Ours {
    /// The pins, if they can be read.
    pub(super) pinned: Option<Pinned>,
    /// Whether their program is the one attached, also where another version made them.
    pub(super) in_force: bool,
    /// What the user should know.
    pub(super) notices: Vec<Notice>,
}

impl Ours {
    /// Where pins are out of reach.
    pub(super) fn nothing() -> Self {
        Self { pinned: None, in_force: false, notices: Vec::new() }
    }
}

/// Puts right what a crash between two steps left behind, so that the group has its pins in place
/// or none.
pub(super) fn recover(
    pins: &LockedPins,
    group: &Group,
    attached: &Attached,
) -> Result<(), SteerError> {
    let staged = pins.staged(&group.key);
    if staged.exists() {
        match Pinned::open(staged.clone()) {
            // Killed between attaching and renaming: all but the name is done. Where it cannot be
            // seen, who holds the sockets is as good as attached: the alternative is to lose it.
            Ok(mut pinned)
                if match attached {
                    Attached::Program { id } => pinned.program_id == *id,
                    Attached::Unknown { .. } => holds_any(&pinned, group)?,
                    Attached::Nothing | Attached::Classic => false,
                } =>
            {
                pins.commit(&mut pinned, &group.key)?;
            }
            _ => pins.remove(&staged)?,
        }
    }
    // Killed between the two renames: the old one is not attached any more, or it would be in place.
    pins.remove(&pins.replaced(&group.key))?;
    Ok(())
}

/// Opens the group's pins and compares them with what is attached.
pub(super) fn examine(pins: &Pins, group: &Group, attached: &Attached) -> Result<Ours, SteerError> {
    let mut notices = Vec::new();
    let mut other_versions = None;
    let pinned = match pins.open(&group.key) {
        Ok(pinned) => pinned,
        // Made by another version, or half removed: nothing here can be used.
        Err(PinsError::Bpf(BpfError::Shape(what))) => {
            other_versions = pins.program_id(&group.key);
            notices.push(Notice::new(
                format!("the pins are another version's ({what})"),
                "they are replaced by `attach`, removed by `detach`",
            ));
            None
        }
        Err(PinsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            notices.push(Notice::new(
                "the pins are incomplete",
                "they are replaced by `attach`, removed by `detach`",
            ));
            None
        }
        Err(error) => return Err(error.into()),
    };
    let in_force = match (&pinned, attached) {
        (None, Attached::Program { id }) => other_versions == Some(*id),
        (None, _) => false,
        (Some(pinned), _) => is_in_force(pinned, group, attached)?,
    };
    Ok(Ours { pinned, in_force, notices })
}

/// Whether the pinned program is the one attached.
pub(crate) fn is_in_force(
    pinned: &Pinned,
    group: &Group,
    attached: &Attached,
) -> Result<bool, SteerError> {
    match attached {
        Attached::Nothing | Attached::Classic => Ok(false),
        Attached::Program { id } => Ok(pinned.program_id == *id),
        // Nothing better to go by: ours holds sockets of this group, and sockets are in one map only.
        Attached::Unknown { .. } => holds_any(pinned, group),
    }
}

/// Refuses to touch what is somebody else's, unless told to. `known` are the programs that are ours.
pub(super) fn permit(
    group: &Group,
    attached: &Attached,
    ours: &Ours,
    takeover: bool,
    known: impl FnOnce() -> Result<Vec<u32>, SteerError>,
) -> Result<(), SteerError> {
    if ours.in_force || takeover {
        return Ok(());
    }
    match attached {
        Attached::Nothing => Ok(()),
        Attached::Program { .. } | Attached::Classic => {
            Err(SteerError::foreign(&group.key, attached))
        }
        Attached::Unknown { why } => {
            // Listing programs takes CAP_SYS_ADMIN; without it nothing suggests a foreign one.
            match owner::suspects(&known()?) {
                Ok(suspects) if !suspects.is_empty() => {
                    Err(SteerError::Suspicious { group: group.key, why: why.clone(), suspects })
                }
                _ => Ok(()),
            }
        }
    }
}

/// Whether a listener of the group sits in the pinned map.
fn holds_any(pinned: &Pinned, group: &Group) -> Result<bool, SteerError> {
    let cookies = pinned.maps.sockets.cookies().map_err(SteerError::of(&group.key))?;
    let is_member = |cookie: u64| group.listeners.iter().any(|it| it.cookie == cookie);
    Ok(cookies.into_iter().flatten().any(is_member))
}
