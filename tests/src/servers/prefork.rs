//! A pre-fork server in Python: children blocked in accept(), on one listener or on one each.

use std::fs;

use crate::client::{Target, exchange};
use crate::netns::Netns;
use crate::servers::{Home, Server, command};
use crate::sys::Become;

/// Whose the listeners are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each child opens its own.
    Own,
    /// The parent opens one for the family: start several families to make a group.
    Shared,
}

/// A running family; it answers with the pid of the child that served.
#[derive(Debug)]
pub struct Prefork {
    server: Server,
}

impl Prefork {
    /// Starts a child for each of `cpus`, bound to it, on 0.0.0.0:`port` in `netns`.
    pub fn start(netns: &Netns, port: u16, sharing: Sharing, cpus: &[u32]) -> Self {
        let home = Home::new(None);
        let script = home.write("prefork.py", include_str!("prefork.py"));
        let list: Vec<String> = cpus.iter().map(u32::to_string).collect();
        let sharing = match sharing {
            Sharing::Own => "own",
            Sharing::Shared => "shared",
        };
        let mut command = command(netns, "/usr/bin/python3", Become::default());
        command.arg(script).args([&port.to_string(), sharing, &list.join(",")]);
        let target = Target::plain(&format!("127.0.0.1:{port}"));
        let ready = |pid| {
            let family = crate::process::children(pid);
            let accepting = |pid: &u32| {
                fs::read_to_string(format!("/proc/{pid}/wchan"))
                    .is_ok_and(|place| place.contains("accept"))
            };
            family.len() == cpus.len()
                && family.iter().all(accepting)
                && netns.run_in(|| exchange(&target).is_ok())
        };
        let server = Server::start("prefork.py", home, &mut command, libc::SIGTERM, ready);
        Self { server }
    }

    /// The parent's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The children's process ids, ascending.
    pub fn workers(&self) -> Vec<u32> {
        self.server.children()
    }
}
