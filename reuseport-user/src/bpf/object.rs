//! The embedded object, parsed and its maps created; programs are loaded one by one on demand.

use std::os::fd::AsFd as _;
use std::path::Path;

use aya::maps::Map;
use aya::programs::{Iter, Program, ProgramError, SkReuseport};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use reuseport_common::abi::{self, Offsets};

use super::maps::{self, Sizes};
use super::pins::Descriptors;
use super::wakeup::{self, Migration, Wakeup};
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
    log: bool,
    verifier_log: bool,
}

/// Hash of the embedded object: pins made from another one are replaced by the next attach.
pub fn fingerprint() -> u64 {
    super::fnv1a(reuseport_ebpf::STEER)
}

/// Whether maps can be made and the steering program be loaded: does both, and keeps neither.
///
/// # Minimum kernel version
///
/// 5.10 as tested; `CAP_BPF`.
pub fn probe() -> Result<(), BpfError> {
    let sizes = Sizes::for_group(0, 0);
    let mut object =
        Object::load(&LoadOptions { sizes, port: 0, log: false, verifier_log: false })?;
    // Whether it migrates does not matter here.
    object.load_steering_with(|| Wakeup::Unknown).map(drop)
}

impl Object {
    /// Creates the maps.
    pub fn load(options: &LoadOptions) -> Result<Self, BpfError> {
        Self::load_from(reuseport_ebpf::STEER, options)
    }

    fn load_from(bytes: &[u8], options: &LoadOptions) -> Result<Self, BpfError> {
        let kernel = btf::kernel();
        let values = kernel.as_ref().map_or_else(|_| Offsets::ZERO, |it| it.offsets);
        let log_bytes = if options.log { 1 << 17 } else { 4096 };
        let offsets_bytes: [u8; size_of::<Offsets>()] = bytemuck::cast(values);
        let mut loader = EbpfLoader::new();
        loader
            // For CO-RE relocations, which Rust programs do not have.
            .btf(None)
            .map_max_entries(abi::TABLE, options.sizes.half * 2)
            .map_max_entries(abi::SOCKETS, options.sizes.slots)
            .map_max_entries(abi::LOAD, options.sizes.slots)
            .map_max_entries(abi::SEATS, options.sizes.slots)
            .map_max_entries(abi::COUNTERS, options.sizes.counters())
            .map_max_entries("AYA_LOGS", log_bytes)
            .override_global(abi::OFFSETS, &offsets_bytes[..], true)
            .override_global(abi::PORT, &options.port, true);
        if options.verifier_log {
            loader.verifier_log_level(VerifierLogLevel::VERBOSE | VerifierLogLevel::STATS);
        }
        let ebpf = loader.load(bytes).map_err(BpfError::sort("create the BPF maps", Cap::Bpf))?;
        let &LoadOptions { log, verifier_log, .. } = options;
        Ok(Self { ebpf, kernel, log, verifier_log })
    }

    /// Loads the steering program and says whether it is the one that migrates.
    ///
    /// The migrating one is tried first; a kernel that has no migration refuses to let a program
    /// read `migrating_sk`. That refusal is the first probe: versions and the sysctl mislead. The
    /// second is a migration of our own ([`wakeup::probe`]): with CVE-2026-46015 a program that
    /// migrates would turn a reset into a hang.
    pub fn load_steering(&mut self) -> Result<Migration, BpfError> {
        self.load_steering_with(wakeup::probe)
    }

    fn load_steering_with(
        &mut self,
        probe: impl FnOnce() -> Wakeup,
    ) -> Result<Migration, BpfError> {
        let name = self.program_name(true);
        let without = match self.load_program(name) {
            Ok(()) => match Migration::with(probe()) {
                Migration::Loaded => return Ok(Migration::Loaded),
                without => {
                    self.program::<SkReuseport>(name)?.unload()?;
                    without
                }
            },
            Err(BpfError::Verifier { .. }) => Migration::Unsupported,
            Err(error) => return Err(error),
        };
        self.load_program(self.program_name(false)).map_err(|error| self.explain(error))?;
        Ok(without)
    }

