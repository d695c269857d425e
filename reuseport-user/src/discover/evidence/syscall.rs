//! What a thread waits for, from `/proc/PID/task/TID/syscall`.

/// What a thread was seen doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// On a CPU or about to be: the kernel shows no arguments.
    Running,
    /// Blocked on one descriptor: `accept`, or a receive from a datagram socket.
    Descriptor(i32),
    /// Blocked on an epoll set.
    Epoll(i32),
    /// Blocked in `poll` on an array of `count` entries.
    Poll {
        /// Address of the array in that process.
        address: u64,
        /// Entries.
        count: u64,
    },
    /// Blocked in `select`.
    Select {
        /// One more than the highest descriptor.
        count: u64,
        /// Address of the set of descriptors to be read, in that process.
        address: u64,
    },
    /// Waits for children or signals, as the parent of a family of workers does.
    Supervising,
    /// Waits for an io_uring's completions.
    IoUring,
    /// Blocked elsewhere.
    Elsewhere,
}

/// Reads a line such as `232 0x5 0x7ffd... 0x200 0xffffffff 0x0 0x0 0x7ffc... 0x7f...`.
pub(crate) fn parse(line: &str) -> Wait {
    let mut fields = line.split_whitespace();
    // `running`, or `-1 SP PC` for a thread blocked outside of any system call.
    let Some(number) = fields.next().and_then(|field| field.parse::<i64>().ok()) else {
        return Wait::Running;
    };
    let mut argument = || {
        let field = fields.next().and_then(|field| field.strip_prefix("0x"));
        field.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
    };
    let (first, second) = (argument(), argument());
    match number {
        libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_read
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_recvmmsg => Wait::Descriptor(first as i32),
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => Wait::Epoll(first as i32),
        libc::SYS_ppoll => Wait::Poll { address: first, count: second },
        libc::SYS_pselect6 => Wait::Select { count: first, address: second },
        libc::SYS_wait4
        | libc::SYS_waitid
        | libc::SYS_rt_sigsuspend
        | libc::SYS_rt_sigtimedwait => Wait::Supervising,
        libc::SYS_io_uring_enter => Wait::IoUring,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait => Wait::Epoll(first as i32),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => Wait::Poll { address: first, count: second },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => Wait::Select { count: first, address: second },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_pause => Wait::Supervising,
        _ => Wait::Elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_shows_nothing() {
        for line in ["running\n", "", "\n", "garbage 0x1"] {
            assert_eq!(parse(line), Wait::Running, "{line:?}");
        }
        assert_eq!(parse("-1 0x7ffd00 0x7f00"), Wait::Elsewhere);
    }

    #[test]
    fn arguments_are_read() {
        let line = |number: i64, rest: &str| parse(&format!("{number} {rest} 0x7ffc00 0x7f00\n"));
        assert_eq!(line(libc::SYS_accept4, "0x6 0x0 0x0 0x80000 0x0 0x0"), Wait::Descriptor(6));
        assert_eq!(line(libc::SYS_epoll_pwait, "0x1f 0x7f 0x200 0xffffffff"), Wait::Epoll(31));
        assert_eq!(
            line(libc::SYS_ppoll, "0x7ffd1000 0x3 0x0"),
            Wait::Poll { address: 0x7ffd_1000, count: 3 }
        );
        assert_eq!(
            line(libc::SYS_pselect6, "0x8 0x7ffd2000 0x0"),
            Wait::Select { count: 8, address: 0x7ffd_2000 }
        );
        assert_eq!(line(libc::SYS_wait4, "0xffffffffffffffff"), Wait::Supervising);
        assert_eq!(line(libc::SYS_futex, "0x7f00 0x80"), Wait::Elsewhere);
    }

    /// The kernel's own tables (`syscall_64.tbl`), not what libc happens to say.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn numbers_of_x86_64() {
        for (number, expected) in [
            (43, Wait::Descriptor(3)),
            (288, Wait::Descriptor(3)),
            (232, Wait::Epoll(3)),
            (281, Wait::Epoll(3)),
            (441, Wait::Epoll(3)),
            (7, Wait::Poll { address: 3, count: 4 }),
            (271, Wait::Poll { address: 3, count: 4 }),
            (23, Wait::Select { count: 3, address: 4 }),
            (270, Wait::Select { count: 3, address: 4 }),
            (61, Wait::Supervising),
            (34, Wait::Supervising),
            (130, Wait::Supervising),
            (426, Wait::IoUring),
        ] {
            assert_eq!(parse(&format!("{number} 0x3 0x4 0x0")), expected, "{number}");
        }
    }
}
