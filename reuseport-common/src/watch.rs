//! What the `watch` object tells: listeners that came or went, on the ports that are watched.

use bytemuck::{Pod, Zeroable};

/// Name of the hash of watched ports: a port in host byte order to anything.
pub const PORTS: &str = "PORTS";
/// Name of the ring buffer of [`Change`]s.
pub const CHANGES: &str = "CHANGES";
/// Name of the global that holds [`Offsets`].
pub const OFFSETS: &str = "OFFSETS";

/// Name of the program that tells who listens, and the kernel function at whose end it runs.
pub const PROGRAM_STARTED: (&str, &str) = ("listen_started", "inet_csk_listen_start");
/// Name of the program that tells who stopped listening, and the function at whose end it runs.
pub const PROGRAM_STOPPED: (&str, &str) = ("listen_stopped", "inet_csk_listen_stop");
/// Name of the program that tells both, and the tracepoint at which it runs.
pub const PROGRAM_STATE: (&str, &str) = ("state_changed", "inet_sock_set_state");

/// Most ports that are watched.
pub const MOST_PORTS: u32 = 1024;

/// A listener that came or went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Change {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// `SO_COOKIE` of the socket.
    pub cookie: u64,
    /// `SO_NETNS_COOKIE` of its namespace; 0 on kernels that have none (before 5.14).
    pub netns: u64,
    /// Its port in host byte order.
    pub port: u16,
    /// 1 for a socket that listens now, 0 for one that stopped.
    pub listens: u16,
    /// Always zero.
    pub padding: u32,
}

/// Offsets in bytes within this kernel's structs, from its BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Offsets {
    /// `sock.__sk_common.skc_state`
    pub state: u32,
    /// `sock.__sk_common.skc_num`
    pub port: u32,
    /// `sock.__sk_common.skc_net`
    pub net: u32,
    /// `net.net_cookie`; 0 where there is none.
    pub netns_cookie: u32,
}

impl Offsets {
    /// Not filled.
    pub const ZERO: Self = Self { state: 0, port: 0, net: 0, netns_cookie: 0 };
}