    /// The steering program that was asked for.
    fn program_name(&self, migrates: bool) -> &'static str {
        match (migrates, self.log) {
            (true, false) => abi::PROGRAM_SELECT_OR_MIGRATE,
            (false, false) => abi::PROGRAM_SELECT,
            (true, true) => abi::PROGRAM_SELECT_OR_MIGRATE_LOGGED,
            (false, true) => abi::PROGRAM_SELECT_LOGGED,
        }
    }

    /// On older kernels (6.12 is one, 6.18 is not) the programs that log do not pass the verifier
    /// without `CAP_PERFMON`; what the verifier says does not name it.
    fn explain(&self, error: BpfError) -> BpfError {
        let confinement = Confinement::read();
        match error {
            BpfError::Verifier { .. } if self.log && !confinement.has(Cap::Perfmon) => {
                BpfError::NotPermitted {
                    action: "load a program that logs".to_owned(),
                    reason: confinement.explain(Cap::Perfmon),
                }
            }
            error => error,
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
        let name = self.program_name(migrates);
        Ok(self.program::<SkReuseport>(name)?.pin(directory.join(program))?)
    }

    /// The maps and the steering program as descriptors, for one that is pinned nowhere.
    pub(crate) fn descriptors(&mut self, migrates: bool) -> Result<Descriptors, BpfError> {
        let mut maps = Vec::new();
        for name in maps::NAMES {
            let found = self.ebpf.map(name);
            let Some(Map::Array(map) | Map::PerCpuArray(map) | Map::ReusePortSockArray(map)) =
                found
            else {
                return Err(BpfError::Shape(format!("the object has no map {name}")));
            };
            maps.push((name.to_owned(), map.fd().as_fd().try_clone_to_owned()?));
        }
        let program = self.program::<SkReuseport>(self.program_name(migrates))?;
        let program = program.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Descriptors(maps).with_program(program))
    }

    /// The iterator over the port's listeners, loaded the first time.
    ///
    /// # Minimum kernel version
    ///
    /// 5.9 with BTF; `CAP_PERFMON` beside `CAP_BPF`.
    pub(super) fn load_iterator(&mut self) -> Result<&mut Iter, BpfError> {
        let name = abi::PROGRAM_LIST_MEMBERS;
        if self.program::<Iter>(name)?.fd().is_err() {
            // The reason is told once; whoever asks again learns only that there is none.
            let unknown = Err(btf::BtfError::Malformed);
            let kernel = std::mem::replace(&mut self.kernel, unknown)?;
            self.kernel = Ok(kernel);
            BpfError::require(Cap::Perfmon, "see which program is attached")?;
            let sort = BpfError::sort_load(name, self.verifier_log);
            let btf = kernel.places.stand_in(btf::ITERATOR)?;
            self.program::<Iter>(name)?.load("tcp", &btf).map_err(sort)?;
        }
        self.program(name)
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, BpfError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        super::program(&mut self.ebpf, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a kernel before 5.14 refuses the migrating program: for a field that `sk_reuseport_md` does
    /// not have, here the one after `migrating_sk`.
    fn refused(verifier_log: bool) -> String {
        let mut bytes = reuseport_ebpf::STEER.to_vec();
        let (code, _) = bytes.as_chunks_mut::<8>();
        // `BPF_LDX | BPF_MEM | BPF_DW`, any registers, offset 48.
        let reads: Vec<_> =
            code.iter_mut().filter(|it| it[0] == 0x79 && it[2..] == [48, 0, 0, 0, 0, 0]).collect();
        assert!(!reads.is_empty(), "the object does not read migrating_sk");
        for read in reads {
            read[2] = 56;
        }
        let sizes = Sizes::for_group(1, 1);
        let options = LoadOptions { sizes, port: 1, log: false, verifier_log };
        let mut object = Object::load_from(&bytes, &options).unwrap();
        let error = object.load_program(abi::PROGRAM_SELECT_OR_MIGRATE).unwrap_err();
        assert!(matches!(error, BpfError::Verifier { .. }), "{error}");
        // The probe falls back on it.
        assert_eq!(object.load_steering().unwrap(), Migration::Unsupported);
        error.to_string()
    }

    #[test]
    fn a_refusal_of_the_verifier_shows_both_ends_of_its_log() {
        let text = refused(false);
        assert!(text.contains("verifier refuses program `select_or_migrate`"), "{text}");
        assert!(text.contains("invalid bpf_context access"), "{text}");
        let whole = refused(true);
        assert!(whole.contains("invalid bpf_context access"), "{whole}");
        assert!(!whole.contains("lines left out"), "{whole}");
        assert!(whole.len() > text.len(), "{whole}\nis not more than\n{text}");
    }

    fn loaded(object: &mut Object, name: &str) -> bool {
        object.program::<SkReuseport>(name).unwrap().fd().is_ok()
    }

    #[test]
    fn migrates_only_where_the_migrated_are_told() {
        for (log, migrating, other) in [
            (false, abi::PROGRAM_SELECT_OR_MIGRATE, abi::PROGRAM_SELECT),
            (true, abi::PROGRAM_SELECT_OR_MIGRATE_LOGGED, abi::PROGRAM_SELECT_LOGGED),
        ] {
            for (wakeup, migration) in [
                (Wakeup::Wakes, Migration::Loaded),
                (Wakeup::Unknown, Migration::Loaded),
                (Wakeup::DoesNotWake, Migration::Hangs),
            ] {
                let sizes = Sizes::for_group(1, 1);
                let options = LoadOptions { sizes, port: 1, log, verifier_log: false };
                let mut object = Object::load(&options).unwrap();
                assert_eq!(object.load_steering_with(|| wakeup).unwrap(), migration);
                assert_eq!(loaded(&mut object, migrating), migration.migrates(), "{wakeup:?}");
                assert_eq!(loaded(&mut object, other), !migration.migrates(), "{wakeup:?}");
            }
        }
    }
}
