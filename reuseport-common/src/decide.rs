//! The steering decision: which slot a new connection goes to.
//!
//! Pure: all that touches the kernel comes through [`Kernel`]. The BPF program implements it with
//! map look-ups and one helper call, the tests with vectors.
//!
//! The hot path is: CPU id, one table read, one load read, one `select`, one counter.

use crate::abi::{ABI_VERSION, Config, Load, NO_SLOT, Policy, Row, View};
use crate::stats::{Hit, Miss};

/// What a decision needs to know and to do.
pub trait Kernel {
    /// CPU running the protocol softirq.
    fn cpu(&self) -> u32;
    /// The connection's 4-tuple hash.
    fn hash(&self) -> u32;
    /// A random number.
    fn random(&self) -> u32;
    /// This CPU's round-robin cursor, advanced by one.
    fn turn(&self) -> u32;
    /// Entry `index` of the table; `None` beyond its end.
    fn row(&self, index: u32) -> Option<Row>;
    /// Load of `slot`; `None` where there is no such slot.
    fn load(&self, slot: u32) -> Option<Load>;
    /// Makes the socket in `slot` the verdict; false where that fails (slot empty, other group).
    fn select(&self, slot: u32) -> bool;
}

/// Why the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// A packet looks for its listener.
    Packet,
    /// A listener closes, and one of its connections looks for another.
    Migration,
}

/// How a run ended. Either way the program passes: a miss costs locality, never a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `slot` was selected.
    Selected {
        /// Where the connection goes.
        slot: u32,
        /// How it came to be chosen.
        hit: Hit,
    },
    /// The kernel's hash decides.
    Missed(Miss),
}

/// Decides one run.
///
/// A migration cannot use the CPU: it is the closing process's, so that one worker would inherit
/// everything; it is spread by hash over the same table instead.
#[inline(always)]
pub fn decide<K: Kernel>(kernel: &K, config: &Config, run: Run) -> Outcome {
    if config.abi != ABI_VERSION {
        return Outcome::Missed(Miss::NoConfig);
    }
    let view = &config.views[(config.active & 1) as usize];
    let Some(row) = find_row(kernel, view, run) else {
        return Outcome::Missed(Miss::NoRow);
    };
    if row.first == NO_SLOT {
        return Outcome::Missed(Miss::EmptyRow);
    }
    let spill = should_spill(kernel, row);
    let (one, other) = if spill { (row.second, row.first) } else { (row.first, row.second) };
    let (hit, slot) = if kernel.select(one) {
        (if spill { Hit::Spilled } else { Hit::First }, one)
    } else if other != NO_SLOT && kernel.select(other) {
        (if spill { Hit::First } else { Hit::Second }, other)
    } else {
        return Outcome::Missed(Miss::NoSocket);
    };
    let hit = if run == Run::Migration { Hit::Migrated } else { hit };
    Outcome::Selected { slot, hit }
}

/// The table entry this run reads.
#[inline(always)]
fn find_row<K: Kernel>(kernel: &K, view: &View, run: Run) -> Option<Row> {
    let entries = view.rows.wrapping_mul(view.lanes);
    let index = if view.policy == Policy::Cpu as u32 && run == Run::Packet {
        let cpu = kernel.cpu();
        if cpu >= view.rows {
            return None;
        }
        let lane = if view.lanes > 1 { scale(kernel.hash(), view.lanes) } else { 0 };
        cpu.wrapping_mul(view.lanes).wrapping_add(lane)
    } else if view.policy == Policy::Random as u32 {
        scale(kernel.random(), entries)
    } else if view.policy == Policy::RoundRobin as u32 {
        // A zeroed view has no entries: never divide by it.
        if entries == 0 {
            return None;
        }
        kernel.turn() % entries
    } else {
        scale(kernel.hash(), entries)
    };
    if index >= entries {
        return None;
    }
    kernel.row(view.base.wrapping_add(index))
}

/// Spills only from a loaded first choice to a second that has room, or that is at least not evicted
/// as the first is. One load is all that is read while the first has room.
#[inline(always)]
fn should_spill<K: Kernel>(kernel: &K, row: Row) -> bool {
    let Some(first) = kernel.load(row.first) else { return false };
    if !first.is_over() || row.second == NO_SLOT {
        return false;
    }
    let second = kernel.load(row.second).unwrap_or_default();
    !second.is_over() || (first.is_evicted() && !second.is_evicted())
}

/// Maps a uniform 32-bit value onto `0..n` without a division, as the kernel's `reciprocal_scale`.
#[inline(always)]
pub const fn scale(value: u32, n: u32) -> u32 {
    ((value as u64 * n as u64) >> 32) as u32
}

#[cfg(test)]
mod tests;
