//! The policies that know no CPUs: seats stand in the table as often as their weights say.

use reuseport_common::abi::{NO_SLOT, Policy, Role, Row};

use crate::topology::Topology;

use super::share::{apportion, gcd};
use super::{Plan, PlanError, SPREAD, Seat, SeatPlan};

/// Most rows.
const MAX_ROWS: u32 = 1 << 16;

/// Plans for `seats`, which are sorted by slot, distinct, and not all without weight.
///
/// One cycle holds every seat as often as its weight says after reduction by the greatest common
/// divisor. The table repeats it with other second choices, so that a dead worker's load is spread
/// over several.
pub(super) fn plan(
    topology: &Topology,
    policy: Policy,
    seats: &[&Seat],
) -> Result<Plan, PlanError> {
    let live: Vec<usize> = (0..seats.len()).filter(|seat| seats[*seat].weight > 0).collect();
    if live.len() > MAX_ROWS as usize {
        return Err(PlanError::TooManySeats(live.len()));
    }
    let weights: Vec<u64> = live.iter().map(|seat| u64::from(seats[*seat].weight)).collect();
    let cycle = interleave(&counts(&weights));
    let repeats = SPREAD.min(live.len() as u32 - 1).min(MAX_ROWS / cycle.len() as u32).max(1);

    let online = topology.online();
    let mut plans: Vec<SeatPlan> = seats.iter().map(|seat| SeatPlan::new(seat, &online)).collect();
    let mut table = Vec::with_capacity(cycle.len() * repeats as usize);
    for index in 0..cycle.len() * repeats as usize {
        let position = cycle[index % cycle.len()];
        let plan = &mut plans[live[position]];
        let second = stand_in(seats, &live, position, plan.entries as usize);
        table.push(Row { first: plan.slot, second });
        plan.entries += 1;
    }
    let rows = table.len() as u32;
    Ok(Plan {
        policy,
        rows,
        lanes: 1,
        table,
        seats: plans,
        rows_explained: Vec::new(),
        warnings: Vec::new(),
    })
}

/// The second choice in entry number `turn` of the seat at `position` among the live ones: each
/// other in turn, beginning with the next. One that stands by is better than one without weight, and
/// that one better than nobody.
fn stand_in(seats: &[&Seat], live: &[usize], position: usize, turn: usize) -> u32 {
    let others = live.len() - 1;
    if others > 0 {
        return seats[live[(position + 1 + turn % others) % live.len()]].slot;
    }
    let slots = |which: fn(&Seat) -> bool| -> Vec<u32> {
        seats.iter().filter(|seat| which(seat)).map(|seat| seat.slot).collect()
    };
    [slots(|seat| seat.role == Role::Standby), slots(Seat::is_idle)]
        .into_iter()
        .find(|slots| !slots.is_empty())
        .map_or(NO_SLOT, |slots| slots[turn % slots.len()])
}

/// How often each stands in one cycle: its weight, reduced, or apportioned where that is too much.
fn counts(weights: &[u64]) -> Vec<u32> {
    let divisor = weights.iter().copied().fold(0, gcd);
    let reduced: Vec<u64> = weights.iter().map(|weight| weight / divisor).collect();
    let sum: u64 = reduced.iter().sum();
    apportion(&reduced, sum, sum.min(MAX_ROWS.into()) as u32)
}

/// One cycle with position `i` standing in it `counts[i]` times, evenly apart: turn `t` of `i` is due
/// at `(2t + 1) / (2 * counts[i])` of it.
fn interleave(counts: &[u32]) -> Vec<usize> {
    let turns = |(position, count): (usize, &u32)| {
        let count = u64::from(*count);
        // 32 bits of fraction: turns of one seat are at least 2^-16 apart.
        (0..count).map(move |turn| (((2 * turn + 1) << 32) / (2 * count), position))
    };
    let mut due: Vec<(u64, usize)> = counts.iter().enumerate().flat_map(turns).collect();
    due.sort_unstable();
    due.into_iter().map(|(_, position)| position).collect()
}
