//! Exit codes: which failure is which number. `--help` and the README list them.

use std::io;

use super::agent::ConfigError;
use super::top::TopError;
use crate::bench::topology::TopologyError;
use crate::bench::{BenchError, RecordError};
use crate::bpf::BpfError;
use crate::bpf::pins::PinsError;
use crate::demo::DemoError;
use crate::discover::DiscoverError;
use crate::discover::acquire::AcquireError;
use crate::experiment::ExperimentError;
use crate::launch::{LaunchError, Status};
use crate::observe::http::{FetchError, ServeError};
use crate::rungs::Why;
use crate::steer::SteerError;
use crate::sys::netns::NetnsError;
use crate::trace::TraceError;

const OTHER: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const NOT_STEERABLE: u8 = 4;
const NOT_PERMITTED: u8 = 5;
const SYSTEM: u8 = 6;
const CONFLICT: u8 = 7;
const NOT_SERVING: u8 = 8;
const NOT_MEASURED: u8 = 9;
/// As `env`, `nohup` and shells have it.
const NOT_EXECUTABLE: u8 = 126;
const NO_PROGRAM: u8 = 127;

/// The exit code of a failure.
pub(super) fn code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<SteerError>() {
        return steer(error);
    }
    if error.is::<TopError>() {
        return USAGE;
    }
    match error.downcast_ref::<FetchError>() {
        Some(FetchError::Connect { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            return NOT_PERMITTED;
        }
        Some(_) => return NOT_FOUND,
        None => {}
    }
    match error.downcast_ref::<ServeError>() {
        Some(ServeError::Remote(_)) => return USAGE,
        Some(ServeError::Taken(_)) => return CONFLICT,
        Some(ServeError::Listen { source, .. }) => return of_io(source),
        None => {}
    }
    if let Some(error) = error.downcast_ref::<LaunchError>() {
        return launch(error);
    }
    if let Some(error) = error.downcast_ref::<TraceError>() {
        return trace(error);
    }
    if error.is::<ConfigError>() {
        return USAGE;
    }
    if let Some(error) = error.downcast_ref::<BenchError>() {
        return bench(error);
    }
    if let Some(error) = error.downcast_ref::<RecordError>() {
        return record(error);
    }
    if let Some(error) = error.downcast_ref::<ExperimentError>() {
        return experiment(error);
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

fn trace(error: &TraceError) -> u8 {
    match error {
        TraceError::Udp => USAGE,
        TraceError::Discover(error) => discover(error),
        TraceError::Bpf(error) => bpf(error),
        TraceError::Topology(_) => SYSTEM,
    }
}

fn experiment(error: &ExperimentError) -> u8 {
    match error {
        ExperimentError::Rounds(_) | ExperimentError::Modes | ExperimentError::NoMetric => USAGE,
        ExperimentError::Steer { source, .. } => steer(source),
        ExperimentError::Trace(source) => trace(source),
        ExperimentError::Load(_)
        | ExperimentError::Metric { .. }
        | ExperimentError::NotReached { .. } => NOT_MEASURED,
        ExperimentError::Signals(_) => SYSTEM,
        ExperimentError::Interrupted(_) => OTHER,
        ExperimentError::Changed { .. } => CONFLICT,
        ExperimentError::NotGivenBack { first, then } => {
            first.as_ref().map_or_else(|| steer(then), |first| experiment(first))
        }
    }
}

fn launch(error: &LaunchError) -> u8 {
    match error {
        LaunchError::Placement(_) | LaunchError::Template(_) => USAGE,
        LaunchError::PortInUse { .. } => CONFLICT,
        LaunchError::Listen { source, .. } => match source.kind() {
            io::ErrorKind::AddrInUse => CONFLICT,
            io::ErrorKind::AddrNotAvailable => NOT_FOUND,
            io::ErrorKind::PermissionDenied => NOT_PERMITTED,
            _ => SYSTEM,
        },
        LaunchError::NotStarted { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => NO_PROGRAM,
            io::ErrorKind::PermissionDenied => NOT_EXECUTABLE,
            _ => SYSTEM,
        },
        LaunchError::EndedAtOnce { status, .. } | LaunchError::CrashLoop { status, .. } => {
            match *status {
                Status::Exited(0) => NOT_SERVING,
                // The kernel keeps eight bits.
                Status::Exited(status) => status as u8,
                Status::Signalled(signal) => 128 | signal as u8,
            }
        }
        LaunchError::NeverListened { .. } | LaunchError::NeverAccepted { .. } => NOT_SERVING,
        LaunchError::Unfit(error) | LaunchError::Steer(error) => steer(error),
        LaunchError::Topology(_)
        | LaunchError::Dump(_)
        | LaunchError::Syscall(_)
        | LaunchError::Own { .. } => SYSTEM,
    }
}

fn bench(error: &BenchError) -> u8 {
    match error {
        BenchError::Options(_) | BenchError::Elsewhere(_) => USAGE,
        BenchError::Topology(
            TopologyError::NotPermitted | TopologyError::Netns(NetnsError::NotPermitted(_)),
        ) => NOT_PERMITTED,
        BenchError::Record(error) => record(error),
        BenchError::TooFewCpus(_)
        | BenchError::Topology(_)
        | BenchError::Unavailable(_)
        | BenchError::NoBaseline { .. } => SYSTEM,
        _ => OTHER,
    }
}

fn record(error: &RecordError) -> u8 {
    match error {
        RecordError::NotOne { .. } => USAGE,
        RecordError::Io { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            io::ErrorKind::AlreadyExists => CONFLICT,
            _ => of_io(source),
        },
        RecordError::Draw(_) => OTHER,
    }
}

fn steer(error: &SteerError) -> u8 {
    match error {
        SteerError::Discover(error) => discover(error),
        SteerError::Override(_)
        | SteerError::UnusedWeight { .. }
        | SteerError::NobodyThere { .. }
        | SteerError::Plan(_) => USAGE,
        SteerError::Pins(error) => pins(error),
        SteerError::Bpf { source, .. } => bpf(source),
        SteerError::Acquire(error) => acquire(error),
        SteerError::GroupOfOne { .. }
        | SteerError::UnknownWorkers { .. }
        | SteerError::NobodyLeft { .. }
        | SteerError::NoRoom { .. } => NOT_STEERABLE,
        SteerError::Foreign { .. }
        | SteerError::Kin { .. }
        | SteerError::LeftAttached { .. }
        | SteerError::Suspicious { .. }
        | SteerError::SocketTaken { .. }
        | SteerError::NotToBorrow { .. }
        | SteerError::Frozen { .. } => CONFLICT,
        SteerError::Unseen { .. } => NOT_PERMITTED,
        SteerError::Rung { why, .. } => match why {
            Why::NotPermitted(_) => NOT_PERMITTED,
            Why::Unfit(_) => USAGE,
            Why::Unsupported(_) | Why::Untried(_) => SYSTEM,
        },
        SteerError::EbpfRefused { source, .. } => steer(source),
        SteerError::Topology(_) | SteerError::Fill { .. } | SteerError::Rungs(_) => SYSTEM,
        SteerError::Vanished { .. }
        | SteerError::NotSteered { .. }
        | SteerError::SeveralGroups { .. }
        | SteerError::AmbiguousSlot { .. } => NOT_FOUND,
        SteerError::NotEmpty { .. } => OTHER,
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
        PinsError::Locked { .. } | PinsError::Owned { .. } => CONFLICT,
        PinsError::Unsafe { .. } => NOT_PERMITTED,
        PinsError::NotBpffs { .. } | PinsError::NotDirectory { .. } => SYSTEM,
        PinsError::Io { source, .. } => of_io(source),
        PinsError::Bpf(error) => bpf(error),
    }
}

fn of_io(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::PermissionDenied => NOT_PERMITTED,
        _ => SYSTEM,
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
