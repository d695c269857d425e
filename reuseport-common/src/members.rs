//! What the `iter/tcp` program `members` is told and what it answers.

use bytemuck::{Pod, Zeroable};

/// Offsets in bytes within this kernel's structs, from its BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Offsets {
    /// `sock.__sk_common.skc_state`
    pub state: u32,
    /// `sock.__sk_common.skc_num`
    pub port: u32,
    /// `sock.__sk_common.skc_cookie`
    pub cookie: u32,
    /// `sock.sk_reuseport_cb`
    pub group: u32,
    /// `sock_reuseport.reuseport_id`
    pub group_id: u32,
    /// `sock_reuseport.num_socks`
    pub members: u32,
    /// `sock_reuseport.prog`
    pub program: u32,
    /// `bpf_prog.aux`
    pub program_aux: u32,
    /// `bpf_prog_aux.id`
    pub program_id: u32,
}

impl Offsets {
    /// Not filled.
    pub const ZERO: Self = Self {
        state: 0,
        port: 0,
        cookie: 0,
        group: 0,
        group_id: 0,
        members: 0,
        program: 0,
        program_aux: 0,
        program_id: 0,
    };
}

/// One TCP listener as the kernel sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Member {
    /// The socket cookie, as `SO_COOKIE` and `ss -e` give it; 0 where none was made yet.
    pub cookie: u64,
    /// `reuseport_id`: equal for all members of a group.
    pub group: u32,
    /// The attached BPF program's id; 0 with `attached` set is a classic BPF program.
    pub program: u32,
    /// Listeners in the group.
    pub members: u16,
    /// 1 if the socket is in a reuseport group at all.
    pub reuseport: u8,
    /// 1 if a program is attached to the group.
    pub attached: u8,
    /// Always zero.
    pub padding: u32,
}

impl Member {
    /// A record with nothing in it.
    pub const ZERO: Self =
        Self { cookie: 0, group: 0, program: 0, members: 0, reuseport: 0, attached: 0, padding: 0 };
}
