//! Which station owns which row, and who gets what the owners leave.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::model::{Cpu, CpuSet};
use crate::plan::near::Near;
use crate::plan::share::Dealer;
use crate::plan::{Seat, Why};
use crate::topology::{Distance, Topology};

use super::stations::Station;

/// One row.
#[derive(Clone, Default)]
pub(super) struct Filled {
    /// Seats and their entries: the owners, then who takes what they leave.
    pub(super) shares: Vec<(usize, u32)>,
    /// `None` for holes.
    pub(super) why: Option<Why>,
}

/// Fills all rows, by CPU id.
pub(super) fn fill(
    topology: &Topology,
    near: &Near,
    seats: &[&Seat],
    stations: Vec<Station>,
    lanes: u32,
) -> Vec<Filled> {
    let homes = stations.iter().enumerate().map(|(index, station)| (station.cpu, index));
    let mut filler = Filler {
        topology,
        near,
        groups: near.gather(homes),
        visitors: find_visitors(topology, seats, &stations),
        rows: vec![Filled::default(); topology.rows() as usize],
        stations,
        lanes,
    };
    filler.fill_homes(seats);
    for cpu in filler.borrowers() {
        filler.borrow(cpu);
    }
    filler.rows
}

/// Deals the rows of `hot` CPUs to all seats that take part, by weight. Whoever gets a little more
/// of one row gets a little less of the next.
pub(super) fn widen(rows: &mut [Filled], hot: &CpuSet, seats: &[&Seat], lanes: u32) {
    let mut dealer = Dealer::default();
    let mut dealt = vec![0; seats.len()];
    for (index, seat) in seats.iter().enumerate().filter(|(_, seat)| seat.weight > 0) {
        dealer.add(index, 0, seat.weight.into());
    }
    for (cpu, row) in (0..).zip(rows) {
        if !hot.contains(cpu) || row.why.is_none() {
            continue;
        }
        let mut shares: BTreeMap<usize, u32> = BTreeMap::new();
        for _ in 0..lanes {
            let Some(seat) = dealer.next() else { break };
            *shares.entry(seat).or_default() += 1;
            dealt[seat] += 1;
            dealer.add(seat, dealt[seat], seats[seat].weight.into());
        }
        *row = Filled { shares: shares.into_iter().collect(), why: Some(Why::Widened) };
    }
}

/// For every CPU the stations with a seat that may run there.
///
/// A seat that may run on all online CPUs prefers none; and one is not kept from an offline CPU: its
/// worker goes there when it comes online.
fn find_visitors(topology: &Topology, seats: &[&Seat], stations: &[Station]) -> Vec<Vec<usize>> {
    let online = topology.online();
    let mut visitors = vec![Vec::new(); topology.rows() as usize];
    for (index, station) in stations.iter().enumerate() {
        let tenants = station.seats.iter().map(|seat| &seats[*seat].cpus);
        for cpu in tenants.filter(|cpus| !online.is_subset(cpus)).flat_map(CpuSet::iter) {
            if let Some(stations) = visitors.get_mut(cpu as usize)
                && stations.last() != Some(&index)
            {
                stations.push(index);
            }
        }
    }
    visitors
}

struct Filler<'a> {
    topology: &'a Topology,
    near: &'a Near,
    stations: Vec<Station>,
    /// For each group of CPUs the stations in it.
    groups: Vec<Vec<usize>>,
    visitors: Vec<Vec<usize>>,
    rows: Vec<Filled>,
    lanes: u32,
}

