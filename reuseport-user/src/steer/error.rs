//! Why a group could not be steered, released or looked at.

use crate::bpf::BpfError;
use crate::bpf::owner::{Attached, Suspect, is_kin};
use crate::bpf::pins::PinsError;
use crate::discover::DiscoverError;
use crate::discover::acquire::AcquireError;
use crate::discover::overrides::OverrideError;
use crate::model::{GroupKey, Pid};
use crate::plan::PlanError;
use crate::rungs::{Rung, RungError, Why};
use crate::topology::TopologyError;

/// A use case that failed. What it had begun was undone, as far as the kernel lets it be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SteerError {
    /// No group.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// An override fits nothing.
    #[error(transparent)]
    Override(#[from] OverrideError),
    /// `/sys` could not be read.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// No plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The kernel refused.
    #[error("{group}: {source}")]
    Bpf {
        /// The group.
        group: GroupKey,
        /// The refusal.
        #[source]
        source: BpfError,
    },
    /// A listener could not be taken.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// One listener: there is nothing to choose between.
    #[error(
        "{group}: only one listener is in the group, so there is nothing to choose between; start \
         more workers with SO_REUSEPORT on this address (PgBouncer: one process per core with \
         `so_reuseport = 1`; nginx: `worker_processes auto`; HAProxy: `nbthread` above 1)"
    )]
    GroupOfOne {
        /// The group.
        group: GroupKey,
    },
    /// It is not known who serves a listener, so it is not known on which CPU.
    #[error(
        "{group}: it cannot be seen who serves {count} of {of} listeners: {reason}; or choose \
         --policy hash, which need not know"
    )]
    UnknownWorkers {
        /// The group.
        group: GroupKey,
        /// Listeners that nobody is known to serve.
        count: usize,
        /// Listeners of the group.
        of: usize,
        /// Why the first of them is not known.
        reason: String,
    },
    /// A program of this project's steers the group, and its pins are not here.
    #[error(
        "{group}: reuseport-steer's own program is attached (BPF program {id}), without pins here: they \
         are on another BPF file system (a container's, `ip netns exec`'s) or gone, or the server keeps \
         it itself; it is left alone. If nobody keeps it, add --takeover"
    )]
    Kin {
        /// The group.
        group: GroupKey,
        /// The program.
        id: u32,
    },
    /// `detach` took nothing off.
    #[error(
        "{group}: still steered, by a program that is not ours to take off; let the program that \
         attached it do that, or run `attach --takeover`, then `detach`"
    )]
    LeftAttached {
        /// The group.
        group: GroupKey,
    },
    /// Somebody else's program steers the group.
    #[error(
        "{group}: another program is attached ({owner}); it is left alone. If it may be replaced, \
         add --takeover: detaching later does not bring it back"
    )]
    Foreign {
        /// The group.
        group: GroupKey,
        /// Whose, as far as it is known.
        owner: String,
    },
    /// Perhaps somebody else's.
    #[error(
        "{group}: it cannot be seen whether another program is attached ({why}), and {} of the \
         reuseport type {} loaded ({}); if none of them is this group's, add --takeover",
        if suspects.len() == 1 { "one".to_owned() } else { suspects.len().to_string() },
        if suspects.len() == 1 { "is" } else { "are" },
        names(suspects)
    )]
    Suspicious {
        /// The group.
        group: GroupKey,
        /// Why it cannot be seen.
        why: String,
        /// Which programs.
        suspects: Vec<Suspect>,
    },
    /// A socket is in another program's map.
    #[error(
        "{group}: a listener of process {pid} is in another program's socket map, and the kernel \
         allows one (`bpftool map` lists them); stop that program, or add --takeover if it is \
         attached to this group"
    )]
    SocketTaken {
        /// The group.
        group: GroupKey,
        /// Who holds the listener.
        pid: Pid,
    },
    /// A socket could not be put into the map.
    #[error("{group}: a listener of process {pid} does not go into the map: {source}")]
    Fill {
        /// The group.
        group: GroupKey,
        /// Who holds the listener.
        pid: Pid,
        /// Why not.
        #[source]
        source: crate::bpf::sockarray::SetError,
    },
    /// Somebody froze the maps.
    #[error(
        "{group}: the maps in force were frozen (`bpftool map freeze`), so that nothing can be \
         written; `detach`, then `attach` again"
    )]
    Frozen {
        /// The group.
        group: GroupKey,
    },
    /// There is nothing in force that could be changed.
    #[error("{group}: {why}, so there is nothing to change: {remedy}")]
    NotSteered {
        /// The group.
        group: GroupKey,
        /// How it is instead.
        why: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// No such worker or slot.
    #[error("{who}; `status` shows who serves which slot")]
    NobodyThere {
        /// Who was named, and how that fits nothing.
        who: String,
    },
    /// Slots are counted in each group by itself.
    #[error("slot {slot} is taken in several groups ({groups}): name one with --addr")]
    AmbiguousSlot {
        /// The slot.
        slot: u32,
        /// The groups.
        groups: String,
    },
    /// The last one.
    #[error(
        "{group}: nobody would be left to take connections; start another worker, undrain one or \
         give one weight first"
    )]
    NobodyLeft {
        /// The group.
        group: GroupKey,
    },
    /// A drained worker did not accept in time what it had got.
    #[error(
        "{group}: slot {slot} gets nothing new, but after {seconds} s its queue holds {queued} and \
         {handshakes} handshakes from before are open; its worker may hang. Run `drain` again to \
         wait on, or `undrain`"
    )]
    NotEmpty {
        /// The group.
        group: GroupKey,
        /// The slot.
        slot: u32,
        /// Connections that wait to be accepted.
        queued: u32,
        /// Handshakes that may be its own.
        handshakes: usize,
        /// How long it was given.
        seconds: u64,
    },
    /// More workers than its maps hold.
    #[error("{group}: it outgrew its maps; run `attach` again, which gives it others")]
    NoRoom {
        /// The group.
        group: GroupKey,
    },
    /// One at a time.
    #[error("several groups listen there ({groups}): name one with --addr")]
    SeveralGroups {
        /// The groups.
        groups: String,
    },
    /// It could not be given back as it was.
    #[error("{group}: how it is steered is not changed for an experiment: {why}")]
    NotToBorrow {
        /// The group.
        group: GroupKey,
        /// Why not.
        why: String,
    },
    /// Nor could what cannot be seen.
    #[error(
        "{group}: it cannot be seen how it is steered, so it could not be given back like that: {why} \
         (CAP_BPF and CAP_PERFMON show it)"
    )]
    Unseen {
        /// The group.
        group: GroupKey,
        /// Why not.
        why: String,
    },
    /// Every worker exited while we were at it.
    #[error("{group}: its listeners went away meanwhile; run the command again")]
    Vanished {
        /// The group.
        group: GroupKey,
    },
    /// The rung that was asked for is not to be had.
    #[error("--rung {rung}: {why}")]
    Rung {
        /// Which.
        rung: Rung,
        /// Why not.
        why: Why,
    },
    /// eBPF is not to be had, and another rung is.
    #[error("{source}; or do without eBPF: `--rung auto` would take {rung} here")]
    EbpfRefused {
        /// The refusal.
        #[source]
        source: Box<Self>,
        /// The best of the others.
        rung: Rung,
    },
    /// Listeners could not be put on a rung, or taken off it.
    #[error(transparent)]
    Rungs(#[from] RungError),
    /// `--weight` names nobody.
    #[error("--weight {pid}{}: that worker serves none of the listeners found", thread(*tid))]
    UnusedWeight {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Option<Pid>,
    },
}

