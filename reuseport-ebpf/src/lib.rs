//! The BPF objects, compiled and ready to embed.
//!
//! They are committed under `objects/` so that building and installing need stable Rust only;
//! `cargo xtask build-ebpf` makes them from `kernel/`, and `objects/objects.lock` says from which
//! sources and with which tools.
#![no_std]

/// Bytes at an address the ELF parser can read words from.
#[repr(C, align(32))]
struct Aligned<T: ?Sized>(T);

static STEER_ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../objects/steer.bpf.o"));
static GROUP_ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../objects/group.bpf.o"));

/// The steering programs `select` and `select_or_migrate` with their maps.
///
/// # Minimum kernel version
///
/// 5.10 for `select` (as tested), 5.14 for `select_or_migrate`. Needs `CAP_BPF`.
pub static STEER: &[u8] = &STEER_ALIGNED.0;

/// The `iter/tcp` program `list_members`: who is in a reuseport group, and which program is attached.
///
/// # Minimum kernel version
///
/// 5.10 with BTF. Needs `CAP_BPF` and `CAP_PERFMON`.
pub static GROUP: &[u8] = &GROUP_ALIGNED.0;
