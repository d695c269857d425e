//! Socket options, read from and set on a borrowed descriptor.
//!
//! Reading [`cookie`] makes the kernel give the socket one: it changes the socket, harmlessly but
//! for good. Ask it last, of sockets that passed every other test.
#![expect(unsafe_code, reason = "getsockopt and getsockname have no safe wrapper in std")]

use std::ffi::c_int;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::{SyscallError, check};
use crate::model::Cpu;

/// `SO_NETNS_COOKIE` (5.14), not in every libc.
const SO_NETNS_COOKIE: c_int = 71;
/// `IPPROTO_MPTCP`.
pub const IPPROTO_MPTCP: i32 = 262;

/// Reads one option of a plain type.
fn get<T: bytemuck::Pod>(
    fd: BorrowedFd<'_>,
    level: c_int,
    option: c_int,
    call: &'static str,
) -> Result<T, SyscallError> {
    let mut value = T::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is writable for `length` bytes and any bytes make a `T` (Pod); the descriptor
    // is open for as long as its borrow.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length)
    };
    check(call, i64::from(result))?;
    Ok(value)
}

/// Sets one option of the socket level, of a plain type.
fn set<T>(
    fd: BorrowedFd<'_>,
    option: c_int,
    value: &T,
    call: &'static str,
) -> Result<(), SyscallError> {
    // SAFETY: the kernel reads the size of `value` given beside it, and what an option's value points
    // to outlives the call like the value itself; the descriptor is open for as long as its borrow.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(call, i64::from(result)).map(drop)
}

/// `SO_COOKIE`: unique until reboot. Makes one if the socket has none yet.
pub fn cookie(fd: BorrowedFd<'_>) -> Result<u64, SyscallError> {
    get(fd, libc::SOL_SOCKET, libc::SO_COOKIE, "getsockopt(SO_COOKIE)")
}

/// `SO_ACCEPTCONN`: whether it listens.
pub fn listens(fd: BorrowedFd<'_>) -> Result<bool, SyscallError> {
    get::<c_int>(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, "getsockopt(SO_ACCEPTCONN)")
        .map(|value| value != 0)
}

/// Of a listener, how many connections wait to be accepted; of a connection, segments without an
/// acknowledgement: `tcpi_unacked` of `TCP_INFO`.
pub fn waiting(fd: BorrowedFd<'_>) -> Result<u32, SyscallError> {
    const UNACKED: usize = std::mem::offset_of!(libc::tcp_info, tcpi_unacked) / size_of::<u32>();
    let info: [u32; UNACKED + 1] =
        get(fd, libc::IPPROTO_TCP, libc::TCP_INFO, "getsockopt(TCP_INFO)")?;
    Ok(info[UNACKED])
}

/// `TCP_DEFER_ACCEPT`: whether connections are put into the accept queue with their first data only.
pub(crate) fn defers_accept(fd: BorrowedFd<'_>) -> Result<bool, SyscallError> {
    let call = "getsockopt(TCP_DEFER_ACCEPT)";
    get::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, call).map(|value| value != 0)
}

/// `SO_REUSEPORT`. Accepted connections inherit it: it does not tell a listener.
pub fn reuseport(fd: BorrowedFd<'_>) -> Result<bool, SyscallError> {
    get::<c_int>(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, "getsockopt(SO_REUSEPORT)")
        .map(|value| value != 0)
}

/// `SO_PROTOCOL`: `IPPROTO_TCP` and so on; [`IPPROTO_MPTCP`] for multipath.
pub fn protocol(fd: BorrowedFd<'_>) -> Result<i32, SyscallError> {
    get(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL, "getsockopt(SO_PROTOCOL)")
}

/// `SO_DOMAIN`: `AF_INET` and so on.
pub fn domain(fd: BorrowedFd<'_>) -> Result<i32, SyscallError> {
    get(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, "getsockopt(SO_DOMAIN)")
}

/// `SO_NETNS_COOKIE` of the namespace the socket was made in.
///
/// # Minimum kernel version
///
/// 5.14; `ENOPROTOOPT` before.
pub fn netns_cookie(fd: BorrowedFd<'_>) -> Result<u64, SyscallError> {
    get(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, "getsockopt(SO_NETNS_COOKIE)")
}

/// `getsockname` of an IPv4 or IPv6 socket; `None` for any other family.
pub fn local_address(fd: BorrowedFd<'_>) -> Result<Option<SocketAddr>, SyscallError> {
    // The size of `sockaddr_in6`, the longer of the two; longer names are cut off by the kernel.
    let mut name = [0u8; size_of::<libc::sockaddr_in6>()];
    let mut length = name.len() as libc::socklen_t;
    // SAFETY: `name` is writable for `length` bytes; the descriptor is open for as long as its
    // borrow.
    let result =
        unsafe { libc::getsockname(fd.as_raw_fd(), name.as_mut_ptr().cast(), &raw mut length) };
    check("getsockname", i64::from(result))?;
    Ok(decode_address(&name))
}

