//! What the program counts: one index per return path, and per slot one per way of getting there.
//!
//! Exactly one counter rises per run of the program, so their sum is the number of runs. Runs are
//! not connections: SYN cookies run it twice, stray segments run it too.

/// Ways for a run to end without a selection; the kernel's hash then decides among all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Miss {
    /// `CONFIG` is not filled, or by another ABI version.
    NoConfig = 0,
    /// The CPU has no row: its id is at or above [`crate::abi::View::rows`].
    NoRow = 1,
    /// The row points nowhere.
    EmptyRow = 2,
    /// Neither choice could be selected: both slots empty, or sockets of another group.
    NoSocket = 3,
}

impl Miss {
    /// Every way, in the order of their indices.
    pub const ALL: [Self; 4] = [Self::NoConfig, Self::NoRow, Self::EmptyRow, Self::NoSocket];

    /// The name in `status` and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoConfig => "no_config",
            Self::NoRow => "no_row",
            Self::EmptyRow => "empty_row",
            Self::NoSocket => "no_socket",
        }
    }

    /// Index in `COUNTERS`.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

/// Ways for a run to end with a slot selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Hit {
    /// The row's first choice.
    First = 0,
    /// The second, because the first could not be selected.
    Second = 1,
    /// The second, because the first was over its limit.
    Spilled = 2,
    /// Chosen for a connection whose listener closed.
    Migrated = 3,
}

impl Hit {
    /// Every way, in the order of their indices.
    pub const ALL: [Self; 4] = [Self::First, Self::Second, Self::Spilled, Self::Migrated];

    /// The name in `status` and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Spilled => "spilled",
            Self::Migrated => "migrated",
        }
    }

    /// Index in `COUNTERS` for this way to `slot`.
    #[inline(always)]
    pub const fn index(self, slot: u32) -> u32 {
        SLOTS_AT + slot * HITS + self as u32
    }
}

/// Index of the round-robin cursor: not a count of runs, but this CPU's next row.
pub const CURSOR: u32 = Miss::ALL.len() as u32;

/// Where the slots' counters begin.
const SLOTS_AT: u32 = 8;
const HITS: u32 = Hit::ALL.len() as u32;
const _: () = assert!(CURSOR < SLOTS_AT);

/// Number of entries `COUNTERS` needs for `slots` slots.
pub const fn counters(slots: u32) -> u32 {
    SLOTS_AT + slots * HITS
}
