//! Which rung an attach takes: eBPF, or one below it.

use std::collections::HashSet;

use super::super::{Notice, SteerError, detach};
use super::lower::Scene;
use super::{AttachOptions, AttachReport};
use crate::model::Group;
use crate::rungs::{self, Choice, PassedOver, Rung, Why};
use crate::topology::Topology;

/// Which rung is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ladder {
    /// The best that is permitted and fits.
    Auto,
    /// This one or none.
    Only(Rung),
}

/// The best rung below eBPF, which was refused.
pub(super) fn below(
    options: &AttachOptions,
    refused: SteerError,
) -> Result<Vec<AttachReport>, SteerError> {
    let Some(why) = refused.forbids_ebpf() else { return Err(refused) };
    let scene = Scene::survey(options)?;
    // A program of ours goes on, even if this process may not change it: it is better than all below.
    if scene.is_steered() { Err(refused) } else { best(&scene, &why) }
}

/// The one rung below eBPF that is asked for.
pub(super) fn only(options: &AttachOptions, rung: Rung) -> Result<Vec<AttachReport>, SteerError> {
    this_one(options, Scene::survey(options)?, rung)
}

/// Puts groups that the caller found on a rung below eBPF: the one that is asked for, or the best.
/// Listeners that are left out get nothing, as far as the rung can see to that. Where classic BPF is
/// asked for and the listeners' order is not known (any more), they are left to the kernel's hash.
pub(crate) fn attach_below(
    options: &AttachOptions,
    topology: &Topology,
    groups: Vec<Group>,
    leave_out: &HashSet<u64>,
    knows_order: bool,
    why_not_ebpf: &Why,
) -> Result<Vec<AttachReport>, SteerError> {
    let scene = Scene::found(options, topology, groups, leave_out)?;
    match options.rung {
        Ladder::Only(rung @ Rung::ClassicBpf) => match scene.fits(rung, knows_order) {
            Err(why @ Why::Unfit(_)) => {
                let passed_over = vec![PassedOver { rung, why }];
                scene.put_on(&Choice { rung: Rung::Hash, passed_over }, &[])
            }
            _ => this_one(options, scene, rung),
        },
        Ladder::Only(rung) => this_one(options, scene, rung),
        Ladder::Auto if scene.is_steered() => {
            Err(SteerError::Rung { rung: Rung::Ebpf, why: why_not_ebpf.clone() })
        }
        Ladder::Auto => best(&scene, why_not_ebpf),
    }
}

fn best(scene: &Scene<'_>, why_not_ebpf: &Why) -> Result<Vec<AttachReport>, SteerError> {
    let choice = rungs::best(|rung| match rung {
        Rung::Ebpf => Err(why_not_ebpf.clone()),
        rung => scene.fits(rung, false),
    });
    scene.put_on(&choice, &[])
}

fn this_one(
    options: &AttachOptions,
    scene: Scene<'_>,
    rung: Rung,
) -> Result<Vec<AttachReport>, SteerError> {
    let choice = Choice { rung, passed_over: Vec::new() };
    if rung == Rung::Hash && !options.dry_run {
        let mut reports = scene.released().put_on(&choice, &[])?;
        for detached in detach(&options.target, &options.settings)? {
            let of_it = reports.iter_mut().find(|it| Some(it.group.key) == detached.group);
            if let Some(report) = of_it {
                report.notices.extend(detached.notices);
            }
        }
        return Ok(reports);
    }
    let notice = match scene.fits(rung, true) {
        Ok(()) => None,
        Err(Why::Untried(why)) => Some(Notice::new(
            format!("whether this kernel has {rung} is not known: {why}"),
            "see on your workers whether they get what they should",
        )),
        Err(why) => return Err(SteerError::Rung { rung, why }),
    };
    scene.put_on(&choice, notice.as_slice())
}

/// Adds to a refusal of eBPF which rung would do without.
pub(super) fn name_another(options: &AttachOptions, refused: SteerError) -> SteerError {
    if refused.forbids_ebpf().is_none() {
        return refused;
    }
    let Ok(scene) = Scene::survey(options) else { return refused };
    let choice = rungs::best(|rung| match rung {
        Rung::Ebpf => Err(Why::Untried(String::new())),
        rung => scene.fits(rung, false),
    });
    match choice.rung {
        Rung::Hash => refused,
        rung => SteerError::EbpfRefused { source: Box::new(refused), rung },
    }
}
