//! What the `observe` object needs: looked up apart from the rest, because only `trace` asks for it.

use std::path::Path;

use reuseport_common::observe::{
    Offsets, PROGRAM_ACCEPTED, PROGRAM_QUEUED, PROGRAM_RETURNED, Syscall,
};

use super::{Btf, BtfError, KIND_FUNC, KIND_TYPEDEF, STATE_CHANGE, VMLINUX, stand_in};
use crate::bpf::BpfError;
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

/// Programs' places of attachment: whose, by the name in the BTF, of which kind.
const PLACES: [(&str, &str, u32); 3] = [
    (PROGRAM_QUEUED.0, STATE_CHANGE, KIND_TYPEDEF),
    (PROGRAM_ACCEPTED.0, PROGRAM_ACCEPTED.1, KIND_FUNC),
    (PROGRAM_RETURNED.0, "btf_trace_sys_exit", KIND_TYPEDEF),
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
    places: [Option<u32>; PLACES.len()],
}

impl Kernel {
    /// Looks it up.
    pub(in crate::bpf) fn look_up() -> Result<Self, BtfError> {
        let bytes = Mapped::open(Path::new(VMLINUX)).map_err(BtfError::Unreadable)?;
        let structs: Vec<_> = STRUCTS.into_iter().chain([REGISTERS]).collect();
        let btf = Btf::parse(&bytes, &structs, &PLACES.map(|(_, name, kind)| (name, kind)))?;
        let places = PLACES.map(|(_, name, _)| btf.places.get(name).copied());
        Ok(Self { offsets: offsets(&btf)?, syscall: syscall(&btf)?, places })
    }

    /// What aya's `load` takes for a program, as [`super::Kernel::stand_in`].
    pub(in crate::bpf) fn stand_in(&self, program: &str) -> Result<aya::Btf, BpfError> {
        let mut places = PLACES.iter().zip(self.places);
        let found = places.find(|(place, _)| place.0 == program);
        let Some((&(_, name, kind), id)) = found else {
            return Err(BtfError::Missing(program.to_owned()).into());
        };
        let id = id.ok_or_else(|| BtfError::Missing(name.to_owned()))?;
        stand_in(name, kind, id)
    }
}

fn offsets(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let sock = btf.offset("sock", "__sk_common")?;
    let common = |member| Ok::<_, BtfError>(sock + btf.offset("sock_common", member)?);
    Ok(Offsets {
        port: common("skc_num")?,
        net: common("skc_net")?,
        netns: btf.offset("net", "ns")? + btf.offset("ns_common", "inum")?,
        cookie: common("skc_cookie")?,
        family: common("skc_family")?,
        v4: common("skc_daddr")?,
        v6: common("skc_v6_daddr")?,
        client_port: common("skc_dport")?,
        state: common("skc_state")?,
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
        for (program, ..) in PLACES {
            kernel.stand_in(program).unwrap();
        }
        assert!(kernel.stand_in("nobody's").is_err());
    }
}
