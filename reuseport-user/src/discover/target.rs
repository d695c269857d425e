//! What to look for.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::model::{Pid, Protocol};

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
}
