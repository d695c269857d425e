//! The embedded object, parsed and its maps created; programs are loaded one by one on demand.

use std::path::Path;

use aya::programs::{Iter, Program, ProgramError, SkReuseport};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use reuseport_common::abi::{self, Offsets};

use super::maps::{self, Sizes};
use super::{BpfError, btf};
use crate::sys::caps::{Cap, Confinement};

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Map sizes.
    pub sizes: Sizes,
    /// Port whose listeners `list_members` lists.
    pub port: u16,
    /// aya-log records on rare paths.
    pub log: bool,
    /// Keep the verifier's whole log in errors.
    pub verifier_log: bool,
}

/// The object in the kernel: maps exist, programs do not yet.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
    kernel: Result<btf::Kernel, btf::BtfError>,
    verifier_log: bool,
}

/// Hash of the embedded object: pins made from another one are replaced by the next attach.
pub fn fingerprint() -> u64 {
    super::fnv1a(reuseport_ebpf::STEER)
}

impl Object {
    /// Creates the maps.
    pub fn load(options: &LoadOptions) -> Result<Self, BpfError> {
        let kernel = btf::kernel();
        let values = kernel.as_ref().map_or_else(|_| Offsets::default(), |it| it.offsets);
        // 0xff and up would be "everything"; zero is below every level, so the records are dead
        // code that the verifier removes.
        let level: u8 = if options.log { 0xff } else { 0 };
        let log_bytes = if options.log { 1 << 17 } else { 4096 };
        let offsets_bytes: [u8; size_of::<Offsets>()] = bytemuck::cast(values);
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries(abi::TABLE, options.sizes.half * 2)
            .map_max_entries(abi::SOCKETS, options.sizes.slots)
            .map_max_entries(abi::LOAD, options.sizes.slots)
            .map_max_entries(abi::COUNTERS, options.sizes.counters())
            .map_max_entries("AYA_LOGS", log_bytes)
            .override_global("AYA_LOG_LEVEL", &level, true)
            .override_global(abi::OFFSETS, &offsets_bytes[..], true)
            .override_global(abi::PORT, &options.port, true);
        if options.verifier_log {
            loader.verifier_log_level(VerifierLogLevel::VERBOSE | VerifierLogLevel::STATS);
        }
        let ebpf = loader
            .load(reuseport_ebpf::STEER)
            .map_err(BpfError::sort("create the BPF maps", Cap::Bpf))?;
        Ok(Self { ebpf, kernel, verifier_log: options.verifier_log })
    }

    /// Loads the steering program and says whether it is the one that migrates.
    ///
    /// The migrating one is tried first; a kernel that has no migration refuses to let a program
    /// read `migrating_sk`. That refusal is the probe: versions and the sysctl mislead.
    pub fn load_steering(&mut self) -> Result<bool, BpfError> {
        match self.load_program(abi::PROGRAM_SELECT_OR_MIGRATE) {
            Ok(()) => Ok(true),
            Err(BpfError::Verifier { .. }) => {
                self.load_program(abi::PROGRAM_SELECT)?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn load_program(&mut self, name: &str) -> Result<(), BpfError> {
        let sort = BpfError::sort_load(name, self.verifier_log);
        self.program::<SkReuseport>(name)?.load().map_err(sort)
    }

    /// Pins the maps, and the steering program as `program`, into `directory`.
    pub(super) fn pin_into(
        &mut self,
        directory: &Path,
        program: &str,
        migrates: bool,
    ) -> Result<(), BpfError> {
        for name in maps::NAMES {
            let missing = || BpfError::Shape(format!("the object has no map {name}"));
            self.ebpf.map(name).ok_or_else(missing)?.pin(directory.join(name))?;
        }
        let name = if migrates { abi::PROGRAM_SELECT_OR_MIGRATE } else { abi::PROGRAM_SELECT };
        Ok(self.program::<SkReuseport>(name)?.pin(directory.join(program))?)
    }

    /// Loads the iterator over the port's listeners.
    ///
    /// # Minimum kernel version
    ///
    /// 5.9 with BTF; `CAP_PERFMON` beside `CAP_BPF`.
    pub(super) fn load_iterator(&mut self) -> Result<&mut Iter, BpfError> {
        // The reason is told once; whoever asks again learns only that there is none.
        let unknown = Err(btf::BtfError::Malformed);
        let kernel = std::mem::replace(&mut self.kernel, unknown)?;
        self.kernel = Ok(kernel);
        let confinement = Confinement::read();
        if !confinement.has(Cap::Perfmon) {
            // The verifier would only say that it does not know a helper.
            let action = "see which program is attached".to_owned();
            return Err(BpfError::NotPermitted {
                action,
                reason: confinement.explain(Cap::Perfmon),
            });
        }
        let name = abi::PROGRAM_LIST_MEMBERS;
        let sort = BpfError::sort_load(name, self.verifier_log);
        let program = self.program::<Iter>(name)?;
        let btf = kernel.stand_in().map_err(|error| BpfError::Load(error.into()))?;
        program.load("tcp", &btf).map_err(sort)?;
        Ok(program)
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, BpfError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let missing = || BpfError::Shape(format!("the object has no program {name}"));
        Ok(self.ebpf.program_mut(name).ok_or_else(missing)?.try_into()?)
    }
}
