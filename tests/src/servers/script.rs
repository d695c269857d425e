//! Servers in scripts, for somebody else to start: each answers with its pid.

use std::os::unix::fs::PermissionsExt as _;

use crate::servers::Home;

/// A file to execute; goes with its directory.
#[derive(Debug)]
pub struct Script {
    home: Home,
    name: &'static str,
}

impl Script {
    /// The accept loop of the textbooks, in Python: `python3 PATH PORT [WORD...]`.
    pub fn textbook() -> Self {
        Self::write("textbook.py", include_str!("textbook.py"))
    }

    /// The same, that forgot SO_REUSEPORT.
    pub fn without_reuseport() -> Self {
        let text = include_str!("textbook.py");
        let kept = text.lines().filter(|line| !line.contains("SO_REUSEPORT, 1"));
        Self::write("textbook.py", &kept.collect::<Vec<_>>().join("\n"))
    }

    /// Python that answers `.`, and `done` once there is a file `go` beside it.
    pub fn slow() -> Self {
        Self::write("slow.py", include_str!("slow.py"))
    }

    /// Python on the listener it is given (LISTEN_FDS).
    pub fn given() -> Self {
        Self::write("given.py", include_str!("given.py"))
    }

    /// The same in Node, speaking HTTP.
    pub fn node() -> Self {
        Self::write("given.js", include_str!("given.js"))
    }

    /// A shell script of these commands.
    pub fn shell(text: &str) -> Self {
        let script = Self::write("script.sh", &format!("#!/bin/sh\n{text}\n"));
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(script.path(), all).expect("chmod a script");
        script
    }

    fn write(name: &'static str, text: &str) -> Self {
        let home = Home::new(None);
        home.write(name, text);
        Self { home, name }
    }

    /// Where it is.
    pub fn path(&self) -> String {
        self.home.text(self.name)
    }

    /// A file beside it.
    pub fn beside(&self, name: &str) -> String {
        self.home.text(name)
    }
}
