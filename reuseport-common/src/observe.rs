//! What the `observe` object sees of a port's connections: when they came into the accept queue and
//! when they left it, on which CPUs.

use bytemuck::{Pod, Zeroable};

use crate::hist::BUCKETS;

/// Name of the hash of traced listeners: `SO_COOKIE` to index.
pub const LISTENERS: &str = "LISTENERS";
/// Name of the hash of connections that wait: address of their `struct sock` to [`Waiting`].
pub const WAITING: &str = "WAITING";
/// Name of the per-CPU array of [`Times`], by listener; the CPU is the accepting one.
pub const TIMES: &str = "TIMES";
/// Name of the hash that counts connections by [`pair`].
pub const PAIRS: &str = "PAIRS";
/// Name of the per-CPU array of counts, by [`Total`].
pub const TOTALS: &str = "TOTALS";
/// Name of the ring buffer of [`Event`]s.
pub const EVENTS: &str = "EVENTS";
/// Name of the global that holds [`Offsets`].
pub const OFFSETS: &str = "OFFSETS";
/// Name of the global that holds [`Filter`].
pub const FILTER: &str = "FILTER";
/// Name of the global that holds [`Syscall`].
pub const SYSCALL: &str = "SYSCALL";

/// Name of the program that sees connections come, and the tracepoint at which it runs.
pub const PROGRAM_QUEUED: (&str, &str) = ("queued", "inet_sock_set_state");
/// Name of the program that sees them accepted, and the function at whose end it runs.
pub const PROGRAM_ACCEPTED: (&str, &str) = ("accepted", "inet_accept");
/// Name of the program that does so where functions cannot be hooked, and its tracepoint.
pub const PROGRAM_RETURNED: (&str, &str) = ("returned", "sys_exit");

/// What is counted beside the connections of traced listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Total {
    /// Connections that came into an accept queue on the port.
    Queued = 0,
    /// Connections accepted from listeners on the port that are not traced.
    Unlisted = 1,
    /// Connections that found no room in [`PAIRS`].
    Unpaired = 2,
    /// Events that found no room in [`EVENTS`].
    LostEvents = 3,
}

impl Total {
    /// How many there are.
    pub const COUNT: u32 = 4;
}

/// Which connections are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Filter {
    /// Inode of the network namespace.
    pub netns: u32,
    /// Port in host byte order.
    pub port: u16,
    /// 1 to tell of each connection in [`EVENTS`].
    pub events: u16,
}

impl Filter {
    /// Not filled.
    pub const ZERO: Self = Self { netns: 0, port: 0, events: 0 };
}

/// A connection in its accept queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Waiting {
    /// Since when, in nanoseconds of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// The CPU that received the end of its handshake.
    pub received: u32,
    /// Microseconds from the SYN-ACK to then; 0 where it had to be sent again.
    pub handshake: u32,
}

/// Times of a listener's connections that one CPU accepted.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Times {
    /// From accept queue to accept, by [`crate::hist::bucket`].
    pub waits: [u32; BUCKETS],
    /// From SYN-ACK to accept queue; shorter than all others where it is not known.
    pub handshakes: [u32; BUCKETS],
    /// The longest wait in nanoseconds.
    pub longest: u64,
    /// Most connections that were waiting when one was accepted, itself included.
    pub deepest: u32,
    /// Connections accepted that were not seen to come: they were waiting before, or came by TCP Fast
    /// Open and were accepted before the handshake ended.
    pub unseen: u32,
}

/// [`Times`] as the numbers that it is made of.
pub type TimesWords = [u32; size_of::<Times>() / 4];

/// Key of [`PAIRS`]: connections of a listener, received on one CPU and accepted on another.
#[inline(always)]
pub const fn pair(listener: u32, received: u32, accepted: u32) -> u64 {
    (listener as u64) << 32 | ((received & 0xffff) << 16 | accepted & 0xffff) as u64
}

/// Listener, receiving and accepting CPU of a [`pair`].
pub const fn unpair(pair: u64) -> (u32, u32, u32) {
    ((pair >> 32) as u32, (pair >> 16) as u32 & 0xffff, pair as u32 & 0xffff)
}

/// A connection that was accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// When accept returned, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// What was known of it before; zeroes where it was not seen to come.
    pub waiting: Waiting,
    /// `SO_COOKIE` of the listener.
    pub listener: u64,
    /// The client's address, IPv4 in the first four bytes.
    pub client: [u8; 16],
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// The client's port in network byte order.
    pub port: [u8; 2],
    /// The CPU that accepted.
    pub accepted: u32,
    /// Connections that were waiting then, itself included.
    pub depth: u32,
    /// The process that accepted.
    pub pid: u32,
    /// The thread that accepted.
    pub tid: u32,
    /// Zero.
    pub padding: u32,
}

/// Offsets in bytes within this kernel's structs, from its BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Offsets {
    /// `sock.__sk_common.skc_num`
    pub port: u32,
    /// `sock.__sk_common.skc_net`
    pub net: u32,
    /// `net.ns.inum`
    pub netns: u32,
    /// `sock.__sk_common.skc_cookie`
    pub cookie: u32,
    /// `sock.__sk_common.skc_family`
    pub family: u32,
    /// `sock.__sk_common.skc_daddr`
    pub v4: u32,
    /// `sock.__sk_common.skc_v6_daddr`
    pub v6: u32,
    /// `sock.__sk_common.skc_dport`
    pub client_port: u32,
    /// `sock.__sk_common.skc_state`
    pub state: u32,
    /// `sock.sk_socket`: null until it is accepted.
    pub socket: u32,
    /// `sock.sk_ack_backlog`
    pub waiting: u32,
    /// `tcp_sock.srtt_us`
    pub round_trip: u32,
    /// `socket.sk`
    pub sock: u32,
    /// `task_struct.files`
    pub files: u32,
    /// `files_struct.fdt`
    pub table: u32,
    /// `fdtable.fd`
    pub descriptors: u32,
    /// `file.private_data`
    pub private: u32,
}

impl Offsets {
    /// Not filled.
    pub const ZERO: Self = Self {
        port: 0,
        net: 0,
        netns: 0,
        cookie: 0,
        family: 0,
        v4: 0,
        v6: 0,
        client_port: 0,
        state: 0,
        socket: 0,
        waiting: 0,
        round_trip: 0,
        sock: 0,
        files: 0,
        table: 0,
        descriptors: 0,
        private: 0,
    };
}

/// What a system call that returns looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Syscall {
    /// Offset of its number in `pt_regs`.
    pub number: u32,
    /// Offset of its first argument.
    pub first: u32,
    /// The number of `accept`.
    pub accept: u32,
    /// The number of `accept4`.
    pub accept4: u32,
}

impl Syscall {
    /// Not filled.
    pub const ZERO: Self = Self { number: 0, first: 0, accept: 0, accept4: 0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_read_as_it_was_made() {
        for it in [(0, 0, 0), (7, 65535, 1), (u32::MAX, 0, 65535)] {
            assert_eq!(unpair(pair(it.0, it.1, it.2)), it);
        }
    }

    #[test]
    fn sizes_leave_no_holes() {
        assert_eq!(size_of::<Times>() % 8, 0);
        assert_eq!(size_of::<TimesWords>(), size_of::<Times>());
        assert_eq!(size_of::<Event>() % 8, 0);
    }
}
