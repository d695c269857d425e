//! The engine's kernel side: load the object, fill its maps, attach, and find it again.
//!
//! Nothing here decides anything: [`crate::steer`] says what to load, where slots point and when to
//! attach.

pub mod btf;
mod error;
pub mod maps;
pub mod object;
pub mod observe;
pub mod owner;
pub mod pins;
pub mod sockarray;
pub mod wakeup;
pub mod watch;

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::{BtfTracePoint, FExit, Program, ProgramError};

use self::btf::Places;
pub use error::BpfError;

/// A program of an object.
fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, BpfError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let missing = || BpfError::Shape(format!("the object has no program {name}"));
    Ok(ebpf.program_mut(name).ok_or_else(missing)?.try_into()?)
}

/// Lets a program run at the end of a function of the kernel's. The kernel attaches it also where it
/// was told to run none.
fn run_at_end<const N: usize>(
    ebpf: &mut Ebpf,
    (name, function): (&str, &str),
    places: &Places<N>,
) -> Result<(), BpfError> {
    let ftrace = std::fs::read_to_string("/proc/sys/kernel/ftrace_enabled");
    if ftrace.is_ok_and(|enabled| enabled.trim() == "0") {
        return Err(BpfError::FtraceOff);
    }
    let program: &mut FExit = program(ebpf, name)?;
    let sort = BpfError::sort_load(name, false);
    program.load(function, &places.stand_in(function)?).map_err(sort)?;
    program.attach()?;
    Ok(())
}

/// Lets a program run at a tracepoint.
fn run_at<const N: usize>(
    ebpf: &mut Ebpf,
    (name, tracepoint): (&str, &str),
    places: &Places<N>,
) -> Result<(), BpfError> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    let sort = BpfError::sort_load(name, false);
    let btf = places.stand_in(&format!("btf_trace_{tracepoint}"))?;
    program.load(tracepoint, &btf).map_err(sort)?;
    program.attach()?;
    Ok(())
}

/// A map of an object, from now on the caller's.
fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, BpfError> {
    ebpf.take_map(name).ok_or_else(|| BpfError::Shape(format!("the object has no map {name}")))
}

/// FNV-1a, 64 bits: names and fingerprints, not secrets.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
