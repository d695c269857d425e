//! What a process has open, told by `/proc/PID/fdinfo`.
//!
//! `/proc/PID/fd` belongs to the process's user, so that another user needs `CAP_DAC_READ_SEARCH`
//! beside `CAP_SYS_PTRACE` to list it. `fdinfo` is open to whoever may trace the process; it is
//! several times slower to read, so it comes second.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;

use super::Open;
use crate::model::Pid;

/// As [`super::open_files`], for those who may not list `/proc/PID/fd`.
///
/// # Minimum kernel version
///
/// 5.14: sockets are told by their inode number, which older kernels do not print.
pub(super) fn open_files(pid: Pid) -> io::Result<Vec<(i32, Open)>> {
    let sockfs = sockfs()?;
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let entry = entry?;
        let Some(fd) = entry.file_name().to_str().and_then(|fd| fd.parse().ok()) else { continue };
        match fs::read_to_string(entry.path()) {
            Ok(text) => found.extend(parse(&text, sockfs).map(|open| (fd, open))),
            // The list may be had where its entries may not.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // Closed meanwhile.
            Err(_) => {}
        }
    }
    Ok(found)
}

/// The mount that sockets are on: inode numbers mean something on one file system only.
fn sockfs() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", socket.as_raw_fd()))?;
    field(&text, "mnt_id").ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn parse(text: &str, sockfs: u64) -> Option<Open> {
    if field(text, "mnt_id") == Some(sockfs) {
        return field(text, "ino").map(Open::Socket);
    }
    // Lines of an epoll set that watches something; the first lines of the others.
    let kinds = [
        ("tfd:", Open::Epoll),
        ("SqMask:", Open::IoUring),
        ("prog_type:", Open::BpfProgram),
        ("map_type:", Open::BpfMap),
    ];
    let has = |name: &str| text.lines().any(|line| line.starts_with(name));
    kinds.into_iter().find_map(|(name, open)| has(name).then_some(open))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn tells_the_same_sockets_as_the_links_do() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let me = std::process::id();
        let of = |files: Vec<(i32, Open)>| {
            files.into_iter().find(|&(fd, _)| fd == listener.as_raw_fd()).map(|(_, open)| open)
        };
        let told = of(open_files(me).unwrap());
        assert!(matches!(told, Some(Open::Socket(_))), "{told:?}");
        assert_eq!(told, of(super::super::open_files(me).unwrap()));
    }

    #[test]
    fn other_files_are_told_apart() {
        let head = "pos:\t0\nflags:\t02\nmnt_id:\t16\nino:\t1081\n";
        assert_eq!(parse(head, 9), None);
        assert_eq!(parse(head, 16), Some(Open::Socket(1081)));
        assert_eq!(parse(&format!("{head}tfd: 5 events: 19\n"), 9), Some(Open::Epoll));
        assert_eq!(parse(&format!("{head}SqMask:\t0x7\n"), 9), Some(Open::IoUring));
        assert_eq!(parse(&format!("{head}prog_type:\t26\n"), 9), Some(Open::BpfProgram));
        assert_eq!(parse(&format!("{head}map_type:\t1\n"), 9), Some(Open::BpfMap));
        assert_eq!(parse(&format!("{head}link_type:\ttracing\nprog_id:\t1\n"), 9), None);
        assert_eq!(parse("", 9), None);
    }
}
