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
use aya::programs::{Program, ProgramError};

pub use error::BpfError;

/// A program of an object.
fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, BpfError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let missing = || BpfError::Shape(format!("the object has no program {name}"));
    Ok(ebpf.program_mut(name).ok_or_else(missing)?.try_into()?)
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
