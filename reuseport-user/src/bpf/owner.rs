//! Whose program a group runs: asked of the kernel with a BPF iterator, because no `getsockopt`
//! tells.

use std::collections::HashMap;
use std::io::{self, Read as _};

use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use reuseport_common::abi::{self, Member};
use serde::{Deserialize, Serialize};

use super::BpfError;
use super::object::Object;
use super::sockarray::Released;

/// `BPF_PROG_TYPE_SK_REUSEPORT`.
const SK_REUSEPORT: u32 = 21;

/// The program attached to a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Attached {
    /// No program: the kernel's hash.
    Nothing,
    /// This program.
    Program {
        /// The kernel's id, as `bpftool prog` shows it.
        id: u32,
    },
    /// A classic BPF program (`SO_ATTACH_REUSEPORT_CBPF`): it has no id.
    Classic,
    /// It could not be asked.
    Unknown {
        /// Why not.
        why: String,
    },
}

/// The listeners of a port, by socket cookie.
pub type Members = HashMap<u64, Member>;

/// Asks the kernel for the listeners of the port that `object` was loaded for, in the calling
/// thread's network namespace.
///
/// # Minimum kernel version
///
/// 5.9 with BTF; `CAP_PERFMON` beside `CAP_BPF`.
pub fn members(object: &mut Object) -> Result<Members, BpfError> {
    let program = object.load_iterator()?;
    let link = program.attach()?;
    let link = program.take_link(link)?;
    let mut file = link.into_file()?;
    let mut bytes = Vec::new();
    match file.read_to_end(&mut bytes) {
        // The program stopped at the first connection; what was read before is kept.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        result => _ = result?,
    }
    let (records, _) = bytes.as_chunks::<{ size_of::<Member>() }>();
    let members = records.iter().map(|record| bytemuck::pod_read_unaligned::<Member>(record));
    Ok(members.map(|member| (member.cookie, member)).collect())
}

impl Attached {
    /// What a group's member says.
    pub fn from_member(member: &Member) -> Self {
        match (member.attached, member.program) {
            (0, _) => Self::Nothing,
            (_, 0) => Self::Classic,
            (_, id) => Self::Program { id },
        }
    }
}

/// A program in the kernel that could be attached to a reuseport group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suspect {
    /// The kernel's id.
    pub id: u32,
    /// Its name, as far as the kernel keeps it (15 characters).
    pub name: String,
}

/// Programs of the reuseport type that are not in `ours`: all there is to go by without BTF.
pub fn suspects(ours: &[u32]) -> Result<Vec<Suspect>, BpfError> {
    let mut suspects = Vec::new();
    for program in loaded_programs() {
        let program = program?;
        if program.program_type() as u32 == SK_REUSEPORT && !ours.contains(&program.id()) {
            let name = program.name_as_str().unwrap_or_default().to_owned();
            suspects.push(Suspect { id: program.id(), name });
        }
    }
    Ok(suspects)
}

/// Name of a loaded program; `None` where it is gone or may not be asked for (`CAP_SYS_ADMIN`).
pub fn program_name(id: u32) -> Option<String> {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)?;
    Some(program.name_as_str()?.to_owned())
}

/// Whether a loaded program is this project's, of any version and from anywhere, by what it and its maps
/// are called. That is for telling people: names are no proof. False where it may not be asked
/// (`CAP_SYS_ADMIN`).
pub(crate) fn is_kin(id: u32) -> bool {
    let Some(program) = loaded_programs().filter_map(Result::ok).find(|it| it.id() == id) else {
        return false;
    };
    let named = program.name_as_str().is_some_and(|name| name.starts_with(abi::PROGRAM_SELECT));
    let maps = program.map_ids().ok().flatten().unwrap_or_default();
    let maps: Vec<_> = maps.into_iter().filter_map(|id| MapInfo::from_id(id).ok()).collect();
    let has = |name| maps.iter().any(|map| map.name_as_str() == Some(name));
    named && [abi::CONFIG, abi::TABLE, abi::SOCKETS].into_iter().all(has)
}

/// Frees those sockets of a foreign program's maps that have one of `cookies`: only on the user's
/// explicit takeover. Sockets of other groups stay where they are.
///
/// # Minimum kernel version
///
/// 4.19; `CAP_SYS_ADMIN`, which looking maps up by their id takes.
pub fn release_sockets(id: u32, cookies: &[u64]) -> Result<Released, BpfError> {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    let maps = program.map(|program| program.map_ids()).transpose()?.flatten();
    super::sockarray::release_foreign(&maps.unwrap_or_default(), cookies)
}
