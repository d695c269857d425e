//! What a process has open: `/proc/PID/fd`, read without an allocation per descriptor.
//!
//! A host may have tens of thousands of sockets, and each must be looked at: two system calls per
//! directory, one `readlinkat` per descriptor, no `stat`.
#![expect(unsafe_code, reason = "std can list and readlink only with an allocation per entry")]

use std::ffi::{CStr, c_char};
use std::fs::File;
use std::os::fd::AsRawFd as _;

use super::{SyscallError, check};

/// Buffer for directory entries (24 bytes each here), reused between processes.
#[derive(Debug)]
pub struct Scanner {
    entries: Vec<u8>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { entries: vec![0; 64 << 10] }
    }
}

/// Offset of `d_reclen` in `linux_dirent64`.
const LENGTH_AT: usize = 16;
/// Offset of `d_name`.
const NAME_AT: usize = 19;

impl Scanner {
    /// Calls `each` with the number and the link (`socket:[12345]`, at most 63 bytes of it) of every
    /// descriptor in `directory`, an open `/proc/PID/fd`. Descriptors that vanish are left out; fails
    /// with `EACCES` where the links may not be read (listing needs less than reading does).
    pub fn scan(
        &mut self,
        directory: &File,
        mut each: impl FnMut(i32, &[u8]),
    ) -> Result<(), SyscallError> {
        loop {
            // SAFETY: the buffer is writable for its whole length, which is what the call is told.
            let filled = unsafe {
                libc::syscall(
                    libc::SYS_getdents64,
                    directory.as_raw_fd(),
                    self.entries.as_mut_ptr(),
                    self.entries.len(),
                )
            };
            let filled = check("getdents64(/proc/PID/fd)", filled)? as usize;
            if filled == 0 {
                return Ok(());
            }
            for name in names(&self.entries[..filled]) {
                let Some(fd) = number(name) else { continue };
                let mut link = [0u8; 63];
                match read_link(directory, name, &mut link) {
                    Ok(length) => each(fd, link.get(..length).unwrap_or(&link)),
                    Err(error) if error.errno() == libc::EACCES => return Err(error),
                    Err(_) => {}
                }
            }
        }
    }
}

/// Names of the entries in a filled buffer.
fn names(mut entries: &[u8]) -> impl Iterator<Item = &CStr> {
    std::iter::from_fn(move || {
        let length = entries.get(LENGTH_AT..LENGTH_AT + 2)?;
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        let (entry, rest) = entries.split_at_checked(length)?;
        entries = rest;
        CStr::from_bytes_until_nul(entry.get(NAME_AT..)?).ok()
    })
}

/// A descriptor's number; `None` for `.` and `..`.
fn number(name: &CStr) -> Option<i32> {
    let digits = name.to_bytes();
    let plain = digits.iter().all(u8::is_ascii_digit) && (1..=9).contains(&digits.len());
    plain.then(|| digits.iter().fold(0, |number, digit| number * 10 + i32::from(digit - b'0')))
}

/// Reads a link; returns the length of its target.
fn read_link(directory: &File, name: &CStr, link: &mut [u8]) -> Result<usize, SyscallError> {
    // SAFETY: `name` ends with a NUL, `link` is writable for the length given, and the directory
    // is open while borrowed.
    let length = unsafe {
        libc::readlinkat(
            directory.as_raw_fd(),
            name.as_ptr(),
            link.as_mut_ptr().cast::<c_char>(),
            link.len(),
        )
    };
    check("readlinkat(/proc/PID/fd/N)", length as i64).map(|length| length as usize)
}

#[cfg(test)]
mod tests {
    use std::os::linux::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn finds_every_descriptor() {
        let files: Vec<File> = (0..300).map(|_| File::open("/dev/null").unwrap()).collect();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = File::open(format!("/proc/self/fd/{}", files[0].as_raw_fd()));
        assert_eq!(inode.unwrap().metadata().unwrap().st_size(), 0);
        let mut found = Vec::new();
        let directory = File::open("/proc/self/fd").unwrap();
        Scanner::default().scan(&directory, |fd, link| found.push((fd, link.to_vec()))).unwrap();
        for file in &files {
            assert!(found.contains(&(file.as_raw_fd(), b"/dev/null".to_vec())));
        }
        let link = &found.iter().find(|(fd, _)| *fd == socket.as_raw_fd()).unwrap().1;
        assert!(link.starts_with(b"socket:["));
    }

    #[test]
    fn numbers_are_numbers() {
        for (name, expected) in [(c"0", Some(0)), (c"1048575", Some(1_048_575))] {
            assert_eq!(number(name), expected);
        }
        for name in [c".", c"..", c"", c"-1", c"99999999999"] {
            assert_eq!(number(name), None);
        }
    }
}
