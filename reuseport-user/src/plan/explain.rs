//! Plans in words.

use std::fmt;

use crate::topology::Distance;

use super::{PlanWarning, RowPlan, Why};

/// Slots that a line names before it only counts the others.
const NAMED: usize = 8;

/// `cpu 6: slot 0 (same LLC as cpu 0, fewest entries)`; parts of a shared row with their percentage.
impl fmt::Display for RowPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offline = if self.online { "" } else { " (offline)" };
        write!(f, "cpu {}{offline}: ", self.cpu)?;
        let lanes: u32 = self.shares.iter().map(|share| share.entries).sum();
        if let [only] = self.shares.as_slice() {
            write!(f, "slot {}", only.slot)?;
        } else {
            f.write_str("slots ")?;
            for (index, share) in self.shares.iter().take(NAMED).enumerate() {
                let percent = 100.0 * f64::from(share.entries) / f64::from(lanes);
                let separator = if index == 0 { "" } else { ", " };
                let digits = usize::from(percent.fract() > 0.05);
                write!(f, "{separator}{} {percent:.digits$}%", share.slot)?;
            }
            write_more(f, self.shares.len())?;
        }
        write!(f, " ({})", self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned => f.write_str("pinned here"),
            Self::Placed => f.write_str("placed here, not pinned"),
            Self::MayRun { home } => write!(f, "may run here, placed on cpu {home}"),
            Self::Nearest { distance, home, fewest } => {
                let relation = match distance {
                    Distance::Same => "same CPU as",
                    Distance::Sibling => "SMT sibling of",
                    Distance::Llc => "same LLC as",
                    Distance::Node => "same node as",
                    Distance::Remote => "nothing nearer than",
                };
                let fewest = if *fewest { ", fewest entries" } else { "" };
                write!(f, "{relation} cpu {home}{fewest}")
            }
            Self::Widened => f.write_str("hot, shared by all"),
        }
    }
}

impl fmt::Display for PlanWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPinned { slots } => {
                write_slots(f, slots)?;
                f.write_str(" may run on several CPUs: locality is a matter of luck; use --pin")
            }
            Self::Shared { cpus, most } => write!(
                f,
                "{most} workers share one CPU (CPUs with several: {cpus}): each gets its part of \
                 that CPU's connections"
            ),
            Self::Offline { slots } => {
                write_slots(f, slots)?;
                f.write_str(
                    " may run only on CPUs that are offline: planned as if not pinned; change the \
                     affinity or bring the CPUs online, then attach again",
                )
            }
        }
    }
}

fn write_slots(f: &mut fmt::Formatter<'_>, slots: &[u32]) -> fmt::Result {
    f.write_str(if slots.len() == 1 { "slot" } else { "slots" })?;
    for (index, slot) in slots.iter().take(NAMED).enumerate() {
        write!(f, "{} {slot}", if index == 0 { "" } else { "," })?;
    }
    write_more(f, slots.len())
}

fn write_more(f: &mut fmt::Formatter<'_>, all: usize) -> fmt::Result {
    match all.saturating_sub(NAMED) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}
