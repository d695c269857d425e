use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;

use super::*;
use crate::discover::tests::support::{Server, group};
use crate::sys::pidfd::weakened;

/// The listener itself is passed on, and nothing of it is kept.
#[test]
fn a_listener_is_passed_on_and_closed() {
    let server = Server::start("one");
    let group = group(&server);
    let listener = &group.listeners[0];
    let (number, cookie) =
        with_listener(listener, &group.key, |fd| (fd.as_raw_fd(), sockopt::cookie(fd).unwrap()))
            .unwrap();
    assert_eq!(cookie, listener.cookie);
    let link = std::fs::read_link(format!("/proc/self/fd/{number}"));
    let expected = format!("socket:[{}]", listener.inode);
    assert!(link.is_err() || link.unwrap().as_os_str() != expected.as_str());
}

#[test]
fn every_descriptor_is_closed_on_every_path() {
    // Other tests of this process open and close descriptors too: count this socket's only.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let key = key(listener.local_addr().unwrap());
    let holder = Holder { pid: std::process::id(), fd: listener.as_raw_fd() };
    let inode = std::fs::read_link(format!("/proc/self/fd/{}", holder.fd)).unwrap();
    let copies = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap();
        files
            .filter(|file| {
                std::fs::read_link(file.as_ref().unwrap().path()).is_ok_and(|it| it == inode)
            })
            .count()
    };
    for cookie in [0, sockopt::cookie(listener.as_fd()).unwrap()] {
        let taken = take(holder, cookie, &key).and_then(|it| balanced(it.as_fd()));
        assert!(taken.is_err());
        assert_eq!(copies(), 1);
    }
}

fn key(address: std::net::SocketAddr) -> GroupKey {
    GroupKey { netns: 0, protocol: Protocol::Tcp, address, v6only: false, device: 0, uid: 0 }
}

/// What is wrong with a descriptor, in one word.
fn verdict(fd: BorrowedFd<'_>, cookie: u64, key: &GroupKey) -> &'static str {
    match verify(fd, cookie, key).and_then(|()| balanced(fd)) {
        Ok(()) => "fine",
        Err(Failure::NotTheOne(difference)) => difference,
        Err(Failure::NotReuseport) => "not reuseport",
        Err(Failure::NotListening) => "not listening",
        Err(Failure::Mptcp) => "mptcp",
        Err(_) => "other",
    }
}

#[test]
fn a_descriptor_that_means_something_else_by_now() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let key = key(address);
    let cookie = sockopt::cookie(listener.as_fd()).unwrap();
    assert_eq!(verdict(listener.as_fd(), cookie, &key), "not reuseport");
    assert_eq!(
        verdict(listener.as_fd(), cookie + 1, &key),
        "it is another socket on the same address"
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(verdict(file.as_fd(), cookie, &key), "it is no socket");
    let unix = UnixDatagram::unbound().unwrap();
    assert_eq!(verdict(unix.as_fd(), cookie, &key), "it is of another family");
    let udp = std::net::UdpSocket::bind(address).unwrap();
    assert_eq!(verdict(udp.as_fd(), cookie, &key), "it is of another protocol");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(verdict(other.as_fd(), cookie, &key), "it has another address");
    let client = std::net::TcpStream::connect(address).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(accepted.local_addr().unwrap(), client.peer_addr().unwrap());
    assert_eq!(verdict(accepted.as_fd(), cookie, &key), "it is a connection");
}

#[test]
fn servers_that_cannot_be_steered() {
    let plain = Server::start("plain");
    let found = group(&plain);
    let error = with_listener(&found.listeners[0], &found.key, |_| ()).unwrap_err();
    assert!(matches!(error, AcquireError::NotReuseport { .. }));
    let text = error.to_string();
    for option in [
        "so_reuseport",
        "listen ... reuseport",
        "shards by-thread",
        "enable_reuse_port",
        "--reuse-port",
    ] {
        assert!(text.contains(option), "{text}");
    }
}

#[test]
fn a_member_that_does_not_listen_yet() {
    let server = Server::start("one");
    let bound = Server::start_on("bound", server.port);
    let found = group(&server);
    assert_eq!(found.listeners.len(), 1, "a bound socket is no listener");
    let mut listener = found.listeners[0].clone();
    listener.holders = vec![Holder { pid: bound.pid(), fd: 3 }];
    let error = with_listener(&listener, &found.key, |_| ()).unwrap_err();
    assert!(matches!(error, AcquireError::NotListening { .. }), "{error}");
}

#[test]
fn the_next_holder_is_tried_when_one_is_gone() {
    let server = Server::start("one");
    let found = group(&server);
    let mut listener = found.listeners[0].clone();
    let real = listener.holders[0];
    let gone = Holder { pid: (1 << 22) + 1, fd: 3 };
    let reused = Holder { pid: real.pid, fd: 1 };
    let closed = Holder { pid: real.pid, fd: 999 };
    listener.holders = vec![gone, reused, closed, real];
    assert!(with_listener(&listener, &found.key, |_| ()).is_ok());
    listener.holders = vec![gone];
    assert!(matches!(with_listener(&listener, &found.key, |_| ()), Err(AcquireError::Gone)));
    listener.holders = vec![];
    let error = with_listener(&listener, &found.key, |_| ()).unwrap_err();
    assert!(matches!(error, AcquireError::NoHolder { .. }));
    listener.holders = vec![real];
    drop(server);
    assert!(matches!(with_listener(&listener, &found.key, |_| ()), Err(AcquireError::Gone)));
}

#[test]
fn errors_are_sorted() {
    let failure = |call, errno| {
        let source = std::io::Error::from_raw_os_error(errno);
        match classify(SyscallError { call, source }) {
            Failure::Gone => "gone",
            Failure::Denied => "denied",
            Failure::NoPidfdGetfd => "too old",
            Failure::Syscall(_) => "other",
            _ => "wrong",
        }
    };
    for (call, errno, expected) in [
        ("pidfd_open", libc::ESRCH, "gone"),
        ("pidfd_open", libc::EINVAL, "gone"),
        ("pidfd_open", libc::ENOENT, "gone"),
        ("pidfd_open", libc::ENOSYS, "too old"),
        ("pidfd_open", libc::EMFILE, "other"),
        ("pidfd_getfd", libc::ESRCH, "gone"),
        ("pidfd_getfd", libc::EBADF, "gone"),
        ("pidfd_getfd", libc::EPERM, "denied"),
        ("pidfd_getfd", libc::EACCES, "denied"),
        ("pidfd_getfd", libc::ENOSYS, "too old"),
        ("pidfd_getfd", libc::EINVAL, "other"),
        ("pidfd_getfd", libc::EMFILE, "other"),
    ] {
        assert_eq!(failure(call, errno), expected, "{call} {errno}");
    }
}

#[test]
fn the_rule_that_forbids_is_named() {
    let server = Server::start("one");
    let found = group(&server);
    let attempt = || with_listener(&found.listeners[0], &found.key, |_| ());
    let denial = |result| match result {
        Err(AcquireError::Denied { pid, denial, .. }) if pid == server.pid() => Some(denial),
        _ => None,
    };
    assert_eq!(denial(weakened::without_getfd(attempt)), Some(Denial::Seccomp));
    let result = denial(weakened::without_ptrace(attempt));
    assert_eq!(result, Some(Denial::RootWithoutCapability));
    assert!(attempt().is_ok());
}
