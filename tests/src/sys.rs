//! The only `unsafe` code of the tests: what std has no safe call for.
#![expect(unsafe_code, reason = "namespaces, affinity and socket options have no std interface")]

use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

pub mod bpf;
pub mod pty;
pub mod reactor;
pub mod usage;

fn check(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Whether the effective uid is 0.
pub fn is_root() -> bool {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Puts the calling thread into a new, empty network namespace.
pub fn unshare_net() -> io::Result<()> {
    // SAFETY: takes flags only, changes the calling thread alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Puts the calling thread into the network namespace that `file` refers to.
pub fn enter_netns(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, by the borrow.
    check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// What a child process becomes between fork and exec, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Become {
    /// Network namespace to enter; the descriptor must stay open until the child was spawned.
    pub netns: Option<RawFd>,
    /// CPU to be bound to.
    pub cpu: Option<u32>,
    /// User and group to run as, without supplementary groups.
    pub user: Option<(u32, u32)>,
    /// Signal it gets when the spawning thread ends before it; SIGKILL unless told.
    pub orphaned: Option<i32>,
}

/// Makes `command`'s child become `what`, and be ended when the spawning thread ends: a test that
/// dies leaves no child.
pub fn on_spawn(command: &mut Command, what: Become) {
    let orphaned = what.orphaned.unwrap_or(libc::SIGKILL);
    let prepare = move || {
        if let Some(netns) = what.netns {
            // SAFETY: takes numbers only; the caller of `on_spawn` keeps the descriptor open.
            check(unsafe { libc::setns(netns, libc::CLONE_NEWNET) })?;
        }
        if let Some(cpu) = what.cpu {
            pin(0, &[cpu])?;
        }
        if let Some((uid, gid)) = what.user {
            // SAFETY: an empty list is described by length 0, the rest are numbers.
            check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
            // SAFETY: numbers only.
            check(unsafe { libc::setgid(gid) })?;
            // SAFETY: numbers only.
            check(unsafe { libc::setuid(uid) })?;
        }
        // Last: a change of uid clears it.
        // SAFETY: numbers only.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, orphaned) }).map(drop)
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(prepare) };
}

/// Gives all privileges up, for good.
pub fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::setuid(uid) }).map(drop)
}

/// From now on the calling thread and those it starts open no netlink socket, as under systemd's
/// `RestrictAddressFamilies=`.
pub fn forbid_netlink() -> io::Result<()> {
    /// Where `struct seccomp_data` has the call's number, and its first argument.
    const NUMBER: u32 = 0;
    const FIRST: u32 = 16;
    let load = |at| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: at };
    let skip_unless = |k, jf| libc::sock_filter { code: 0x15, jt: 0, jf, k };
    let answer = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let refused = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;
    let mut filter = [
        load(NUMBER),
        skip_unless(libc::SYS_socket as u32, 3),
        load(FIRST),
        skip_unless(libc::AF_NETLINK as u32, 1),
        answer(refused),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program and its instructions outlive the call, which copies them.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }).map(drop)
}

/// Binds thread `tid` (0: the calling one) to `cpus`.
pub fn pin(tid: i32, cpus: &[u32]) -> io::Result<()> {
    // SAFETY: a cpu_set_t is plain bits, all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    for &cpu in cpus {
        if cpu as usize >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: the index was checked against the set's size.
        unsafe { libc::CPU_SET(cpu as usize, &mut set) };
    }
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    check(unsafe { libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &raw const set) })
        .map(drop)
}

/// CPUs that the calling thread may run on, ascending.
pub fn affinity() -> Vec<u32> {
    // SAFETY: a cpu_set_t is plain bits, all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    let read = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    assert_eq!(read, 0, "sched_getaffinity: {}", io::Error::last_os_error());
    // SAFETY: the index stays below the set's size.
    (0..libc::CPU_SETSIZE as u32)
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu as usize, &set) })
        .collect()
}

/// The CPU that the calling thread runs on now.
pub fn current_cpu() -> i32 {
    // SAFETY: the call takes nothing.
    unsafe { libc::sched_getcpu() }
}

/// The calling thread's id.
pub fn thread_id() -> i32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Sends a signal to a process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: numbers only; a pid never is 0 or negative here, so no group is meant.
    check(unsafe { libc::kill(pid as i32, signal) }).map(drop)
}

/// Sends SIGKILL to the process group that `leader` was started to lead.
pub fn kill_group(leader: u32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::kill(-(leader as i32), libc::SIGKILL) }).map(drop)
}

/// A new socket, close-on-exec.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `setsockopt` with raw bytes: an `int`'s, a `struct linger`'s or a device's name.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which outlives the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), length) })
        .map(drop)
}

