//! `attach`: find, plan, fill, attach, pin. Again on a group that is steered already: re-plan in
//! place.

mod job;
mod ladder;
mod lower;
pub(crate) mod own;
mod renew;

use std::collections::HashMap;

use reuseport_common::abi::{self, Config, Policy, Role};
use serde::Serialize;

use crate::bpf::BpfError;
use crate::bpf::owner::Attached;
use crate::bpf::pins::{LockedPins, Pinned, Pins};
use crate::discover::overrides::Overrides;
use crate::discover::{Target, discover};
use crate::model::{Group, GroupKey, Served};
use crate::plan::Plan;
use crate::rungs::{Applied, Choice, Rung};
use crate::sys::mounts;
use crate::topology::Topology;

pub use self::ladder::Ladder;
pub(crate) use self::ladder::attach_below;

use self::job::Job;
use super::detach::{clear_dead, take_off};
use super::fit::{bound_beside, check_weights, check_workers, explain_alone};
use super::ownership::Census;
use super::pin_workers::PinnedWorker;
use super::rung;
use super::store::Store;
use super::{Notice, Settings, SteerError, Weight};

/// What to attach to, and how.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent choices of the user")]
pub struct AttachOptions {
    /// Which groups.
    pub target: Target,
    /// What the user knows better.
    pub overrides: Overrides,
    /// Who serves listeners, by cookie, instead of what discovery sees of them; `overrides` go on
    /// top. For callers who looked before: a thread that is busy cannot be seen.
    pub served: HashMap<u64, Served>,
    /// What a row means.
    pub policy: Policy,
    /// Shares that are not the normal one.
    pub weights: Vec<Weight>,
    /// As `weights`, for listeners by their cookies.
    pub shares: HashMap<u64, u32>,
    /// Parts that listeners are to take from now on, by cookie; the others keep theirs.
    pub roles: HashMap<u64, Role>,
    /// Pin workers that are not.
    pub pin: bool,
    /// Steer a group of one, too: another listener will join it, and is to get nothing before its
    /// time.
    pub alone: bool,
    /// Replace a foreign program.
    pub takeover: bool,
    /// By which mechanism.
    pub rung: Ladder,
    /// Stop at the plan.
    pub dry_run: bool,
    /// aya-log records from the program's rare paths.
    pub log: bool,
    /// Where and how.
    pub settings: Settings,
}

impl AttachOptions {
    /// Everything as usual.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            overrides: Overrides::default(),
            served: HashMap::new(),
            policy: Policy::Cpu,
            weights: Vec::new(),
            shares: HashMap::new(),
            roles: HashMap::new(),
            pin: false,
            alone: false,
            takeover: false,
            rung: Ladder::Only(Rung::Ebpf),
            dry_run: false,
            log: false,
            settings: Settings::default(),
        }
    }
}

/// What was done (or, on a dry run, would be) for one group.
#[derive(Clone, Debug, Serialize)]
pub struct AttachReport {
    /// The group.
    #[serde(flatten)]
    pub group: Group,
    /// Slot of each listener, in the group's order.
    pub slots: Vec<u32>,
    /// Which row points where, and why.
    pub plan: Plan,
    /// The rung it is on, and why no better one.
    pub rung: Choice,
    /// The program in force now; `None` on a dry run, and on a rung below eBPF.
    pub attached: Option<InForce>,
    /// What was set on the listeners; `None` on a dry run, and on eBPF.
    pub applied: Option<Applied>,
    /// Workers that `--pin` pinned.
    pub pinned: Vec<PinnedWorker>,
    /// What the user should know.
    pub notices: Vec<Notice>,
}

/// A program in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InForce {
    /// The kernel's id of the program.
    pub program_id: u32,
    /// Counts the plans since the first attach.
    pub generation: u32,
    /// Whether connections of a closing listener move to another.
    pub migrates: bool,
    /// Whether the program was attached already, and only its maps were written.
    pub in_place: bool,
}

