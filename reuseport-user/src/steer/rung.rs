//! The lower rungs, group by group: what its listeners remember of them, undoing it, and which rung
//! is in force.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::bpf::owner::{self, Attached};
use crate::bpf::pins::Pins;
use crate::discover::acquire::with_listener;
use crate::model::{Cpu, Group, Listener, Protocol};
use crate::rungs::{self, Choice, OrderError, Place, Rung, Trace, Why};
use crate::sys::SyscallError;

use super::{Settings, SteerError};

/// What the listeners of a group remember.
#[derive(Clone, Debug, Default)]
pub(super) struct Traces(Vec<(u64, Trace)>);

impl Traces {
    /// Asks each listener, held for microseconds. Those that went away are left out.
    pub(super) fn read(group: &Group) -> Result<Self, SteerError> {
        let mut traces = Vec::new();
        each(group, |listener, trace| traces.push((listener.cookie, trace)), rungs::inspect)?;
        Ok(Self(traces))
    }

    /// What a listener remembers.
    pub(super) fn of(&self, listener: &Listener) -> Trace {
        let found = self.0.iter().find(|(cookie, _)| *cookie == listener.cookie);
        found.map_or(Trace::Nothing, |(_, trace)| *trace)
    }

    /// The CPU that a listener is set to, by whomever.
    pub(super) fn cpu(&self, listener: &Listener) -> Option<Cpu> {
        match self.of(listener) {
            Trace::IncomingCpu { cpu, .. } => Some(cpu),
            Trace::Nothing | Trace::Place(_) => None,
        }
    }

    /// A listener's place in our classic program.
    pub(super) fn place(&self, listener: &Listener) -> Option<Place> {
        match self.of(listener) {
            Trace::Place(place) => Some(place),
            Trace::Nothing | Trace::IncomingCpu { .. } => None,
        }
    }

    /// Whether a classic program that is attached is ours.
    pub(super) fn has_places(&self) -> bool {
        self.0.iter().any(|(_, trace)| matches!(trace, Trace::Place(_)))
    }

    /// Whether we set anything on these listeners.
    pub(super) fn are_ours(&self) -> bool {
        self.has_places() || self.count(true) > 0
    }

    /// Listeners that have a CPU from us, or from their server.
    pub(super) fn count(&self, from_us: bool) -> usize {
        let counts =
            |trace: &Trace| matches!(trace, Trace::IncomingCpu { ours, .. } if *ours == from_us);
        self.0.iter().filter(|(_, trace)| counts(trace)).count()
    }
}

