//! The kernel's memory. Rust BPF has no CO-RE, so every offset comes from the loader, which reads the
//! running kernel's BTF.

use core::mem::MaybeUninit;

use aya_ebpf::{cty::c_void, helpers::generated::bpf_probe_read_kernel};

/// Reads a kernel value; zeroes where the address is not mapped.
#[inline(always)]
pub fn read<T: Copy>(base: u64, offset: u32) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the helper checks the address and fills the whole value; only plain numbers are read.
    unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const c_void,
        );
        value.assume_init()
    }
}
