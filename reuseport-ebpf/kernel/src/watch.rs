//! Tells which listeners come and go on some ports, at the moment they do.
//!
//! Two programs run at the end of the kernel's own functions for it: per listener, never per
//! connection. Where the kernel has no trampolines for them (arm64 before 6.4, some virtual machines),
//! a third runs at every change of a TCP socket's state, and has nothing to do for most. Steering needs
//! none of them.
#![no_std]
#![no_main]

mod memory;
mod object;
#[allow(dead_code, reason = "other objects use the rest")]
mod tcp;

#[path = "../../../reuseport-common/src/watch.rs"]
#[allow(dead_code, reason = "the user side uses the rest")]
mod watch;

use aya_ebpf::{
    Global,
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns},
    macros::map,
    maps::{HashMap, RingBuf},
};
use memory::read;
use tcp::StateChange;
use watch::{Change, MOST_PORTS, Offsets};

#[map]
static PORTS: HashMap<u16, u8> = HashMap::with_max_entries(MOST_PORTS, 0);

/// Room for some 1600 changes: what does not fit is found by the next look.
#[map]
static CHANGES: RingBuf = RingBuf::with_byte_size(1 << 16, 0);

/// Where things are in this kernel's structs.
#[unsafe(no_mangle)]
static OFFSETS: Global<Offsets> = Global::new(Offsets::ZERO);

/// `int inet_csk_listen_start(struct sock *sk, ...)`: in its group by the end of it, or refused.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit/inet_csk_listen_start")]
extern "C" fn listen_started(ctx: *const *const c_void) -> i32 {
    // SAFETY: the verifier knows the function's first argument, a socket.
    let socket = unsafe { *ctx };
    if read::<u8>(socket as u64, OFFSETS.load().state) == tcp::LISTEN as u8 {
        tell(socket, true);
    }
    0
}

/// `void inet_csk_listen_stop(struct sock *sk)`: out of its group before the beginning of it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit/inet_csk_listen_stop")]
extern "C" fn listen_stopped(ctx: *const *const c_void) -> i32 {
    // SAFETY: as above.
    tell(unsafe { *ctx }, false);
    0
}

/// Just before a listener joins its group, and just before it leaves. A connection is no listener, but
/// begins as the copy of one: from that state it goes to another than closed.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/inet_sock_set_state")]
extern "C" fn state_changed(ctx: *const StateChange) -> i32 {
    // SAFETY: the verifier knows the tracepoint's arguments.
    let (socket, before, now) = unsafe { ((*ctx).socket, (*ctx).before, (*ctx).now) };
    match (before as u32, now as u32) {
        (_, tcp::LISTEN) => tell(socket, true),
        (tcp::LISTEN, tcp::CLOSE) => tell(socket, false),
        _ => {}
    }
    0
}

#[inline(always)]
fn tell(socket: *const c_void, listens: bool) {
    let at = OFFSETS.load();
    let port: u16 = read(socket as u64, at.port);
    // SAFETY: nothing is kept of the value.
    if unsafe { PORTS.get(&port) }.is_none() {
        return;
    }
    let netns = match at.netns_cookie {
        0 => 0,
        offset => read(read(socket as u64, at.net), offset),
    };
    let change = Change {
        // SAFETY: no arguments, no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        // SAFETY: a socket of the kernel's, alive for as long as the function that was called with it.
        cookie: unsafe { bpf_get_socket_cookie(socket.cast_mut()) },
        netns,
        port,
        listens: listens as u16,
        padding: 0,
    };
    // Full: the next look finds it.
    let _full = CHANGES.output::<Change>(&change, 0);
}
