//! What to look for.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use super::DiscoverError;
use crate::model::{GroupKey, Netns, Pid, Protocol};
use crate::sys::netns;

/// Where to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetnsChoice {
    /// Every namespace that a visible process lives in, our own first; more than one that has
    /// listeners is an error.
    #[default]
    Auto,
    /// The one this process lives in.
    Pid(Pid),
    /// The one this file stands for (`/run/netns/NAME`).
    Path(PathBuf),
}

/// Which listeners are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Local port, never 0.
    pub port: u16,
    /// Local addresses; empty means all.
    pub addrs: Vec<IpAddr>,
    /// Network namespace.
    pub netns: NetnsChoice,
    /// Transport.
    pub protocol: Protocol,
}

impl Target {
    /// Every TCP listener on `port`.
    pub fn tcp(port: u16) -> Self {
        Self { port, addrs: Vec::new(), netns: NetnsChoice::Auto, protocol: Protocol::Tcp }
    }

    /// Every address on the port, in every namespace.
    #[must_use]
    pub fn everywhere(&self) -> Self {
        Self { addrs: Vec::new(), netns: NetnsChoice::Auto, ..*self }
    }

    /// Whether it means this group, which was found in `netns`.
    pub(crate) fn means(&self, group: &GroupKey, netns: &Netns) -> bool {
        let leads_there = |path: &Path| netns::inode(path).is_ok_and(|inode| inode == netns.inode);
        let there = match &self.netns {
            NetnsChoice::Auto => true,
            NetnsChoice::Pid(pid) => leads_there(format!("/proc/{pid}/ns/net").as_ref()),
            NetnsChoice::Path(path) => leads_there(path),
        };
        let address = group.address;
        let named = self.addrs.is_empty() || self.addrs.contains(&address.ip());
        there && named && (self.port, self.protocol) == (address.port(), group.protocol)
    }

    /// A target that means this namespace alone, in which it was found, also when others begin to listen
    /// on the port elsewhere. The namespace may be named by the descriptor that comes with it.
    pub(crate) fn within(&self, found: &Netns) -> Result<(Self, Option<File>), DiscoverError> {
        let path = match (&self.netns, found.pid) {
            _ if found.own => PathBuf::from(netns::OWN),
            (NetnsChoice::Path(path), _) => path.clone(),
            (_, Some(pid)) => PathBuf::from(format!("/proc/{pid}/ns/net")),
            (_, None) => PathBuf::from(netns::OWN),
        };
        if found.own {
            return Ok((Self { netns: NetnsChoice::Path(path), ..self.clone() }, None));
        }
        let file =
            netns::open(&path).map_err(|source| DiscoverError::OpenNetns { path, source })?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Ok((Self { netns: NetnsChoice::Path(path), ..self.clone() }, Some(file)))
    }
}
