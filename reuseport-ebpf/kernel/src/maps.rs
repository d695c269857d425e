//! The maps of the steering object. Sizes are placeholders: the loader sets them per group.

use core::cell::UnsafeCell;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_MMAPABLE, bpf_map_def, bpf_map_type::BPF_MAP_TYPE_REUSEPORT_SOCKARRAY},
    helpers::generated::bpf_sk_select_reuseport,
    macros::map,
    maps::{Array, PerCpuArray},
    programs::SkReuseportContext,
};
use crate::abi::{Config, Load, Row, SeatState};

#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

#[map]
pub static TABLE: Array<Row> = Array::with_max_entries(2, 0);

#[map]
pub static SOCKETS: SockArray = SockArray::with_max_entries(1);

#[map]
pub static LOAD: Array<Load> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static SEATS: Array<SeatState> = Array::with_max_entries(1, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A `REUSEPORT_SOCKARRAY` with 8-byte values.
///
/// aya's own has 4-byte values: the kernel then answers look-ups with ENOSPC, and no socket cookie
/// can be read back (`reuseport_array_lookup_elem`).
#[repr(transparent)]
pub struct SockArray(UnsafeCell<bpf_map_def>);

// SAFETY: the definition is read by the loader from the ELF file; the program only takes its address.
unsafe impl Sync for SockArray {}

impl SockArray {
    const fn with_max_entries(max_entries: u32) -> Self {
        Self(UnsafeCell::new(bpf_map_def {
            type_: BPF_MAP_TYPE_REUSEPORT_SOCKARRAY,
            key_size: 4,
            value_size: 8,
            max_entries,
            map_flags: 0,
            id: 0,
            pinning: 0,
        }))
    }

    /// Makes the socket in `slot` the verdict of this run; false where the kernel refuses.
    #[inline(always)]
    pub fn select(&self, ctx: &SkReuseportContext, mut slot: u32) -> bool {
        // SAFETY: the context is the program's own, the map a sockarray, the key on the stack.
        unsafe {
            bpf_sk_select_reuseport(
                ctx.as_ptr().cast(),
                self.0.get().cast(),
                (&raw mut slot).cast(),
                0,
            ) == 0
        }
    }
}
