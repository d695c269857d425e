//! Decides which listener every table entry points at, and says why. One unit is one table entry.
//!
//! # Problem
//!
//! A table has `rows` rows of `lanes` entries. For [`Policy::Cpu`] a row is a CPU, and the kernel
//! picks one of its entries by the connection's hash. Given the machine and the *seats* (slots, the
//! CPUs that their workers may run on, and weights), every CPU that can ever receive a packet needs
//! entries that point at a near worker, no worker may be left out or get more than its part, and
//! every entry needs a second choice for when the first is dead or has too much.
//!
//! # Approach
//!
//! 1. Every seat that takes part (weight above 0) gets one *home* CPU among those that its worker may
//!    run on, such that no CPU is home to more seats than it must be (`homes`).
//! 2. Seats with one home share its entries by weight. What they do not claim (together less than
//!    100 percent of a normal share) goes to the nearest other homes.
//! 3. A CPU that is nobody's home borrows one: where a worker may run there, that worker's; else the
//!    nearest one by SMT sibling, LLC, node; among equals the one with the fewest entries for its
//!    strength. CPUs that are online choose first, those with the nearest homes first of all;
//!    offline CPUs and holes between the ids then choose alike, for a CPU may come online later.
//! 4. The second choice is the nearest other seat, taken in turn among equals, so that the load of a
//!    dead worker falls on several. One on the same CPU counts as nearest: a dead or hung worker
//!    leaves behind just the CPU time that its neighbour then needs, and locality is kept.
//! 5. Rows that are *hot* are then widened: all seats that take part share them by weight.
//!
//! The other policies know no CPUs: seats stand in the table as often as their weights say, evenly
//! interleaved, and second choices rotate over all others.
//!
//! Seats whose [`Role`] is not active take no part. Those that stand by have homes of their own, found
//! as if they were alone, and come before all others as second choices there: the generation that was
//! superseded gets its rows back by itself when the new one dies. Those that were drained are in no
//! entry at all.
//!
//! The primitive under all of it is apportionment (`share`): whole entries for given weights. It is
//! exact where the lanes allow it (they do for the usual weights) and otherwise off by less than one
//! entry per row, except that no seat is left without one.
//!
//! Everything here is pure and deterministic: equal input gives the same plan, to the bit.

use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer, Serialize, Serializer};

use reuseport_common::abi::{NO_SLOT, Policy, Role, Row};

use crate::model::{Cpu, CpuSet};
use crate::topology::{Distance, Topology};

mod cpu;
mod explain;
mod homes;
mod near;
mod share;
mod spread;

/// Most entries (`rows * lanes`) that a plan may have.
pub const MAX_ENTRIES: u32 = 1 << 20;

/// Entries per row that a plan needs at most, unless many workers live on one CPU: enough for any
/// percentage. A table with room for it never has to be replaced because of weights.
pub const USUAL_LANES: u32 = 128;

/// How many seats a dead one's load is spread over, where that many are equally near. It costs as
/// many lanes: eight entries are one cache line.
const SPREAD: u32 = 8;

/// A seat of normal weight, in percent.
pub const NORMAL_WEIGHT: u32 = 100;

/// What to plan.
#[derive(Clone, Debug)]
pub struct Request {
    /// What a row means.
    pub policy: Policy,
    /// The slots in use, in any order.
    pub seats: Vec<Seat>,
    /// CPUs whose rows are widened; only [`Policy::Cpu`] has such rows.
    pub hot: CpuSet,
}

/// One slot and its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Index in the sockarray.
    pub slot: u32,
    /// CPUs that its workers may run on. Empty means unknown; that, or all CPUs, is no preference.
    pub cpus: CpuSet,
    /// Percent of a normal share, usually [`NORMAL_WEIGHT`]; 0 takes no part.
    pub weight: u32,
    /// Those that stand by take part where nobody else can.
    pub role: Role,
}

