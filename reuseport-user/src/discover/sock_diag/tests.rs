use netlink_packet_sock_diag::inet::InetResponse;

use super::*;
use crate::sys::netlink::{Batch, decode};

/// A netlink message: header and payload.
fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + payload.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(77u32.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// `struct inet_diag_msg` of a listener on port 6432 as a little-endian kernel writes it: owner 109,
/// device 2, cookie 0x1_0000_0005, 3 of 128 waiting.
fn listener(family: u8, address: [u8; 16]) -> Vec<u8> {
    let mut bytes = vec![family, 10, 0, 0, 0x19, 0x20, 0, 0];
    bytes.extend(address);
    bytes.extend([0; 16]);
    for word in [2u32, 5, 1, 0, 3, 128, 109, 4711] {
        bytes.extend(word.to_ne_bytes());
    }
    assert_eq!(bytes.len(), 72);
    bytes
}

fn v6only_attribute(value: u8) -> [u8; 8] {
    let [low, high] = 11u16.to_ne_bytes();
    [5, 0, low, high, value, 0, 0, 0]
}

/// `INET_DIAG_SKMEMINFO`: nine words, what was dropped the last of them.
fn memory_attribute(dropped: u32) -> Vec<u8> {
    let mut bytes = [40u16, 7].map(u16::to_ne_bytes).concat();
    bytes.extend([0; 32]);
    bytes.extend(dropped.to_ne_bytes());
    bytes
}

const DONE: u16 = 3;
const ERROR: u16 = 2;
const BY_FAMILY: u16 = 20;

fn read(bytes: &[u8]) -> Result<(Batch, bool, Vec<Socket>), DumpError> {
    let mut found: Vec<InetResponse> = Vec::new();
    let (batch, interrupted) = decode(bytes, 1, &mut found)?;
    Ok((batch, interrupted, found.iter().map(socket).collect()))
}

#[test]
fn an_ipv4_listener() {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[10, 1, 2, 3]);
    let payload = [listener(2, address), memory_attribute(7)].concat();
    let bytes = message(BY_FAMILY, 2, 1, &payload);
    let (batch, interrupted, sockets) = read(&bytes).unwrap();
    let expected = Socket {
        address: "10.1.2.3:6432".parse().unwrap(),
        v6only: false,
        device: 2,
        uid: 109,
        inode: 4711,
        cookie: 0x1_0000_0005,
        queued: 3,
        backlog: 128,
        dropped: 7,
    };
    assert_eq!((batch, interrupted, sockets), (Batch::More, false, vec![expected]));
}

#[test]
fn ipv6_listeners_with_and_without_v6only() {
    let mut bytes = Vec::new();
    for v6only in [0, 1] {
        let mut payload = listener(10, [0; 16]);
        // An attribute that we do not know comes first.
        payload.extend([8, 0, 200, 0, 1, 2, 3, 4]);
        payload.extend(v6only_attribute(v6only));
        bytes.extend(message(BY_FAMILY, 2, 1, &payload));
    }
    bytes.extend(message(DONE, 2, 1, &[0; 4]));
    let (batch, _, sockets) = read(&bytes).unwrap();
    assert_eq!(batch, Batch::Done);
    assert_eq!(sockets.iter().map(|it| it.v6only).collect::<Vec<_>>(), [false, true]);
    assert!(sockets.iter().all(|it| it.address == "[::]:6432".parse().unwrap()));
}

#[test]
fn an_interrupted_dump_is_noticed() {
    for (flags, expected) in [(2, false), (2 | 16, true)] {
        let bytes = message(DONE, flags, 1, &[0; 4]);
        assert_eq!(read(&bytes).unwrap(), (Batch::Done, expected, vec![]));
    }
}

#[test]
fn leftovers_of_another_dump_are_ignored() {
    let mut bytes = message(BY_FAMILY, 2, 9, &listener(2, [0; 16]));
    bytes.extend(message(DONE, 2, 9, &[0; 4]));
    assert_eq!(read(&bytes).unwrap(), (Batch::More, false, vec![]));
}

#[test]
fn the_kernels_refusals() {
    let error = |errno: i32| {
        let mut payload = (-errno).to_ne_bytes().to_vec();
        payload.extend([0; 16]);
        message(ERROR, 0, 1, &payload)
    };
    assert!(matches!(read(&error(libc::ENOENT)), Err(DumpError::NoHandler)));
    let refused = read(&error(libc::EPERM)).unwrap_err();
    assert!(matches!(&refused, DumpError::Syscall(error) if error.errno() == libc::EPERM));
    // Newer kernels end the dump with the error instead.
    let done = message(DONE, 2, 1, &(-libc::ENOENT).to_ne_bytes());
    assert!(matches!(read(&done), Err(DumpError::NoHandler)));
}

#[test]
fn whatever_is_cut_off_is_refused() {
    let mut payload = listener(10, [0; 16]);
    payload.extend(v6only_attribute(1));
    let whole = message(BY_FAMILY, 2, 1, &payload);
    for length in 0..whole.len() {
        let result = read(&whole[..length]);
        assert!(matches!(result, Err(DumpError::Malformed(_))), "{length}: {result:?}");
    }
    let short = message(BY_FAMILY, 2, 1, &payload[..60]);
    assert!(matches!(read(&short), Err(DumpError::Malformed(_))));
}

#[test]
fn requests_are_as_the_kernel_wants_them() {
    let bytes = request(2, Kind::TcpListeners, 6432);
    // With `INET_DIAG_SKMEMINFO`, which tells what was dropped.
    let mut expected = vec![2, 6, 1 << 6, 0];
    expected.extend(LISTENING.to_ne_bytes());
    expected.extend([0x19, 0x20]);
    expected.resize(56, 0);
    assert_eq!(
        bytes,
        message(BY_FAMILY, 0x301, 0, &expected)
            .iter()
            .enumerate()
            .map(
                // We leave the port number to the kernel.
                |(at, byte)| if (12..16).contains(&at) { 0 } else { *byte }
            )
            .collect::<Vec<_>>()
    );
    let bytes = request(10, Kind::MptcpListeners, 1);
    assert_eq!(bytes[..4], (bytes.len() as u32).to_ne_bytes());
    assert_eq!(bytes[72..], [8, 0, 3, 0, 6, 1, 0, 0]);
}
