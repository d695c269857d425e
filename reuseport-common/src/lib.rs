//! What the kernel side and the user side share: the maps' layouts ([`abi`]), what is counted
//! ([`stats`]) and the steering decision itself ([`decide`]).
//!
//! Everything here compiles twice: for `bpfel-unknown-none`, inlined into the BPF program, and for
//! the host, where the very same decision is unit-tested and simulated.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod decide;
pub mod hist;
pub mod observe;
pub mod stats;
pub mod watch;