/// Which entry points at which slot, and why.
///
/// The JSON form leaves out the table itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What a row means.
    #[serde(serialize_with = "policy_name")]
    pub policy: Policy,
    /// Number of rows.
    pub rows: u32,
    /// Entries per row.
    pub lanes: u32,
    /// `rows * lanes` entries, row by row.
    #[serde(skip)]
    pub table: Vec<Row>,
    /// What each seat got, by slot.
    pub seats: Vec<SeatPlan>,
    /// What each possible CPU got, by CPU; empty for policies that know no CPUs.
    pub rows_explained: Vec<RowPlan>,
    /// What the user should know.
    pub warnings: Vec<PlanWarning>,
}

/// What one seat got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeatPlan {
    /// Its slot.
    pub slot: u32,
    /// Its weight, as asked.
    pub weight: u32,
    /// Its role, as asked.
    #[serde(serialize_with = "role_name")]
    pub role: Role,
    /// The CPU that the plan counts it on, and that `--pin` pins it to. `None` where it takes no
    /// part and for policies that know no CPUs.
    pub home: Option<Cpu>,
    /// Whether its worker can run on one CPU only, which is online.
    pub pinned: bool,
    /// Whether nothing ties its worker to any of the online CPUs.
    pub floating: bool,
    /// Entries that name it first.
    pub entries: u32,
    /// Online CPUs whose connections it gets; empty for policies that know no CPUs.
    pub cpus: CpuSet,
}

/// What one CPU's row holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowPlan {
    /// The CPU.
    pub cpu: Cpu,
    /// Whether it runs now.
    pub online: bool,
    /// How its owners came to own it.
    pub why: Why,
    /// The first choices; they add up to `lanes`. Owners come first, then who takes what they leave.
    pub shares: Vec<Share>,
    /// All second choices in its entries.
    pub seconds: Vec<u32>,
}

/// A slot's part of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    /// The slot.
    pub slot: u32,
    /// Entries of the row that name it first.
    pub entries: u32,
}

/// Why a row's owners own it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Their workers can run nowhere else.
    Pinned,
    /// Their workers may run here, and the plan counts them here.
    Placed,
    /// One of the workers may run here, though `home` is where the plan counts it.
    MayRun {
        /// The CPU borrowed from.
        home: Cpu,
    },
    /// They are the nearest.
    Nearest {
        /// How near.
        distance: Distance,
        /// The CPU borrowed from.
        home: Cpu,
        /// Whether others are as near and this one had the fewest entries.
        fewest: bool,
    },
    /// Everybody takes part: it is hot.
    Widened,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The request names no seat.
    #[error("plan: the group has no listener to steer to")]
    NoSeats,
    /// Nobody would get anything.
    #[error(
        "plan: every worker has weight 0 or was drained; give one a weight above 0, or undrain one"
    )]
    NoWeight,
    /// Two seats are one.
    #[error("plan: slot {0} is given twice")]
    DuplicateSlot(u32),
    /// The slot is the number that means "none".
    #[error("plan: slot {NO_SLOT} is reserved")]
    ReservedSlot,
    /// The machine has nowhere to run.
    #[error("plan: no CPU is online")]
    NoCpu,
    /// A table large enough would be beyond [`MAX_ENTRIES`].
    #[error(
        "plan: {workers} workers share CPU {cpu}, at most {most} can on a machine with {rows} \
         possible CPUs; spread them over more CPUs or use --policy hash"
    )]
    TooCrowded {
        /// The CPU.
        cpu: Cpu,
        /// Workers whose home it is.
        workers: usize,
        /// Most that could share it.
        most: u32,
        /// Rows of the table.
        rows: u32,
    },
    /// More seats than the table of a policy that knows no CPUs has rows.
    #[error("plan: {0} workers are more than a table can name")]
    TooManySeats(usize),
}