/// `getsockopt` into eight bytes; an `int` fills the first four.
fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<[u8; 8]> {
    let mut value = [0_u8; 8];
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which outlives the call.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    })?;
    Ok(value)
}

/// `SO_COOKIE`.
pub fn cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(u64::from_ne_bytes(option(fd, libc::SOL_SOCKET, libc::SO_COOKIE)?))
}

/// `SO_NETNS_COOKIE` of the socket's namespace.
pub fn netns_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    Ok(u64::from_ne_bytes(option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE)?))
}

/// `SO_INCOMING_CPU`: on a connection, the CPU that last received a packet of it.
pub fn incoming_cpu(fd: BorrowedFd<'_>) -> io::Result<i32> {
    let [a, b, c, d, ..] = option(fd, libc::SOL_SOCKET, libc::SO_INCOMING_CPU)?;
    Ok(i32::from_ne_bytes([a, b, c, d]))
}

/// Makes the close of a connection a reset, so that it leaves no TIME_WAIT and its port at once.
pub fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// `bind`.
pub fn bind(fd: BorrowedFd<'_>, address: std::net::SocketAddr) -> io::Result<()> {
    let port = address.port().to_be();
    let result = match address.ip() {
        std::net::IpAddr::V4(ip) => {
            // SAFETY: a sockaddr_in is plain numbers, all zero is valid.
            let mut raw: libc::sockaddr_in = unsafe { zeroed() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = port;
            raw.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
            let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            // SAFETY: pointer and length describe `raw`, which outlives the call.
            unsafe { libc::bind(fd.as_raw_fd(), (&raw const raw).cast(), length) }
        }
        std::net::IpAddr::V6(ip) => {
            // SAFETY: a sockaddr_in6 is plain numbers, all zero is valid.
            let mut raw: libc::sockaddr_in6 = unsafe { zeroed() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = port;
            raw.sin6_addr.s6_addr = ip.octets();
            let length = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            // SAFETY: pointer and length describe `raw`, which outlives the call.
            unsafe { libc::bind(fd.as_raw_fd(), (&raw const raw).cast(), length) }
        }
    };
    check(result).map(drop)
}

/// `listen`.
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// `accept4`, blocking as the listener is.
pub fn accept(listener: RawFd) -> io::Result<OwnedFd> {
    let null = std::ptr::null_mut();
    // SAFETY: null addresses ask for none.
    let fd =
        check(unsafe { libc::accept4(listener, null, std::ptr::null_mut(), libc::SOCK_CLOEXEC) })?;
    // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An epoll set that watches `fds` for input, level-triggered; the event's data is the descriptor.
pub fn epoll(fds: &[RawFd]) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let set = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
    let set = unsafe { OwnedFd::from_raw_fd(set) };
    for &fd in fds {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: the event outlives the call, which copies it.
        check(unsafe {
            libc::epoll_ctl(set.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event)
        })?;
    }
    Ok(set)
}

/// Waits without limit for one descriptor of an epoll set.
pub fn epoll_wait(set: &OwnedFd) -> io::Result<RawFd> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: room for one event is promised and given.
    check(unsafe { libc::epoll_wait(set.as_raw_fd(), &raw mut event, 1, -1) })?;
    Ok(event.u64 as RawFd)
}

/// Waits without limit for one descriptor of `fds`, with poll(2).
pub fn poll(fds: &[RawFd]) -> io::Result<RawFd> {
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: pointer and count describe the vector, which outlives the call.
    check(unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) })?;
    polled
        .iter()
        .find(|polled| polled.revents != 0)
        .map(|polled| polled.fd)
        .ok_or_else(|| io::Error::from(io::ErrorKind::Interrupted))
}

/// Receives one datagram, blocking as the socket is, and answers its sender.
pub fn answer(socket: RawFd, reply: impl FnOnce() -> String) -> io::Result<()> {
    let mut byte = 0_u8;
    // SAFETY: a sockaddr_storage is plain numbers, all zero is valid.
    let mut sender: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let from = (&raw mut sender).cast();
    // SAFETY: room for one byte and for any address is promised and given.
    let got =
        unsafe { libc::recvfrom(socket, (&raw mut byte).cast(), 1, 0, from, &raw mut length) };
    check(got as libc::c_int)?;
    let text = reply();
    let to = (&raw const sender).cast();
    // SAFETY: pointers and lengths describe `text` and the address that the kernel just filled in.
    let sent = unsafe { libc::sendto(socket, text.as_ptr().cast(), text.len(), 0, to, length) };
    check(sent as libc::c_int).map(drop)
}