/// Takes each listener of a group in turn, does `work` on it, and tells `then` what came of that.
/// Those that went away are left out; any other failure ends it.
pub(super) fn each<R>(
    group: &Group,
    mut then: impl FnMut(&Listener, R),
    mut work: impl FnMut(BorrowedFd<'_>) -> Result<R, SyscallError>,
) -> Result<(), SteerError> {
    for listener in &group.listeners {
        match with_listener(listener, &group.key, &mut work) {
            Ok(result) => then(listener, result.map_err(rungs::RungError::from)?),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Does `work` through any listener that is still there.
pub(super) fn through_any<R>(
    group: &Group,
    mut work: impl FnMut(BorrowedFd<'_>) -> R,
) -> Result<R, SteerError> {
    for listener in &group.listeners {
        match with_listener(listener, &group.key, &mut work) {
            Ok(result) => return Ok(result),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(SteerError::Vanished { group: group.key })
}

/// Takes off what is ours of the lower rungs.
pub(super) fn take_off(group: &Group, traces: &Traces) -> Result<(), SteerError> {
    if traces.has_places() {
        // Those who remember it: the others cannot tell whose the program is.
        let mut who = group.clone();
        who.listeners.retain(|listener| traces.place(listener).is_some());
        match through_any(&who, rungs::detach_classic) {
            // Then the program went with them, or somebody else's listeners are left with it.
            Err(SteerError::Vanished { .. }) => {}
            result => drop(result?.map_err(rungs::RungError::from)?),
        }
    }
    if traces.are_ours() { forget(group) } else { Ok(()) }
}

/// Lets the listeners forget what is ours of the lower rungs; what is attached stays.
pub(super) fn forget(group: &Group) -> Result<(), SteerError> {
    each(group, |_, ()| {}, |fd| rungs::forget(fd).map(drop))
}

/// The mechanism that picks a listener for a connection to a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RungStatus {
    /// Which; `None` where it cannot be told.
    pub rung: Option<Rung>,
    /// Whether it is our doing.
    pub ours: bool,
    /// Whether a program does it that is this project's, but has no pins here: they are on another BPF
    /// file system, or gone.
    #[serde(default)]
    pub elsewhere: bool,
    /// How that is known, and what there is to say about it.
    pub why: String,
    /// What `attach --rung auto` would take if this process ran it now, and why no better one; `None`
    /// on eBPF and where no rung is to be had. Whoever put the group on the rung in force may have had
    /// less, or more, and what it passed over then nobody remembers.
    #[serde(default)]
    pub auto: Option<Choice>,
}

impl RungStatus {
    fn new(rung: Option<Rung>, ours: bool, why: impl Into<String>) -> Self {
        Self { rung, ours, elsewhere: false, why: why.into(), auto: None }
    }

    /// Of a group that is no more.
    pub(super) fn gone() -> Self {
        Self::new(None, false, "nobody listens")
    }
}

/// Which rung is in force, from what is attached, whether that is our program, and what the listeners
/// remember.
pub(super) fn in_force(
    group: &Group,
    attached: &Attached,
    by_our_program: bool,
    traces: &Result<Traces, SteerError>,
) -> RungStatus {
    let is = |rung: Rung, ours: bool, why: String| RungStatus::new(Some(rung), ours, why);
    match (attached, traces) {
        (Attached::Unknown { why }, _) if by_our_program => is(
            Rung::Ebpf,
            true,
            format!(
                "our program holds its listeners; whether it is still attached cannot be seen: {why}"
            ),
        ),
        (_, _) if by_our_program => is(Rung::Ebpf, true, "our program is attached".to_owned()),
        (Attached::Program { .. } | Attached::Classic, traces) => {
            let places = traces.as_ref().is_ok_and(Traces::has_places);
            let rung = if *attached == Attached::Classic { Rung::ClassicBpf } else { Rung::Ebpf };
            let ours = rung == Rung::ClassicBpf && places;
            let whose = if ours { "ours, as its listeners remember" } else { "not ours" };
            let why = format!("attached is {}, {whose}", SteerError::owner(attached));
            let kin = |id| !ours && owner::is_kin(id);
            let elsewhere = matches!(attached, Attached::Program { id } if kin(*id));
            RungStatus { elsewhere, ..is(rung, ours, why) }
        }
        (_, Err(error)) => RungStatus::new(None, false, error.to_string()),
        (attached, Ok(traces)) => without_program(group, attached, traces),
    }
}

/// What `attach --rung auto` would take now, for a group that is on `in_force`.
pub(super) fn auto(
    group: &Group,
    attached: &Attached,
    in_force: &RungStatus,
    traces: &Traces,
    settings: &Settings,
) -> Option<Choice> {
    let foreign = matches!(attached, Attached::Program { .. } | Attached::Classic);
    if in_force.rung == Some(Rung::Ebpf) || (foreign && !in_force.ours) || group.listeners.len() < 2
    {
        return None;
    }
    let places: Vec<_> = group.listeners.iter().map(|it| traces.place(it)).collect();
    Some(rungs::best(|rung| match rung {
        Rung::Ebpf => permitted(settings).map_err(|refused| {
            refused.forbids_ebpf().unwrap_or_else(|| Why::Untried(refused.to_string()))
        }),
        rung => fits(rung, group.key.protocol, [places.clone()], false),
    }))
}

/// Whether eBPF is to be had, for those who do not come across it.
pub(super) fn permitted(settings: &Settings) -> Result<(), SteerError> {
    Pins::at(&settings.bpffs)?.list()?;
    rungs::probe(Rung::Ebpf).map_err(|why| SteerError::Rung { rung: Rung::Ebpf, why })
}

/// Whether groups whose listeners remember these places can be put on a rung below eBPF. Who insists
/// on it answers for what cannot be known.
pub(super) fn fits(
    rung: Rung,
    protocol: Protocol,
    groups: impl IntoIterator<Item = Vec<Option<Place>>>,
    insists: bool,
) -> Result<(), Why> {
    rungs::probe(rung)?;
    if rung != Rung::ClassicBpf {
        return Ok(());
    }
    if protocol != Protocol::Tcp {
        return Err(Why::Unfit("the order of UDP sockets cannot be seen".to_owned()));
    }
    for places in groups {
        match rungs::keep(&places) {
            Err(OrderError::NeverKnown) if insists => {}
            result => drop(result.map_err(|error| Why::Unfit(error.to_string()))?),
        }
    }
    Ok(())
}

/// No program is seen: it is the listeners' own option, or the hash.
fn without_program(group: &Group, attached: &Attached, traces: &Traces) -> RungStatus {
    let (ours, servers) = (traces.count(true), traces.count(false));
    let unseen = match attached {
        Attached::Unknown { why } => Some(why),
        _ => None,
    };
    let (rung, ours, why) = if ours + servers > 0 {
        let whom = match (ours, servers) {
            (_, 0) => "by us".to_owned(),
            (0, _) => "by the server itself".to_owned(),
            _ => format!("on {servers} of them by the server itself"),
        };
        let why =
            format!("SO_INCOMING_CPU is set on {} of {}, {whom}", ours + servers, count(group));
        match rungs::probe(Rung::IncomingCpu) {
            Err(refused @ Why::Unsupported(_)) => {
                (Some(Rung::Hash), false, format!("{why}, but {refused}"))
            }
            _ => (Some(Rung::IncomingCpu), ours > 0, why),
        }
    } else if traces.has_places() && unseen.is_some() {
        let why = "its listeners remember a classic program of ours".to_owned();
        (Some(Rung::ClassicBpf), true, why)
    } else if traces.has_places() {
        let why = "somebody took our classic program off".to_owned();
        (Some(Rung::Hash), false, why)
    } else {
        let rung = if unseen.is_some() { None } else { Some(Rung::Hash) };
        (rung, false, format!("SO_INCOMING_CPU is set on none of {}", count(group)))
    };
    let why = match unseen {
        None => format!("no program is attached; {why}"),
        Some(unseen) => format!("{why}; a program would go before, and cannot be seen: {unseen}"),
    };
    RungStatus::new(rung, ours, why)
}

fn count(group: &Group) -> String {
    match group.listeners.len() {
        1 => "1 listener".to_owned(),
        many => format!("{many} listeners"),
    }
}