impl SteerError {
    /// Adds the group to an error of the kernel's.
    pub(crate) fn of(group: &GroupKey) -> impl Fn(BpfError) -> Self + use<> {
        let group = *group;
        move |source| Self::Bpf { group, source }
    }

    /// Nothing of ours is in force.
    pub(super) fn not_steered(group: GroupKey) -> Self {
        let why = "it is not steered, or not by eBPF";
        let remedy =
            "run `attach` first (below eBPF, `attach --weight PID=0` takes a worker's CPU away)";
        Self::NotSteered { group, why, remedy }
    }

    /// Why eBPF is not to be had by this process, on this kernel, if that is what it says.
    pub(crate) fn forbids_ebpf(&self) -> Option<Why> {
        let of_bpf = |error: &BpfError| match error {
            BpfError::NotPermitted { .. }
            | BpfError::Memlock { .. }
            | BpfError::NoBpf { .. }
            | BpfError::Verifier { .. } => Some(Why::from(error)),
            _ => None,
        };
        match self {
            Self::Bpf { source, .. } | Self::Pins(PinsError::Bpf(source)) => of_bpf(source),
            Self::Rung { rung: Rung::Ebpf, why } => Some(why.clone()),
            Self::Pins(error) if error.is_out_of_reach() => {
                Some(Why::NotPermitted(error.to_string()))
            }
            _ => None,
        }
    }

    /// Whether a program that is not ours to replace is attached.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign { .. } | Self::Kin { .. })
    }

    /// Somebody else's program.
    pub(crate) fn foreign(group: &GroupKey, attached: &Attached) -> Self {
        match attached {
            Attached::Program { id } if is_kin(*id) => Self::Kin { group: *group, id: *id },
            _ => Self::Foreign { group: *group, owner: Self::owner(attached) },
        }
    }

    /// A program by what is known of it.
    pub(super) fn owner(attached: &Attached) -> String {
        match attached {
            Attached::Program { id } => match crate::bpf::owner::program_name(*id) {
                Some(name) if !name.is_empty() => format!("BPF program {id} `{name}`"),
                _ => format!("BPF program {id}"),
            },
            _ => "a classic BPF program".to_owned(),
        }
    }
}

fn thread(tid: Option<Pid>) -> String {
    tid.map_or_else(String::new, |tid| format!("/{tid}"))
}

fn names(suspects: &[Suspect]) -> String {
    let name = |suspect: &Suspect| format!("{} `{}`", suspect.id, suspect.name);
    suspects.iter().map(name).collect::<Vec<_>>().join(", ")
}
