//! A mapping as it was read, from the pinned maps or from `status`, and whether it is right.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use reuseport_common::abi::NO_SLOT;
use reuseport_user::bpf::BpfError;
use reuseport_user::bpf::pins;
use serde_json::Value;

/// A worker that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    pub(super) cookie: u64,
    pub(super) cpu: u32,
    /// Whether it accepts.
    pub(super) runs: bool,
}

/// Who gets what.
#[derive(Debug, Default)]
pub(super) struct Mapping {
    rows: Vec<Row>,
    /// Slots by cookie.
    seats: HashMap<u64, u32>,
    pub(super) evicted: BTreeSet<u32>,
}

/// A CPU's row.
#[derive(Debug)]
struct Row {
    cpu: u32,
    first: BTreeSet<u32>,
    /// Slots that connections are sent to, given who is evicted.
    gets: BTreeSet<u32>,
}

impl Mapping {
    /// From the maps pinned in a directory.
    pub(super) fn of_pins(directory: &Path) -> Result<Self, BpfError> {
        let maps = pins::maps(directory)?;
        let seats = maps.sockets.seats()?;
        let mut evicted = BTreeSet::new();
        for &slot in seats.values() {
            if maps.load(slot).is_evicted() {
                evicted.insert(slot);
            }
        }
        let lanes = maps.config()?.live().lanes.max(1) as usize;
        let goes_to = |row: &reuseport_common::abi::Row| {
            let spills = evicted.contains(&row.first)
                && row.second != NO_SLOT
                && !evicted.contains(&row.second);
            if spills { row.second } else { row.first }
        };
        let rows = maps.rows()?;
        let rows = (0..).zip(rows.chunks(lanes)).map(|(cpu, entries)| Row {
            cpu,
            first: entries.iter().map(|row| row.first).collect(),
            gets: entries.iter().map(goes_to).collect(),
        });
        Ok(Self { rows: rows.collect(), seats, evicted })
    }

    /// From what `status` says of a group.
    pub(super) fn of_status(status: &Value) -> Self {
        let mut mapping = Self::default();
        let number = |value: &Value| value.as_u64().expect("a number");
        for listener in status["listeners"].as_array().expect("listeners") {
            let Some(slot) = listener["slot"].as_u64() else { continue };
            mapping.seats.insert(number(&listener["cookie"]), slot as u32);
            if listener["evicted"] == true {
                mapping.evicted.insert(slot as u32);
            }
        }
        for row in status["steering"]["rows"].as_array().expect("rows") {
            let slots = |name: &str| -> BTreeSet<u32> {
                let slots = row[name].as_array().expect("slots");
                slots.iter().map(|slot| number(slot) as u32).collect()
            };
            let (first, mut gets) = (slots("first"), slots("first"));
            if !first.is_disjoint(&mapping.evicted) {
                gets.extend(slots("second"));
            }
            gets.retain(|slot| !mapping.evicted.contains(slot));
            mapping.rows.push(Row { cpu: number(&row["row"]) as u32, first, gets });
        }
        mapping
    }

    /// What is wrong, given who is there: everybody has a seat, every row sends its connections to
    /// workers that accept, and those of a CPU have its row to themselves while they do.
    pub(super) fn check(&self, live: &[Live]) -> Result<(), String> {
        let slot = |it: &Live| self.seats.get(&it.cookie).copied();
        if let Some(it) = live.iter().find(|it| slot(it).is_none()) {
            return Err(format!("no seat for {it:?}"));
        }
        let running: BTreeSet<u32> = live.iter().filter(|it| it.runs).filter_map(slot).collect();
        for row in &self.rows {
            if row.gets.is_empty() || !row.gets.is_subset(&running) {
                return Err(format!("{row:?}, but those who accept are {running:?}"));
            }
            let own = live.iter().filter(|it| it.cpu == row.cpu);
            let own: BTreeSet<u32> = own.filter_map(slot).collect();
            let well: BTreeSet<u32> = own
                .intersection(&running)
                .copied()
                .filter(|it| !self.evicted.contains(it))
                .collect();
            let right = well.is_subset(&row.first) && row.first.is_subset(&own);
            if !well.is_empty() && !right {
                return Err(format!("{row:?}, of which {own:?} are the CPU's own, {well:?} well"));
            }
        }
        Ok(())
    }
}