/// What the user should know about a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PlanWarning {
    /// Their workers may run on several CPUs.
    NotPinned {
        /// The slots.
        slots: Vec<u32>,
    },
    /// Several workers have one home.
    Shared {
        /// The CPUs.
        cpus: CpuSet,
        /// Most workers on one of them.
        most: usize,
    },
    /// Their workers may run on CPUs only that are all offline.
    Offline {
        /// The slots.
        slots: Vec<u32>,
    },
}

/// Plans a table.
pub fn plan(topology: &Topology, request: &Request) -> Result<Plan, PlanError> {
    let mut seats = request.seats.clone();
    seats.sort_unstable_by_key(|seat| seat.slot);
    if let Some(pair) = seats.windows(2).find(|pair| pair[0].slot == pair[1].slot) {
        return Err(PlanError::DuplicateSlot(pair[0].slot));
    }
    if seats.is_empty() {
        return Err(PlanError::NoSeats);
    }
    if seats.iter().any(|seat| seat.slot == NO_SLOT) {
        return Err(PlanError::ReservedSlot);
    }
    let parts = cast(&seats).ok_or(PlanError::NoWeight)?;
    let parts: Vec<&Seat> = parts.iter().collect();
    let mut plan = match request.policy {
        Policy::Cpu => cpu::plan(topology, &parts, &request.hot),
        policy => spread::plan(topology, policy, &parts),
    }?;
    for (plan, asked) in plan.seats.iter_mut().zip(seats) {
        (plan.weight, plan.role) = (asked.weight, asked.role);
    }
    Ok(plan)
}

/// The seats with what they do now for weight and role: weight only for those that take part, and
/// standing by only for those that could. `None` where nobody could take part.
fn cast(seats: &[Seat]) -> Option<Vec<Seat>> {
    let can = |role| seats.iter().any(|seat| seat.role == role && seat.weight > 0);
    let serving = [Role::Active, Role::Standby].into_iter().find(|role| can(*role))?;
    let part = |seat: &Seat| match seat.role {
        Role::Drained => Seat { weight: 0, ..seat.clone() },
        role if role == serving || seat.weight == 0 => Seat { role: Role::Active, ..seat.clone() },
        _ => Seat { weight: 0, role: Role::Standby, ..seat.clone() },
    };
    Some(seats.iter().map(part).collect())
}

impl Seat {
    /// Whether it takes no part, and is in the plan only where nobody better is.
    fn is_idle(&self) -> bool {
        self.weight == 0 && self.role == Role::Active
    }
}

impl Plan {
    /// The entries of `row`; none beyond the last row.
    pub fn row(&self, row: u32) -> &[Row] {
        let lanes = self.lanes as usize;
        let start = row as usize * lanes;
        self.table.get(start..start + lanes).unwrap_or_default()
    }
}

impl SeatPlan {
    /// Before anything is planned: what the topology says of the seat.
    fn new(seat: &Seat, online: &CpuSet) -> Self {
        let usable = seat.cpus.intersection(online);
        let pinned = seat.cpus.len() == 1 && !usable.is_empty();
        Self {
            slot: seat.slot,
            weight: seat.weight,
            role: seat.role,
            home: None,
            pinned,
            floating: !pinned && (usable.is_empty() || online.is_subset(&usable)),
            entries: 0,
            cpus: CpuSet::default(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn policy_name<S: Serializer>(policy: &Policy, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(policy.name())
}

/// A role's name.
pub fn role_str(role: Role) -> &'static str {
    match role {
        Role::Active => "active",
        Role::Standby => "standby",
        Role::Drained => "drained",
        Role::Superseded => "superseded",
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn role_name<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(role_str(*role))
}

pub(crate) fn role_of_name<'de, D: Deserializer<'de>>(from: D) -> Result<Role, D::Error> {
    let name = String::deserialize(from)?;
    let role = Role::ALL.into_iter().find(|&role| role_str(role) == name);
    role.ok_or_else(|| D::Error::custom(format!("`{name}` is no role")))
}

#[cfg(test)]
mod tests;
