//! [`Policy::Cpu`]: a row is a CPU.

use reuseport_common::abi::{NO_SLOT, Policy, Role, Row};

use crate::model::{Cpu, CpuSet};
use crate::topology::Topology;

use super::near::Near;
use super::{Plan, PlanError, PlanWarning, RowPlan, Seat, SeatPlan, Share, homes};

mod rows;
mod seconds;
mod stations;

use seconds::Seconds;
use stations::Station;

/// Plans for `seats`, which are sorted by slot, distinct, and not all without weight; the rows of
/// `hot` CPUs are widened.
pub(super) fn plan(topology: &Topology, seats: &[&Seat], hot: &CpuSet) -> Result<Plan, PlanError> {
    let online = topology.online();
    if online.is_empty() {
        return Err(PlanError::NoCpu);
    }
    let mut plans: Vec<SeatPlan> = seats.iter().map(|seat| SeatPlan::new(seat, &online)).collect();
    let near = Near::new(topology);
    for (seat, home) in find_homes(topology, &near, seats, |seat| seat.weight > 0) {
        plans[seat].home = Some(home);
    }
    let standbys = find_homes(topology, &near, seats, |seat| seat.role == Role::Standby);
    let mut stations = stations::found(seats, &plans, topology.rows());
    let widened = hot.iter().any(|cpu| topology.get(cpu).is_some());
    let lanes = stations::choose_lanes(&near, topology.rows(), &stations, widened)?;
    for station in &mut stations {
        station.divide(lanes);
    }
    let warnings = warn(seats, &plans, &online, &stations);
    let mut seconds = Seconds::new(&near, seats, &stations, &standbys);
    let mut filled = rows::fill(topology, &near, seats, stations, lanes);
    rows::widen(&mut filled, hot, seats, lanes);

    let mut table = Vec::with_capacity(topology.rows() as usize * lanes as usize);
    let mut rows_explained = Vec::new();
    let mut covers = vec![Vec::new(); seats.len()];
    for (cpu, row) in (0..).zip(filled) {
        let start = table.len();
        for (seat, entries) in &row.shares {
            plans[*seat].entries += entries;
            for _ in 0..*entries {
                let second = seconds.turn(cpu, *seat);
                table.push(Row { first: seats[*seat].slot, second });
            }
        }
        let (Some(info), Some(why)) = (topology.get(cpu), row.why) else {
            continue;
        };
        if info.online {
            row.shares.iter().for_each(|(seat, _)| covers[*seat].push(cpu));
        }
        let slot_of = |(seat, entries): (usize, u32)| Share { slot: seats[seat].slot, entries };
        rows_explained.push(RowPlan {
            cpu,
            online: info.online,
            why,
            shares: row.shares.into_iter().map(slot_of).collect(),
            seconds: distinct_seconds(&table[start..]),
        });
    }
    for (plan, cpus) in plans.iter_mut().zip(covers) {
        plan.cpus = cpus.into_iter().collect();
    }
    Ok(Plan {
        policy: Policy::Cpu,
        rows: topology.rows(),
        lanes,
        table,
        seats: plans,
        rows_explained,
        warnings,
    })
}

/// The homes of `some` of the seats, as if they were alone.
fn find_homes(
    topology: &Topology,
    near: &Near,
    seats: &[&Seat],
    some: fn(&Seat) -> bool,
) -> Vec<(usize, Cpu)> {
    let online = topology.online();
    let some = || (0..seats.len()).filter(|seat| some(seats[*seat]));
    let usable = |seat: usize| match seats[seat].cpus.intersection(&online) {
        none if none.is_empty() => online.clone(),
        some => some,
    };
    let sets: Vec<CpuSet> = some().map(usable).collect();
    some().zip(homes::assign(topology, near, &sets)).collect()
}

/// The second choices of a row's entries, each once.
fn distinct_seconds(entries: &[Row]) -> Vec<u32> {
    let mut slots: Vec<u32> = entries.iter().map(|row| row.second).collect();
    slots.retain(|slot| *slot != NO_SLOT);
    slots.sort_unstable();
    slots.dedup();
    slots
}

fn warn(
    seats: &[&Seat],
    plans: &[SeatPlan],
    online: &CpuSet,
    stations: &[Station],
) -> Vec<PlanWarning> {
    let (mut not_pinned, mut offline) = (Vec::new(), Vec::new());
    for (seat, plan) in seats.iter().zip(plans).filter(|(seat, _)| seat.weight > 0) {
        let usable = seat.cpus.intersection(online);
        if usable.is_empty() && !seat.cpus.is_empty() {
            offline.push(seat.slot);
        } else if !plan.pinned && usable.len() != 1 && online.len() > 1 {
            not_pinned.push(seat.slot);
        }
    }
    let crowded = || stations.iter().filter(|station| station.seats.len() > 1);
    let mut warnings = Vec::new();
    if !not_pinned.is_empty() {
        warnings.push(PlanWarning::NotPinned { slots: not_pinned });
    }
    if let Some(most) = crowded().map(|station| station.seats.len()).max() {
        let cpus = crowded().map(|station| station.cpu).collect();
        warnings.push(PlanWarning::Shared { cpus, most });
    }
    if !offline.is_empty() {
        warnings.push(PlanWarning::Offline { slots: offline });
    }
    warnings
}
