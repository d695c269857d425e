//! Exit codes: which failure is which number. `--help` and the README list them.

use std::io;

use crate::bpf::BpfError;
use crate::bpf::pins::PinsError;
use crate::demo::DemoError;
use crate::discover::DiscoverError;
use crate::discover::acquire::AcquireError;
use crate::steer::SteerError;
use crate::sys::netns::NetnsError;

const OTHER: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const NOT_STEERABLE: u8 = 4;
const NOT_PERMITTED: u8 = 5;
const SYSTEM: u8 = 6;
const CONFLICT: u8 = 7;

/// The exit code of a failure.
pub(super) fn code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<SteerError>() {
        return steer(error);
    }
    match error.downcast_ref::<DemoError>() {
        Some(DemoError::SteeringOn { source, .. } | DemoError::SteeringOff { source, .. }) => {
            source.downcast_ref::<SteerError>().map_or(OTHER, steer)
        }
        Some(DemoError::Rounds(_) | DemoError::Duration(_) | DemoError::Connections(_)) => USAGE,
        Some(DemoError::TooFewCpus(_)) => SYSTEM,
        _ => OTHER,
    }
}

fn steer(error: &SteerError) -> u8 {
    match error {
        SteerError::Discover(error) => discover(error),
        SteerError::Override(_) | SteerError::UnusedWeight { .. } | SteerError::Plan(_) => USAGE,
        SteerError::Pins(error) => pins(error),
        SteerError::Bpf { source, .. } => bpf(source),
        SteerError::Acquire(error) => acquire(error),
        SteerError::GroupOfOne { .. } | SteerError::UnknownWorkers { .. } => NOT_STEERABLE,
        SteerError::Foreign { .. }
        | SteerError::Suspicious { .. }
        | SteerError::SocketTaken { .. }
        | SteerError::Frozen { .. } => CONFLICT,
        SteerError::Topology(_) | SteerError::Fill { .. } => SYSTEM,
        SteerError::Vanished { .. } => NOT_FOUND,
    }
}

fn discover(error: &DiscoverError) -> u8 {
    match error {
        DiscoverError::NobodyListens { .. }
        | DiscoverError::Ambiguous { .. }
        | DiscoverError::AddressNotFound { .. }
        | DiscoverError::NoProcess(_)
        | DiscoverError::NotNetns { .. }
        | DiscoverError::EnterNetns(NetnsError::NotNetns(_)) => NOT_FOUND,
        DiscoverError::OpenNetns { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => NOT_PERMITTED,
            _ => NOT_FOUND,
        },
        DiscoverError::Mptcp { .. } => NOT_STEERABLE,
        DiscoverError::NoHolder { .. } | DiscoverError::EnterNetns(NetnsError::NotPermitted(_)) => {
            NOT_PERMITTED
        }
        _ => SYSTEM,
    }
}

fn acquire(error: &AcquireError) -> u8 {
    match error {
        AcquireError::NotReuseport { .. }
        | AcquireError::NotListening { .. }
        | AcquireError::Mptcp { .. } => NOT_STEERABLE,
        AcquireError::Denied { .. } | AcquireError::NoHolder { .. } => NOT_PERMITTED,
        AcquireError::Gone | AcquireError::NotTheOne { .. } => NOT_FOUND,
        AcquireError::NoPidfdGetfd | AcquireError::Syscall { .. } => SYSTEM,
    }
}

fn pins(error: &PinsError) -> u8 {
    match error {
        PinsError::Locked { .. } => CONFLICT,
        PinsError::Unsafe { .. } => NOT_PERMITTED,
        PinsError::NotBpffs { .. } | PinsError::NotDirectory { .. } => SYSTEM,
        PinsError::Io { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => NOT_PERMITTED,
            _ => SYSTEM,
        },
        PinsError::Bpf(error) => bpf(error),
    }
}

fn bpf(error: &BpfError) -> u8 {
    match error {
        BpfError::NotPermitted { .. } => NOT_PERMITTED,
        _ => SYSTEM,
    }
}

/// Whether the reader of our output went away.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let kind = kind.or_else(|| cause.downcast_ref::<serde_json::Error>()?.io_error_kind());
        kind == Some(io::ErrorKind::BrokenPipe)
    })
}
