//! A program with its maps, from its pins or from descriptors of this process.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use aya::programs::SkReuseport;
use aya::programs::sk_reuseport::SkReuseportAttachType;

use super::{PROGRAM, PinsError, inode, io_error, sort_pin};
use crate::bpf::BpfError;
use crate::bpf::maps::Maps;
use crate::sys::sockopt;

/// A program with its maps.
#[derive(Debug)]
pub struct Pinned {
    /// Where it is pinned; `None` where this process alone has it open.
    pub directory: Option<PathBuf>,
    /// The maps.
    pub maps: Maps,
    program: OwnedFd,
    /// The kernel's id of the program.
    pub program_id: u32,
    /// Of the directory, which keeps it when it is renamed.
    inode: u64,
}

/// A program and its maps as this process has them open, by the names of their pins.
#[derive(Debug, Default)]
pub(crate) struct Descriptors(pub(crate) Vec<(String, OwnedFd)>);

impl Pinned {
    /// Opens the pins in `directory`, if they are of this version's ABI.
    pub fn open(directory: PathBuf) -> Result<Self, PinsError> {
        let maps = Maps::open(&in_directory(&directory));
        Self::with(directory, maps)
    }

    /// As [`Pinned::open`], with maps that were opened already.
    pub(super) fn with(
        directory: PathBuf,
        maps: Result<Maps, BpfError>,
    ) -> Result<Self, PinsError> {
        let maps = maps.map_err(|error| sort_pin(&directory, error))?;
        let (program, program_id) =
            open_program(&directory).map_err(|error| sort_pin(&directory, error))?;
        let inode = inode(&directory).map_err(io_error("look at", &directory))?;
        Ok(Self { directory: Some(directory), maps, program, program_id, inode })
    }

    /// Whether these pins are still where they were opened: somebody else may have removed them, or put
    /// others in their place. What is pinned nowhere is nobody else's to change.
    pub fn is_in_place(&self) -> bool {
        let still = |directory: &PathBuf| inode(directory).is_ok_and(|inode| inode == self.inode);
        self.directory.as_ref().is_none_or(still)
    }

    /// Takes them from descriptors, if they are of this version's ABI or, with `unfilled`, not
    /// filled yet.
    pub(crate) fn adopt(descriptors: &Descriptors, unfilled: bool) -> Result<Self, BpfError> {
        let map = |name: &str| Ok(MapData::from_fd(descriptors.get(name)?)?);
        let maps = if unfilled { Maps::open_unfilled(&map) } else { Maps::open(&map) };
        let program = descriptors.get(PROGRAM)?;
        let program_id = program_id(program.as_fd())?;
        Ok(Self { directory: None, maps: maps?, program, program_id, inode: 0 })
    }

    /// Attaches the program to the group of `socket`, in place of whatever is attached.
    ///
    /// The caller has verified that the socket listens: the kernel takes a bound one silently, and
    /// its later `listen()` then fails with `EADDRINUSE`.
    ///
    /// # Minimum kernel version
    ///
    /// 4.19.
    pub fn attach(&self, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        Ok(sockopt::attach_reuseport(socket, self.program.as_fd())?)
    }
}

impl Descriptors {
    /// A duplicate of the one with that name.
    fn get(&self, name: &str) -> Result<OwnedFd, BpfError> {
        let found = self.0.iter().find(|(it, _)| it == name);
        let (_, fd) = found.ok_or_else(|| BpfError::Shape(format!("there is no {name}")))?;
        Ok(fd.try_clone()?)
    }

    /// Adds the program under its name.
    pub(crate) fn with_program(mut self, program: OwnedFd) -> Self {
        self.0.push((PROGRAM.to_owned(), program));
        self
    }
}

/// The maps that are pinned in `directory`.
pub fn maps(directory: &Path) -> Result<Maps, BpfError> {
    Maps::open(&in_directory(directory))
}

/// Pins in a directory, as a source of maps.
pub(super) fn in_directory(directory: &Path) -> impl Fn(&str) -> Result<MapData, BpfError> {
    |name| Ok(MapData::from_pin(directory.join(name))?)
}

/// The pinned program and its id.
pub(super) fn open_program(directory: &Path) -> Result<(OwnedFd, u32), BpfError> {
    // The attach type is only used for loading, which is behind us.
    let program = SkReuseport::from_pin(directory.join(PROGRAM), SkReuseportAttachType::Select)?;
    let fd = program.fd()?.as_fd().try_clone_to_owned()?;
    Ok((fd, program.info()?.id()))
}

/// The kernel's id of an open program.
fn program_id(program: BorrowedFd<'_>) -> Result<u32, BpfError> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    id.ok_or_else(|| BpfError::Shape(format!("{PROGRAM} is no BPF program")))
}