impl Filler<'_> {
    /// Gives every home to those who live there. What they leave is dealt out after all of them have
    /// theirs, so that it evens out.
    fn fill_homes(&mut self, seats: &[&Seat]) {
        let mut rests = Vec::new();
        for index in 0..self.stations.len() {
            let station = &self.stations[index];
            let cpu = station.cpu;
            let pinned =
                |seat: &usize| seats[*seat].cpus.len() == 1 && seats[*seat].cpus.contains(cpu);
            let why = if station.seats.iter().all(pinned) { Why::Pinned } else { Why::Placed };
            rests.push(self.give(cpu, index, Some(why)));
        }
        for (index, rest) in rests.into_iter().enumerate() {
            self.deal(self.stations[index].cpu, index, rest);
        }
    }

    /// CPUs without a station, in the order in which they choose: whoever has least choice first.
    fn borrowers(&self) -> Vec<Cpu> {
        let rank = |cpu: Cpu| {
            let info = self.topology.get(cpu);
            let distance = if self.visitors[cpu as usize].is_empty() {
                self.nearest(cpu, None).map(|(distance, _)| distance)
            } else {
                Some(Distance::Same)
            };
            (Reverse(info.map(|info| info.online)), distance, cpu)
        };
        let home = |cpu: &Cpu| self.rows[*cpu as usize].why.is_some();
        let mut cpus: Vec<Cpu> = (0..self.topology.rows()).filter(|cpu| !home(cpu)).collect();
        cpus.sort_by_cached_key(|cpu| rank(*cpu));
        cpus
    }

    /// Fills the row of a CPU that is nobody's home.
    fn borrow(&mut self, cpu: Cpu) {
        let visitors = self.visitors[cpu as usize].iter().copied();
        let visitor = visitors.min_by_key(|index| {
            let station = &self.stations[*index];
            (self.topology.distance(cpu, station.cpu), station.fill(), *index)
        });
        let (index, why) = if let Some(index) = visitor {
            (index, Why::MayRun { home: self.stations[index].cpu })
        } else {
            let Some((distance, equals)) = self.nearest(cpu, None) else {
                return;
            };
            let fewest = equals.len() > 1;
            let least = equals.iter().copied().min_by_key(|i| (self.stations[*i].fill(), *i));
            let Some(index) = least else { return };
            (index, Why::Nearest { distance, home: self.stations[index].cpu, fewest })
        };
        let why = self.topology.get(cpu).map(|_| why);
        let rest = self.give(cpu, index, why);
        self.deal(cpu, index, rest);
    }

    /// The nearest stations to `cpu`, but for `other`.
    fn nearest(&self, cpu: Cpu, other: Option<usize>) -> Option<(Distance, &[usize])> {
        let mut around =
            self.near.around(cpu).map(|(distance, group)| (distance, &self.groups[group]));
        let found = around.find(|(_, stations)| stations.iter().any(|index| Some(*index) != other));
        found.map(|(distance, stations)| (distance, stations.as_slice()))
    }

    /// Makes a station the owner of a row; says how many entries it leaves.
    fn give(&mut self, cpu: Cpu, index: usize, why: Option<Why>) -> u32 {
        let station = &mut self.stations[index];
        let rest = station.take_row(self.lanes);
        let shares = station.seats.iter().copied().zip(station.entries.iter().copied());
        self.rows[cpu as usize] = Filled { shares: shares.collect(), why };
        rest
    }

    /// Deals `rest` entries of a row that `owner` leaves to the nearest others.
    fn deal(&mut self, cpu: Cpu, owner: usize, rest: u32) {
        let others = self.nearest(cpu, Some(owner)).map(|(_, stations)| stations);
        let mut dealer = Dealer::default();
        for index in others.into_iter().flatten().filter(|index| **index != owner) {
            self.stations[*index].enter(*index, &mut dealer);
        }
        let mut dealt: BTreeMap<usize, u32> = BTreeMap::new();
        for _ in 0..rest {
            let Some(index) = dealer.next() else { break };
            if let Some(seat) = self.stations[index].take_entry() {
                *dealt.entry(seat).or_default() += 1;
            }
            self.stations[index].enter(index, &mut dealer);
        }
        self.rows[cpu as usize].shares.extend(dealt);
    }
}
