//! Second choices: where a connection goes when its first choice is dead or has too much.

use reuseport_common::abi::NO_SLOT;

use crate::model::Cpu;
use crate::plan::Seat;
use crate::plan::near::{Near, Ring};

use super::stations::Station;

/// Deals out second choices.
pub(super) struct Seconds<'a> {
    near: &'a Near,
    seats: &'a [&'a Seat],
    /// For each group of CPUs the seats at home in it.
    rings: Vec<Ring>,
    /// Seats without weight: better than nobody.
    idle: Ring,
}

impl<'a> Seconds<'a> {
    pub(super) fn new(near: &'a Near, seats: &'a [&'a Seat], stations: &[Station]) -> Self {
        // First everyone's first seat, then everyone's second: neighbours in a ring are on
        // different CPUs if that can be.
        let mut order: Vec<(usize, Cpu, usize)> = Vec::new();
        for station in stations {
            let tenants = station.seats.iter().enumerate();
            order.extend(tenants.map(|(turn, seat)| (turn, station.cpu, *seat)));
        }
        order.sort_unstable();
        let groups = near.gather(order.into_iter().map(|(_, cpu, seat)| (cpu, seat)));
        let idle = (0..seats.len()).filter(|seat| seats[*seat].weight == 0).collect();
        Self {
            near,
            seats,
            rings: groups.into_iter().map(Ring::new).collect(),
            idle: Ring::new(idle),
        }
    }

    /// The slot that stands in for seat `first` on `cpu`: the nearest other one, the next in turn
    /// among equals.
    pub(super) fn turn(&mut self, cpu: Cpu, first: usize) -> u32 {
        for (_, group) in self.near.around(cpu) {
            if let Some(seat) = self.rings[group].turn(first) {
                return self.seats[seat].slot;
            }
        }
        self.idle.turn(first).map_or(NO_SLOT, |seat| self.seats[seat].slot)
    }
}
