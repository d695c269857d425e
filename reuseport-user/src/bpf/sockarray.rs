//! The sockarray: slot to socket.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use aya::maps::{Map, MapData, MapInfo, MapType};
use reuseport_common::abi;

use super::BpfError;
use super::maps::Source;
use crate::sys::{SyscallError, bpf};

/// A `BPF_MAP_TYPE_REUSEPORT_SOCKARRAY` with 8-byte values, so that cookies can be read back.
///
/// The map holds no reference on a socket: a slot empties by itself when its socket closes.
///
/// # Minimum kernel version
///
/// 4.19.
#[derive(Debug)]
pub struct SockArray {
    map: MapData,
    slots: u32,
}

/// Why a socket cannot be put into a slot.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// It is in another sockarray or sockmap: the kernel allows one (`sk_user_data`).
    #[error("the socket is already in another program's socket map")]
    Elsewhere,
    /// It stopped listening since it was found.
    #[error("the socket no longer listens")]
    NotListening,
    /// Not TCP or UDP over IP (MPTCP, for one).
    #[error("the kernel does not take this kind of socket into a reuseport map")]
    NotSupported,
    /// Anything else.
    #[error(transparent)]
    Syscall(SyscallError),
}

impl SetError {
    /// As [`BpfError::is_write_refused`].
    pub fn is_write_refused(&self) -> bool {
        matches!(self, Self::Syscall(error) if matches!(error.errno(), libc::EPERM | libc::EACCES))
    }
}

impl SockArray {
    /// Opens a group's, after a look at its shape.
    pub(super) fn open(source: &Source<'_>) -> Result<Self, BpfError> {
        let Map::ReusePortSockArray(map) = Map::from_map_data(source(abi::SOCKETS)?)? else {
            return Err(BpfError::Shape("SOCKETS is not a sockarray".to_owned()));
        };
        let info = map.info()?;
        if info.key_size() != 4 || info.value_size() != 8 {
            return Err(BpfError::Shape("SOCKETS has other key or value sizes".to_owned()));
        }
        Ok(Self { slots: info.max_entries(), map })
    }

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Cookie of the socket in `slot`; `None` where it is empty.
    pub fn cookie(&self, slot: u32) -> Result<Option<u64>, BpfError> {
        Ok(bpf::lookup_u64(self.fd(), slot)?)
    }

    /// Cookies by slot.
    pub fn cookies(&self) -> Result<Vec<Option<u64>>, BpfError> {
        (0..self.slots).map(|slot| self.cookie(slot)).collect()
    }

    /// Occupied slots by cookie.
    pub fn seats(&self) -> Result<HashMap<u64, u32>, BpfError> {
        let cookies = self.cookies()?;
        Ok(cookies
            .into_iter()
            .zip(0..)
            .filter_map(|(cookie, slot)| Some((cookie?, slot)))
            .collect())
    }

    /// Puts `socket` into an empty `slot`.
    pub fn set(&self, slot: u32, socket: BorrowedFd<'_>) -> Result<(), SetError> {
        let value = socket.as_raw_fd() as u64;
        bpf::update_u64(self.fd(), slot, value, bpf::BPF_NOEXIST).map_err(|error| {
            match error.errno() {
                libc::EBUSY => SetError::Elsewhere,
                libc::EINVAL => SetError::NotListening,
                bpf::ENOTSUPP => SetError::NotSupported,
                _ => SetError::Syscall(error),
            }
        })
    }

    /// Empties `slot`; false where it was empty.
    pub fn remove(&self, slot: u32) -> Result<bool, BpfError> {
        Ok(bpf::delete(self.fd(), slot)?)
    }

    /// Empties every slot, so that the sockets can go into another map at once; says how many did.
    ///
    /// Dropping the last reference to the map would do it too, but an RCU grace period later.
    pub fn clear(&self) -> Result<u32, BpfError> {
        let mut cleared = 0;
        for slot in 0..self.slots {
            cleared += u32::from(self.remove(slot)?);
        }
        Ok(cleared)
    }

    /// Another descriptor of the map, for lookups.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd().try_clone_to_owned()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

/// What was taken out of a foreign program's maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Sockets.
    pub sockets: u32,
    /// Sockarrays with 4-byte values: they do not tell what is in them, so they were left alone.
    pub unreadable: u32,
}

/// Takes the sockets with these `cookies` out of every sockarray that a foreign program uses, which
/// may hold others' too: only on the user's explicit takeover.
pub(super) fn release_foreign(map_ids: &[u32], cookies: &[u64]) -> Result<Released, BpfError> {
    let mut released = Released::default();
    for &id in map_ids {
        let info = MapInfo::from_id(id)?;
        if info.map_type()? != MapType::ReuseportSockArray {
            continue;
        }
        if info.value_size() != 8 {
            released.unreadable += 1;
            continue;
        }
        let fd = info.fd()?;
        for slot in 0..info.max_entries() {
            let cookie = bpf::lookup_u64(fd.as_fd(), slot)?;
            if cookie.is_some_and(|cookie| cookies.contains(&cookie)) {
                released.sockets += u32::from(bpf::delete(fd.as_fd(), slot)?);
            }
        }
    }
    Ok(released)
}
