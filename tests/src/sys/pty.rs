//! Pseudo-terminals.

use std::fs::File;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

use super::check;

/// A terminal's size: rows, columns.
pub type Size = (u16, u16);

fn winsize((rows, columns): Size) -> libc::winsize {
    libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// A pair: the side of whoever looks and types, which does not block, and the side of programs.
pub fn open(size: Size) -> io::Result<(File, OwnedFd)> {
    let (mut master, mut slave) = (-1, -1);
    let size = winsize(size);
    // SAFETY: two integers and a size are ours for the length of the call; a name and attributes are
    // not asked for.
    check(unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            ptr::null_mut(),
            ptr::null(),
            &raw const size,
        )
    })?;
    // SAFETY: the call made both, and nobody else has them.
    let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    for fd in [master.as_raw_fd(), slave.as_raw_fd()] {
        // SAFETY: numbers only.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    // SAFETY: numbers only.
    check(unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
    Ok((master, slave))
}

/// Gives `command`'s child the terminal: input, output, and the one that controls it. `slave` must
/// stay open until it was spawned.
pub fn on_terminal(command: &mut Command, slave: &OwnedFd) {
    let slave = slave.as_raw_fd();
    let take = move || {
        // Its own descriptor: `login_tty` closes the one it is given.
        // SAFETY: a number only; the caller keeps it open.
        let fd = check(unsafe { libc::dup(slave) })?;
        // SAFETY: the descriptor is ours.
        check(unsafe { libc::login_tty(fd) }).map(drop)
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(take) };
}

/// Changes the size, of which the programs on it are told.
pub fn resize(master: &File, size: Size) -> io::Result<()> {
    let size = winsize(size);
    // SAFETY: the descriptor is open by the borrow, the size outlives the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// How a terminal is set: input, output, control and local modes.
pub fn modes(terminal: impl AsFd) -> io::Result<[u32; 4]> {
    // SAFETY: plain numbers, all zero is a value of it.
    let mut it: libc::termios = unsafe { zeroed() };
    // SAFETY: the descriptor is open by the borrow, `it` outlives the call.
    check(unsafe { libc::tcgetattr(terminal.as_fd().as_raw_fd(), &raw mut it) })?;
    Ok([it.c_iflag, it.c_oflag, it.c_cflag, it.c_lflag])
}