/// Whether it has a peer: a connection, or a connected datagram socket.
pub fn has_peer(fd: BorrowedFd<'_>) -> Result<bool, SyscallError> {
    let mut name = [0u8; size_of::<libc::sockaddr_in6>()];
    let mut length = name.len() as libc::socklen_t;
    // SAFETY: `name` is writable for `length` bytes; the descriptor is open for as long as its
    // borrow.
    let result =
        unsafe { libc::getpeername(fd.as_raw_fd(), name.as_mut_ptr().cast(), &raw mut length) };
    match check("getpeername", i64::from(result)) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == libc::ENOTCONN => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a `sockaddr_in` or `sockaddr_in6`.
fn decode_address(name: &[u8; 28]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes([name[0], name[1]]));
    let port = u16::from_be_bytes([name[2], name[3]]);
    match family {
        libc::AF_INET => {
            let ip = Ipv4Addr::new(name[4], name[5], name[6], name[7]);
            Some(SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = name[8..24].try_into().ok()?;
            let scope = u32::from_ne_bytes(name[24..28].try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
        }
        _ => None,
    }
}

/// The CPU that handled the socket's latest packet; of a socket just accepted, the CPU that
/// received the connection.
///
/// # Minimum kernel version
/// 3.19.
pub fn incoming_cpu(socket: BorrowedFd<'_>) -> Result<Cpu, SyscallError> {
    incoming_cpu_value(socket).map(|value| value as Cpu)
}

/// `SO_INCOMING_CPU` as the kernel keeps it: of a listener, the CPU that it is preferred for, or -1.
/// Any negative number prefers nothing.
pub(crate) fn incoming_cpu_value(socket: BorrowedFd<'_>) -> Result<c_int, SyscallError> {
    get(socket, libc::SOL_SOCKET, libc::SO_INCOMING_CPU, "getsockopt(SO_INCOMING_CPU)")
}

/// Asks the kernel to prefer this listener for connections that `cpu` receives, or with `None` to
/// forget the preference.
///
/// # Minimum kernel version
/// 6.2 for a reuseport group (earlier ones take the option and do not honour it for TCP).
pub fn set_incoming_cpu(socket: BorrowedFd<'_>, cpu: Option<Cpu>) -> Result<(), SyscallError> {
    set_incoming_cpu_value(socket, cpu.map_or(-1, |cpu| cpu as c_int))
}

/// Sets `SO_INCOMING_CPU` to any number; the kernel checks none.
pub(crate) fn set_incoming_cpu_value(
    socket: BorrowedFd<'_>,
    value: c_int,
) -> Result<(), SyscallError> {
    set(socket, libc::SO_INCOMING_CPU, &value, "setsockopt(SO_INCOMING_CPU)")
}

/// Attaches a program to the group of the socket.
///
/// # Minimum kernel version
/// 4.19 for an `SK_REUSEPORT` program.
pub(crate) fn attach_reuseport(
    socket: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> Result<(), SyscallError> {
    let value: c_int = program.as_raw_fd();
    set(socket, libc::SO_ATTACH_REUSEPORT_EBPF, &value, "setsockopt(SO_ATTACH_REUSEPORT_EBPF)")
}

/// Attaches a classic BPF program, which returns the place of a listener in the group, to the group
/// of the socket, in place of whatever is attached. Takes no privilege.
///
/// # Minimum kernel version
/// 4.5; 5.10 as tested.
pub(crate) fn attach_reuseport_classic(
    socket: BorrowedFd<'_>,
    program: &[libc::sock_filter],
) -> Result<(), SyscallError> {
    let call = "setsockopt(SO_ATTACH_REUSEPORT_CBPF)";
    let too_long = |_| SyscallError { call, source: io::Error::from_raw_os_error(libc::EINVAL) };
    let len = program.len().try_into().map_err(too_long)?;
    // The kernel only reads the program, and copies it before it returns.
    let value = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    set(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &value, call)
}

/// Detaches whatever program is attached to the group of `socket`; false where none was.
///
/// # Minimum kernel version
/// 5.3.
pub(crate) fn detach_reuseport(socket: BorrowedFd<'_>) -> Result<bool, SyscallError> {
    let call = "setsockopt(SO_DETACH_REUSEPORT_BPF)";
    // The kernel wants a number, whichever it is.
    match set(socket, libc::SO_DETACH_REUSEPORT_BPF, &0i32, call) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == libc::ENOENT => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn describes_a_listener() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let fd = listener.as_fd();
            assert_eq!(local_address(fd).unwrap(), Some(listener.local_addr().unwrap()));
            assert!(listens(fd).unwrap());
            assert!(!reuseport(fd).unwrap());
            assert_eq!(protocol(fd).unwrap(), libc::IPPROTO_TCP);
            let family = if address.starts_with('[') { libc::AF_INET6 } else { libc::AF_INET };
            assert_eq!(domain(fd).unwrap(), family);
            assert_eq!(cookie(fd).unwrap(), cookie(fd).unwrap());
            assert_ne!(cookie(fd).unwrap(), 0);
        }
    }

    #[test]
    fn tells_what_is_no_listener() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!listens(udp.as_fd()).unwrap());
        assert!(!has_peer(udp.as_fd()).unwrap());
        udp.connect("127.0.0.1:9").unwrap();
        assert!(has_peer(udp.as_fd()).unwrap());
        assert_eq!(protocol(udp.as_fd()).unwrap(), libc::IPPROTO_UDP);
        let (unix, _other) = UnixStream::pair().unwrap();
        assert_eq!(local_address(unix.as_fd()).unwrap(), None);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(domain(file.as_fd()).unwrap_err().errno(), libc::ENOTSOCK);
    }
}
