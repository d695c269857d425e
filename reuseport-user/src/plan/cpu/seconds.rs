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
    /// By seat: its home, if it takes part.
    homes: Vec<Option<Cpu>>,
    /// For each group of CPUs the seats at home in it.
    rings: Vec<Ring>,
    /// For each group of CPUs the seats that stand by in it.
    standbys: Vec<Ring>,
    /// Seats without weight: better than nobody.
    idle: Ring,
}

impl<'a> Seconds<'a> {
    /// `standbys` are the seats that stand by, with their homes.
    pub(super) fn new(
        near: &'a Near,
        seats: &'a [&'a Seat],
        stations: &[Station],
        standbys: &[(usize, Cpu)],
    ) -> Self {
        // First everyone's first seat, then everyone's second: neighbours in a ring are on
        // different CPUs if that can be.
        let mut order: Vec<(usize, Cpu, usize)> = Vec::new();
        for station in stations {
            let tenants = station.seats.iter().enumerate();
            order.extend(tenants.map(|(turn, seat)| (turn, station.cpu, *seat)));
        }
        order.sort_unstable();
        let mut homes = vec![None; seats.len()];
        for (_, cpu, seat) in &order {
            homes[*seat] = Some(*cpu);
        }
        let rings = |homes: Vec<(Cpu, usize)>| -> Vec<Ring> {
            near.gather(homes.into_iter()).into_iter().map(Ring::new).collect()
        };
        let idle = (0..seats.len()).filter(|seat| seats[*seat].is_idle()).collect();
        Self {
            near,
            seats,
            homes,
            rings: rings(order.into_iter().map(|(_, cpu, seat)| (cpu, seat)).collect()),
            standbys: rings(standbys.iter().map(|(seat, cpu)| (*cpu, *seat)).collect()),
            idle: Ring::new(idle),
        }
    }

    /// The slot that stands in for seat `first` on `cpu`: one that stands by where `first` is at
    /// home, else the nearest other one, the next in turn among equals, else the nearest that stands
    /// by.
    pub(super) fn turn(&mut self, cpu: Cpu, first: usize) -> u32 {
        let near = self.near;
        let home = self.homes[first].and_then(|home| near.around(home).next());
        let nearest =
            |rings: &mut [Ring]| near.around(cpu).find_map(|(_, group)| rings[group].turn(first));
        let seat = home
            .and_then(|(_, group)| self.standbys[group].turn(first))
            .or_else(|| nearest(&mut self.rings))
            .or_else(|| nearest(&mut self.standbys))
            .or_else(|| self.idle.turn(first));
        seat.map_or(NO_SLOT, |seat| self.seats[seat].slot)
    }
}
