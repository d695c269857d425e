//! A program on a terminal: what it shows, and keys for it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use crate::eventually;
use crate::process::Reaped;
use crate::sys::pty::{self, Size};

/// Longest that anything may take on a busy machine: more is a hang.
const PATIENCE: Duration = Duration::from_mins(1);

/// A terminal and the program on it, which is killed on drop.
pub struct Terminal {
    child: Reaped,
    master: File,
    slave: OwnedFd,
    /// How it was set before.
    modes: [u32; 4],
    parser: vt100::Parser,
}

impl Terminal {
    /// Starts a program on a terminal of this size.
    pub fn start(mut command: Command, size: Size) -> Self {
        let (master, slave) = pty::open(size).expect("a pseudo-terminal");
        let modes = pty::modes(&slave).expect("the terminal's modes");
        pty::on_terminal(&mut command, &slave);
        let child = Reaped(command.spawn().expect("start a program on a terminal"));
        let parser = vt100::Parser::new(size.0, size.1, 0);
        Self { child, master, slave, modes, parser }
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Types.
    pub fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("type");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        self.child.signal(signal);
    }

    /// Makes the terminal larger or smaller.
    pub fn resize(&mut self, size: Size) {
        pty::resize(&self.master, size).expect("resize the terminal");
        self.parser.screen_mut().set_size(size.0, size.1);
    }

    /// Takes in what was written to it since.
    fn read(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = self.master.read(&mut bytes) {
            self.parser.process(&bytes[..count]);
        }
    }

    /// Lines that it shows now.
    pub fn lines(&mut self) -> Vec<String> {
        self.read();
        let screen = self.parser.screen();
        screen.rows(0, screen.size().1).map(|line| line.trim_end().to_owned()).collect()
    }

    /// Waits until what it shows is as it should be; what it shows then.
    pub fn until(&mut self, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        let shown = eventually(PATIENCE, || {
            lines = self.lines();
            wanted(&lines)
        });
        assert!(shown, "the terminal shows {lines:#?}");
        lines
    }

    /// Waits until a line has this in it.
    pub fn shows(&mut self, text: &str) -> Vec<String> {
        self.until(|lines| lines.iter().any(|line| line.contains(text)))
    }

    /// Hangs up, as a connection that breaks, and waits for the program's end.
    pub fn hang_up(mut self) -> ExitStatus {
        drop((self.master, self.slave));
        self.child.wait(PATIENCE).expect("it does not end")
    }

    /// Waits for the program's end, and asserts that the terminal is as it was found: set as before,
    /// with its cursor and its first screen.
    pub fn given_back(mut self) -> ExitStatus {
        let status = self.child.wait(PATIENCE).expect("it does not end");
        let lines = self.lines();
        let screen = self.parser.screen();
        assert!(!screen.alternate_screen(), "it left its own screen: {lines:#?}");
        assert!(!screen.hide_cursor(), "the cursor is hidden: {lines:#?}");
        assert_eq!(pty::modes(&self.slave).expect("the terminal's modes"), self.modes);
        status
    }
}
