//! What the `observe` object needs: looked up apart from the rest, because only `trace` asks for it.

use std::path::Path;

use reuseport_common::observe::{Offsets, PROGRAM_ACCEPTED, Syscall};

use super::{Btf, BtfError, KIND_FUNC, KIND_TYPEDEF, Places, STATE_CHANGE, VMLINUX};
use crate::sys::mapped::Mapped;

const STRUCTS: [&str; 10] = [
    "sock",
    "sock_common",
    "tcp_sock",
    "net",
    "ns_common",
    "socket",
    "task_struct",
    "files_struct",
    "fdtable",
    "file",
];
const REGISTERS: &str = "pt_regs";

/// Where the programs run.
const PLACES: [(&str, u32); 3] = [
    (STATE_CHANGE, KIND_TYPEDEF),
    (PROGRAM_ACCEPTED.1, KIND_FUNC),
    ("btf_trace_sys_exit", KIND_TYPEDEF),
];

/// Members of `pt_regs` with the number of the system call and its first argument.
#[cfg(target_arch = "aarch64")]
const CALL: (&str, &str) = ("syscallno", "orig_x0");
#[cfg(not(target_arch = "aarch64"))]
const CALL: (&str, &str) = ("orig_ax", "di");

/// What the running kernel's BTF says.
#[derive(Clone, Copy, Debug)]
pub(in crate::bpf) struct Kernel {
    pub(in crate::bpf) offsets: Offsets,
    pub(in crate::bpf) syscall: Syscall,
    pub(in crate::bpf) places: Places<{ PLACES.len() }>,
}

impl Kernel {
    /// Looks it up.
    pub(in crate::bpf) fn look_up() -> Result<Self, BtfError> {
        let bytes = Mapped::open(Path::new(VMLINUX)).map_err(BtfError::Unreadable)?;
        let structs: Vec<_> = STRUCTS.into_iter().chain([REGISTERS]).collect();
        let btf = Btf::parse(&bytes, &structs, &PLACES)?;
        let places = Places::find(&btf, PLACES);
        Ok(Self { offsets: offsets(&btf)?, syscall: syscall(&btf)?, places })
    }
}

fn offsets(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    Ok(Offsets {
        port: btf.common("skc_num")?,
        net: btf.common("skc_net")?,
        netns: btf.offset("net", "ns")? + btf.offset("ns_common", "inum")?,
        cookie: btf.common("skc_cookie")?,
        family: btf.common("skc_family")?,
        v4: btf.common("skc_daddr")?,
        v6: btf.common("skc_v6_daddr")?,
        client_port: btf.common("skc_dport")?,
        state: btf.common("skc_state")?,
        socket: btf.offset("sock", "sk_socket")?,
        waiting: btf.offset("sock", "sk_ack_backlog")?,
        round_trip: btf.offset("tcp_sock", "srtt_us")?,
        sock: btf.offset("socket", "sk")?,
        files: btf.offset("task_struct", "files")?,
        table: btf.offset("files_struct", "fdt")?,
        descriptors: btf.offset("fdtable", "fd")?,
        private: btf.offset("file", "private_data")?,
    })
}

fn syscall(btf: &Btf<'_>) -> Result<Syscall, BtfError> {
    Ok(Syscall {
        number: btf.offset(REGISTERS, CALL.0)?,
        first: btf.offset(REGISTERS, CALL.1)?,
        accept: libc::SYS_accept as u32,
        accept4: libc::SYS_accept4 as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_offsets_are_plausible() {
        let kernel = Kernel::look_up().unwrap();
        let all: [u32; size_of::<Offsets>() / 4] = bytemuck::cast(kernel.offsets);
        assert!(all.iter().all(|&offset| offset < 16384), "{kernel:?}");
        assert_ne!(kernel.offsets.v4, kernel.offsets.v6);
        assert_ne!(kernel.syscall.number, kernel.syscall.first);
        for (place, _) in PLACES {
            kernel.places.stand_in(place).unwrap();
        }
        assert!(kernel.places.stand_in("nobody's").is_err());
    }
}