impl InForce {
    fn new(pinned: &Pinned, config: &Config, in_place: bool) -> Self {
        Self {
            program_id: pinned.program_id,
            generation: config.generation,
            migrates: config.flags & abi::FLAG_MIGRATES != 0,
            in_place,
        }
    }
}

/// Attaches to every group of the target, or says why not, before anything is changed. What fails
/// later (a worker exits, memory runs out) ends it, and what it newly attached before is detached.
///
/// # Minimum kernel version
///
/// 5.6 for taking listeners, 5.10 as tested; migration from 5.14.
pub fn attach(options: &AttachOptions) -> Result<Vec<AttachReport>, SteerError> {
    match options.rung {
        Ladder::Auto => {
            let permitted =
                if options.dry_run { rung::permitted(&options.settings) } else { Ok(()) };
            permitted
                .and_then(|()| ebpf(options))
                .or_else(|refused| ladder::below(options, refused))
        }
        Ladder::Only(Rung::Ebpf) => {
            ebpf(options).map_err(|refused| ladder::name_another(options, refused))
        }
        Ladder::Only(rung) => ladder::only(options, rung),
    }
}

/// Attaches the program.
fn ebpf(options: &AttachOptions) -> Result<Vec<AttachReport>, SteerError> {
    let mut reports = pinned(options)?;
    if mounts::is_ours_alone(&options.settings.bpffs)
        && let Some(first) = reports.first_mut()
    {
        first.notices.push(Notice::new(
            format!(
                "{} is seen in this mount namespace only (`ip netns exec` gives every command its own), \
                 and the pins go with it",
                options.settings.bpffs.display()
            ),
            "where that is not meant: `detach`, and attach from outside with --netns or --pid",
        ));
    }
    Ok(reports)
}

fn pinned(options: &AttachOptions) -> Result<Vec<AttachReport>, SteerError> {
    let pins = Pins::at(&options.settings.bpffs)?;
    if options.dry_run {
        let found = find(options)?;
        let census = match Census::ask(&found.groups, &options.target, &options.settings) {
            // To look and plan takes less than to load programs.
            Err(SteerError::Bpf { source, .. }) => Census::unknown(&source),
            census => census?,
        };
        let plan = |group: &Group| {
            let job = Job::new(options, &found.topology, group.clone());
            job.dry_run(&pins, &census.attached(group))
        };
        let reports = found.groups.iter().map(plan).collect::<Result<_, _>>()?;
        return Ok(found.with_notices(reports));
    }
    // Looked at under the lock: whoever held it before may have changed what there is to see. Only
    // where nobody ever attached, nothing is made before there is something to attach to.
    if pins.exist() {
        let pins = pins.lock()?;
        let found = find(options)?;
        return Ok(found.with_notices(carry_out(options, &found, &pins)?));
    }
    let found = find(options)?;
    let reports = carry_out(options, &found, &pins.lock()?)?;
    Ok(found.with_notices(reports))
}

/// Attaches to a group that the caller found, and found fit: as [`attach`] in all else.
pub(crate) fn attach_found(
    options: &AttachOptions,
    topology: &Topology,
    group: Group,
) -> Result<(), SteerError> {
    let pins = Pins::at(&options.settings.bpffs)?.lock()?;
    let (topology, groups, alone) = (topology.clone(), vec![group], Vec::new());
    carry_out(options, &Targets { topology, groups, alone }, &pins).map(drop)
}

/// What there is to attach to.
struct Targets {
    topology: Topology,
    groups: Vec<Group>,
    /// Groups of one listener, left alone.
    alone: Vec<Group>,
}

impl Targets {
    fn with_notices(&self, mut reports: Vec<AttachReport>) -> Vec<AttachReport> {
        for group in &self.alone {
            if let Some(first) = reports.first_mut() {
                first.notices.push(Notice::new(
                    format!("{} has one listener and was left alone", group.key),
                    "start more workers on it, or name the address to steer with --addr",
                ));
            }
        }
        for report in &mut reports {
            report.notices.extend(bound_beside(&report.group.key, self.keys()));
        }
        reports
    }

