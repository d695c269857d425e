//! Steer `SO_REUSEPORT` listeners by the CPU that received the packet.
//!
//! Data flows one way, and each arrow is one function whose result can be printed:
//!
//! ```text
//! Target -> discover -> Group{listeners} --+
//! /sys   -> Topology ----------------------+-> plan -> Plan -> steer: load, fill, attach, pin
//! ```
//!
//! [`steer`] is where the stages meet; [`sys`] is the only module with `unsafe` code and raw
//! system calls.
//!
//! # For servers
//!
//! [`group`] is the library: per-core listeners for a server of one's own. It and what it names
//! ([`rungs::Rung`], [`model::Cpu`] and the like) change as semantic versioning has it. All other
//! modules are the engine of the command `reuseport-steer`, public for tools that need more than that
//! command; they may change with any release.

#![deny(missing_docs)]

pub mod agent;
#[cfg(feature = "cli")]
pub mod bench;
pub mod bpf;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod demo;
pub mod discover;
#[cfg(feature = "cli")]
pub mod experiment;
pub mod group;
#[cfg(feature = "cli")]
pub mod launch;
mod loopback;
#[cfg(feature = "measure")]
pub mod measure;
pub mod model;
pub mod observe;
pub mod plan;
pub mod rungs;
pub mod steer;
pub mod sys;
pub mod topology;
pub mod trace;
