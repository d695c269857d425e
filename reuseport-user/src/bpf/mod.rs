//! The engine's kernel side: load the object, fill its maps, attach, and find it again.
//!
//! Nothing here decides anything: [`crate::steer`] says what to load, where slots point and when to
//! attach.

pub mod btf;
mod error;
pub mod maps;
pub mod object;
pub mod owner;
pub mod pins;
pub mod sockarray;
pub mod wakeup;
pub mod watch;

pub use error::BpfError;

/// FNV-1a, 64 bits: names and fingerprints, not secrets.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
