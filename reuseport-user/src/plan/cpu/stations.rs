//! Home CPUs with the seats that live there: what rows are made of.

use crate::model::Cpu;
use crate::plan::near::Near;
use crate::plan::share::{self, Dealer};
use crate::plan::{MAX_ENTRIES, NORMAL_WEIGHT, PlanError, SPREAD, Seat, SeatPlan, USUAL_LANES};

/// Entries per row up to which shares are made exact: enough for any percentage.
const FINE: u64 = USUAL_LANES as u64;

/// Entries per worker up to which shares are made exact where many live on one CPU.
const FINE_EACH: u64 = 8;

/// Entries of a table up to which rows are made longer than exact shares need.
const MODEST_ENTRIES: u32 = 1 << 16;

/// A CPU that is home to seats. CPUs that are nobody's home borrow one.
pub(super) struct Station {
    /// The home.
    pub(super) cpu: Cpu,
    /// Who lives here, by slot.
    pub(super) seats: Vec<usize>,
    /// Entries that each of them gets of a row that the station owns.
    pub(super) entries: Vec<u32>,
    /// Weight of each.
    claims: Vec<u64>,
    /// What the claims are parts of: more than their sum where they claim less than a CPU.
    whole: u64,
    /// What its part of other CPUs' entries is proportional to: what it claims of one CPU, or its
    /// seats' mean weight where that is more.
    strength: u64,
    /// Entries that it has by now, in all rows.
    load: u64,
    /// Its seats by how many single entries each was dealt.
    dealer: Dealer,
    dealt: Vec<u64>,
}

/// Founds one station per home, in order of CPU.
pub(super) fn found(seats: &[&Seat], plans: &[SeatPlan], rows: u32) -> Vec<Station> {
    let mut tenants = vec![Vec::new(); rows as usize];
    for (seat, plan) in plans.iter().enumerate() {
        if let Some(home) = plan.home {
            tenants[home as usize].push(seat);
        }
    }
    let inhabited = || (0..).zip(&tenants).filter(|(_, tenants)| !tenants.is_empty());
    // A station alone on the machine has nobody to leave anything to.
    let least = if inhabited().nth(1).is_some() { u64::from(NORMAL_WEIGHT) } else { 1 };
    let station = |(cpu, tenants): (Cpu, &Vec<usize>)| {
        let claims: Vec<u64> = tenants.iter().map(|seat| seats[*seat].weight.into()).collect();
        let sum: u64 = claims.iter().sum();
        let mut dealer = Dealer::default();
        for (tenant, claim) in claims.iter().enumerate() {
            dealer.add(tenant, 0, *claim);
        }
        Station {
            cpu,
            seats: tenants.clone(),
            entries: Vec::new(),
            whole: sum.max(least),
            strength: sum.min(NORMAL_WEIGHT.into()).max(sum / claims.len() as u64),
            load: 0,
            dealer,
            dealt: vec![0; claims.len()],
            claims,
        }
    };
    inhabited().map(station).collect()
}

impl Station {
    /// Divides a row of `lanes` entries among the seats that live here.
    pub(super) fn divide(&mut self, lanes: u32) {
        self.entries = share::apportion(&self.claims, self.whole, lanes);
    }

    /// Takes a row; says how many of its `lanes` entries are left.
    pub(super) fn take_row(&mut self, lanes: u32) -> u32 {
        let taken: u32 = self.entries.iter().sum();
        self.load += u64::from(taken);
        lanes - taken
    }

    /// Takes a single entry; says for which seat.
    pub(super) fn take_entry(&mut self) -> Option<usize> {
        self.load += 1;
        let tenant = self.dealer.next()?;
        self.dealt[tenant] += 1;
        self.dealer.add(tenant, self.dealt[tenant], self.claims[tenant]);
        Some(self.seats[tenant])
    }

    /// Adds the station to those that entries are dealt to.
    pub(super) fn enter(&self, index: usize, dealer: &mut Dealer) {
        dealer.add(index, self.load, self.strength);
    }

    /// How much it has for its strength, comparable between stations.
    pub(super) fn fill(&self) -> u64 {
        share::fill(self.load, self.strength)
    }

    /// Whether it leaves entries of a row to others.
    fn leaves_rest(&self) -> bool {
        self.claims.iter().sum::<u64>() < self.whole
    }
}

/// Entries per row: what makes all shares exact if that is not too many, those of `widened` rows too
/// where there are any, and enough to spread a dead worker's load.
pub(super) fn choose_lanes(
    near: &Near,
    rows: u32,
    stations: &[Station],
    widened: bool,
) -> Result<u32, PlanError> {
    let budget = u64::from(MAX_ENTRIES / rows);
    let Some(fullest) = stations.iter().max_by_key(|station| station.seats.len()) else {
        return Err(PlanError::NoWeight);
    };
    let workers = fullest.seats.len();
    if workers as u64 > budget {
        let most = budget as u32;
        return Err(PlanError::TooCrowded { cpu: fullest.cpu, workers, most, rows });
    }
    let fine = FINE.max(FINE_EACH * workers as u64).min(budget);
    let exact = stations
        .iter()
        .map(|station| share::exact(&station.claims, station.whole))
        .chain(widened.then(|| {
            let all: Vec<u64> = stations.iter().flat_map(|it| it.claims.iter().copied()).collect();
            share::exact(&all, all.iter().sum())
        }))
        .fold(1, share::lcm);
    if exact > fine {
        return Ok(fine as u32);
    }
    // Multiples are as exact. They let what some leave be dealt out evenly, and a dead worker's load
    // be spread; neither is worth a large table.
    let most = fine.min(u64::from(MODEST_ENTRIES / rows)) / exact;
    let wanted = if stations.iter().any(Station::leaves_rest) {
        most
    } else {
        (u64::from(equals(near, stations)) * workers as u64).div_ceil(exact).min(most)
    };
    Ok((exact * wanted.max(1)) as u32)
}

/// The most seats that are equally near to some seat, up to [`SPREAD`].
fn equals(near: &Near, stations: &[Station]) -> u32 {
    let seats = stations.iter().flat_map(|station| station.seats.iter().map(|s| (station.cpu, *s)));
    let groups = near.gather(seats);
    let others = |station: &Station| {
        near.around(station.cpu)
            .map(|(_, group)| groups[group].len() - 1)
            .find(|others| *others > 0)
    };
    let most = stations.iter().filter_map(others).max().unwrap_or(1);
    SPREAD.min(most as u32)
}
