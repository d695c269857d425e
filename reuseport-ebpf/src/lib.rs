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
static WATCH_ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../objects/watch.bpf.o"));
static OBSERVE_ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../objects/observe.bpf.o"));

/// The steering programs `select` and `select_or_migrate` with their maps, and the iterator
/// `list_members`.
///
/// # Minimum kernel version
///
/// 5.10 for `select`, 5.14 for `select_or_migrate`, 5.10 with BTF for `list_members`. Needs
/// `CAP_BPF`, the iterator `CAP_PERFMON` too.
pub static STEER: &[u8] = &STEER_ALIGNED.0;

/// The programs `listen_started` and `listen_stopped`, which tell of listeners that come and go.
///
/// # Minimum kernel version
///
/// 5.12 with BTF (on arm64 6.4); `CAP_BPF` and `CAP_PERFMON`.
pub static WATCH: &[u8] = &WATCH_ALIGNED.0;

/// The programs `queued`, `accepted` and `returned`, which see connections come into the accept queue and
/// leave it.
///
/// # Minimum kernel version
///
/// 5.10 with BTF; `CAP_BPF` and `CAP_PERFMON`.
pub static OBSERVE: &[u8] = &OBSERVE_ALIGNED.0;