    fn keys(&self) -> impl Iterator<Item = GroupKey> {
        self.groups.iter().chain(&self.alone).map(|group| group.key)
    }
}

/// Finds the groups, and refuses those that cannot be steered as they are.
fn find(options: &AttachOptions) -> Result<Targets, SteerError> {
    let mut groups = discover(&options.target)?;
    let topology = Topology::read()?;
    options.overrides.check(&topology.possible())?;
    for listener in groups.iter_mut().flat_map(|group| &mut group.listeners) {
        if let Some(served) = options.served.get(&listener.cookie) {
            listener.served.clone_from(served);
        }
    }
    options.overrides.apply(&mut groups)?;
    check_weights(&groups, &options.weights)?;
    let (groups, alone): (Vec<_>, Vec<_>) = groups
        .into_iter()
        .partition(|group| group.listeners.len() > 1 || options.alone || shrunk(options, group));
    if groups.is_empty() {
        return Err(explain_alone(&alone));
    }
    for group in &groups {
        check_workers(group, options.policy)?;
    }
    Ok(Targets { topology, groups, alone })
}

/// Attaches to all groups, after each was found fit and free: a refusal comes before any change. If
/// one fails all the same, those that were attached before it are detached again.
fn carry_out(
    options: &AttachOptions,
    found: &Targets,
    pins: &LockedPins,
) -> Result<Vec<AttachReport>, SteerError> {
    let Targets { topology, groups, .. } = found;
    let Some(first) = groups.first() else { return Ok(Vec::new()) };
    clear_dead(pins, &options.target, groups)?;
    let mut store = Store::Pins(pins);
    let mut spare = Job::new(options, topology, first.clone()).load()?;
    let census = Census::take(&mut spare, groups, &options.target)?;
    let prepare = |group: &Group| {
        let attached = census.attached(group);
        Job::new(options, topology, group.clone()).prepare(&store, attached)
    };
    let prepared: Vec<_> = groups.iter().map(prepare).collect::<Result<_, _>>()?;
    // Loaded for the first group, so it fits that one.
    let mut spare = Some(spare);
    let mut reports: Vec<AttachReport> = Vec::new();
    for mut prepared in prepared {
        // A worker that was pinned for one group is where it is for the others too.
        for report in &reports {
            prepared.job.follow(&report.pinned);
        }
        match prepared.carry_out(&mut store, spare.take()) {
            Ok(mut report) => {
                // What a lower rung left is of no use beside the program.
                if report.attached.is_some_and(|it| !it.in_place)
                    && let Err(error) = rung::forget(&report.group)
                {
                    report.notices.push(Notice::new(
                        format!("SO_INCOMING_CPU may still be set on its listeners: {error}"),
                        "it does no harm beside the program; `detach` takes it off too",
                    ));
                }
                reports.push(report);
            }
            Err(error) => {
                let new = |it: &&AttachReport| census.attached(&it.group) == Attached::Nothing;
                for report in reports.iter().filter(new) {
                    // Best effort: the failure that is told is the first.
                    let _detached = take_off(&report.group);
                    let _removed = pins.remove(&pins.place(&report.group.key));
                }
                return Err(error);
            }
        }
    }
    Ok(reports)
}

/// What a refused write to maps in force means.
pub(super) fn of_maps(group: &GroupKey) -> impl Fn(BpfError) -> SteerError {
    let group = *group;
    move |source| {
        if source.is_write_refused() {
            SteerError::Frozen { group }
        } else {
            SteerError::Bpf { group, source }
        }
    }
}

/// Whether a group of one is what is left of a group that we steer: its plan must follow.
fn shrunk(options: &AttachOptions, group: &Group) -> bool {
    let pinned = Pins::at(&options.settings.bpffs).and_then(|pins| pins.open(&group.key));
    let Ok(Some(pinned)) = pinned else { return false };
    let seated = pinned.maps.sockets.cookies().unwrap_or_default();
    group.listeners.iter().any(|listener| seated.contains(&Some(listener.cookie)))
}
