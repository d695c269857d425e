//! `list_members`: a BPF iterator over the TCP listeners of one port, one record each.
//!
//! The kernel has no getter for the program attached to a reuseport group; this is the only exact
//! way to learn who is in a group and whose program it runs. Steering never needs it.

use aya_ebpf::{
    Global,
    cty::c_void,
    helpers::generated::bpf_seq_write,
};

use crate::abi::{Member, Offsets};
use crate::memory::read;
use crate::tcp;

/// Where things are in this kernel's structs.
#[unsafe(no_mangle)]
static OFFSETS: Global<Offsets> = Global::new(Offsets::ZERO);

/// Port in host byte order.
#[unsafe(no_mangle)]
static PORT: Global<u16> = Global::new(0);

/// Ends the walk: the kernel takes it for "not now" and makes the reader's call fail with `EAGAIN`.
/// Listeners come before all connections, of which there may be a million.
const STOP: u32 = 1;

/// What the kernel passes: `struct bpf_iter__tcp`, pointers in 8-byte seats.
#[repr(C)]
struct IterContext {
    meta: *const IterMeta,
    socket: *const c_void,
}

/// The head of `struct bpf_iter_meta`.
#[repr(C)]
struct IterMeta {
    seq: *mut c_void,
}

/// Writes one [`Member`] per listener on the port.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
extern "C" fn list_members(ctx: *const IterContext) -> u32 {
    // SAFETY: the verifier types both members of the context.
    let (meta, socket) = unsafe { ((*ctx).meta, (*ctx).socket) };
    if socket.is_null() {
        return 0;
    }
    let at = OFFSETS.load();
    let socket = socket as u64;
    if read::<u8>(socket, at.state) != tcp::LISTEN as u8 {
        return STOP;
    }
    if read::<u16>(socket, at.port) != PORT.load() {
        return 0;
    }
    let group: u64 = read(socket, at.group);
    let mut member = Member { cookie: read(socket, at.cookie), ..Member::ZERO };
    if group != 0 {
        member.reuseport = 1;
        member.group = read(group, at.group_id);
        member.members = read(group, at.members);
        let program: u64 = read(group, at.program);
        if program != 0 {
            member.attached = 1;
            member.program = read(read(program, at.program_aux), at.program_id);
        }
    }
    // SAFETY: the seq file is the context's own, the record is whole and on the stack.
    unsafe {
        bpf_seq_write(
            (*meta).seq.cast(),
            (&raw mut member).cast(),
            size_of::<Member>() as u32,
        );
    }
    0
}
