//! Descriptors that a blocked `poll` or `select` watches, read from the process's memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::syscall::Wait;
use crate::model::Pid;

/// `struct pollfd`: descriptor, events asked for, events returned.
const POLLFD: usize = 8;
/// Most entries that are looked at: the usual `RLIMIT_NOFILE`, and 512 KiB of memory.
const MOST: u64 = 65536;

/// Descriptors that the call waits to read from; empty for calls that are no poll or select.
pub(crate) fn watched(pid: Pid, wait: Wait) -> io::Result<Vec<i32>> {
    match wait {
        Wait::Poll { address, count } => {
            let length = count.min(MOST) as usize * POLLFD;
            read_memory(pid, address, length).map(|bytes| pollfds(&bytes))
        }
        Wait::Select { count, address } if address != 0 => {
            let length = count.min(MOST).div_ceil(64) as usize * 8;
            read_memory(pid, address, length).map(|bytes| fd_set(&bytes, count))
        }
        _ => Ok(Vec::new()),
    }
}

/// Copies a piece of another process's memory.
fn read_memory(pid: Pid, address: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, address)?;
    Ok(bytes)
}

/// Descriptors of a `pollfd` array whose entry asks for `POLLIN` or `POLLRDNORM`.
fn pollfds(bytes: &[u8]) -> Vec<i32> {
    let entry = |entry: &[u8]| {
        let fd = i32::from_ne_bytes(entry[..4].try_into().ok()?);
        let events = i16::from_ne_bytes(entry[4..6].try_into().ok()?);
        (fd >= 0 && events & (libc::POLLIN | libc::POLLRDNORM) != 0).then_some(fd)
    };
    bytes.chunks_exact(POLLFD).filter_map(entry).collect()
}

/// Descriptors below `count` whose bit is set. The set is an array of words, as `select` sees it.
fn fd_set(bytes: &[u8], count: u64) -> Vec<i32> {
    let words =
        bytes.chunks_exact(8).filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)));
    let bits = words.zip(0u64..).flat_map(|(word, index)| {
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
    });
    bits.filter(|&fd| fd < count).map(|fd| fd as i32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pollfd_arrays() {
        let entry = |fd: i32, events: i16| {
            let mut bytes = fd.to_ne_bytes().to_vec();
            bytes.extend(events.to_ne_bytes());
            bytes.extend([0xff, 0xff]);
            bytes
        };
        let array = [
            entry(5, libc::POLLIN),
            entry(-1, libc::POLLIN),
            entry(6, libc::POLLOUT),
            entry(7, libc::POLLRDNORM | libc::POLLOUT),
        ]
        .concat();
        assert_eq!(pollfds(&array), [5, 7]);
        assert_eq!(pollfds(&array[..10]), [5]);
        assert_eq!(pollfds(&[]), Vec::<i32>::new());
    }

    #[test]
    fn fd_sets() {
        let words = [1u64 << 3 | 1 << 63, 1 << 1];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(fd_set(&bytes, 128), [3, 63, 65]);
        assert_eq!(fd_set(&bytes, 64), [3, 63]);
        assert_eq!(fd_set(&bytes[..8], 128), [3, 63]);
    }

    #[test]
    fn reads_real_memory() {
        let array = [libc::pollfd { fd: 9, events: libc::POLLIN, revents: 0 }];
        let wait = Wait::Poll { address: array.as_ptr().addr() as u64, count: 1 };
        assert_eq!(watched(std::process::id(), wait).unwrap(), [9]);
        let wild = Wait::Poll { address: 8, count: 1 };
        assert!(watched(std::process::id(), wild).is_err());
    }
}
