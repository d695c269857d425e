//! The maps of a loaded program, typed; the same whether just created or opened from their pins.

use std::fmt;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::{Array, Map, MapData, MapError, MapType, PerCpuArray, PerCpuValues};
use reuseport_common::abi::{self, ABI_VERSION, Config, EVICTED, Load, Row, SeatState, View};
use reuseport_common::stats::{self, Hit, Miss};
use serde::Serialize;

use super::BpfError;
use super::sockarray::SockArray;
use crate::sys::mapped::SharedLoads;

type ConfigBytes = [u8; size_of::<Config>()];
type SeatBytes = [u8; size_of::<SeatState>()];

/// Names of every map, in the order they are pinned.
pub(super) const NAMES: [&str; 6] =
    [abi::CONFIG, abi::TABLE, abi::SOCKETS, abi::LOAD, abi::SEATS, abi::COUNTERS];

/// Where maps come from, by name: pins, or descriptors.
pub(super) type Source<'a> = dyn Fn(&str) -> Result<MapData, BpfError> + 'a;

/// The maps of one group.
///
/// # Minimum kernel version
///
/// 5.5, for `LOAD`, which is mapped into memory.
pub struct Maps {
    config: Array<MapData, ConfigBytes>,
    table: Array<MapData, u64>,
    /// Slot to socket.
    pub sockets: SockArray,
    loads: Arc<SharedLoads>,
    seats: Array<MapData, SeatBytes>,
    counters: PerCpuArray<MapData, u64>,
}

/// Selections per slot and misses per reason, on one CPU or summed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// By slot: first, second, spilled, migrated ([`Hit::ALL`]'s order).
    pub slots: Vec<[u64; Hit::ALL.len()]>,
    /// By reason, in [`Miss::ALL`]'s order.
    pub misses: [u64; Miss::ALL.len()],
}

impl Maps {
    /// Opens the maps that `source` gives by name; [`BpfError::Shape`] for those of another
    /// version's ABI.
    pub(super) fn open(source: &Source<'_>) -> Result<Self, BpfError> {
        // First: another version may have other maps.
        check(&open(source, abi::CONFIG)?)?;
        Self::open_unfilled(source)
    }

    /// As [`Maps::open`], before `CONFIG` is filled.
    pub(super) fn open_unfilled(source: &Source<'_>) -> Result<Self, BpfError> {
        Ok(Self {
            config: open(source, abi::CONFIG)?,
            table: open(source, abi::TABLE)?,
            sockets: SockArray::open(source)?,
            loads: Arc::new(map_loads(&source(abi::LOAD)?)?),
            seats: open(source, abi::SEATS)?,
            counters: open(source, abi::COUNTERS)?,
        })
    }

    /// `LOAD` in memory, for whoever writes it often.
    pub(crate) fn loads(&self) -> Arc<SharedLoads> {
        Arc::clone(&self.loads)
    }

    /// What `CONFIG` holds.
    pub fn config(&self) -> Result<Config, BpfError> {
        Ok(bytemuck::pod_read_unaligned(&self.config.get(&0, 0)?))
    }

    /// Replaces `CONFIG`.
    pub fn set_config(&mut self, config: &Config) -> Result<(), BpfError> {
        let bytes: ConfigBytes = bytemuck::cast(*config);
        Ok(self.config.set(0, bytes, 0)?)
    }

    /// Entries in each half of the table.
    pub fn half(&self) -> u32 {
        self.table.len() / 2
    }

    /// The live view's entries.
    pub fn rows(&self) -> Result<Vec<Row>, BpfError> {
        let view = self.config()?.live();
        let entries = view.rows.saturating_mul(view.lanes).min(self.table.len());
        (view.base..view.base + entries)
            .map(|index| Ok(bytemuck::cast(self.table.get(&index, 0)?)))
            .collect()
    }

    /// Makes `rows` the live table in one step: they are written into the idle half, and then one
    /// word of `CONFIG` switches over. A reader sees the old plan or the new one, never a mixture.
    /// Counts as a new generation; `view.base` is chosen here.
    pub fn publish(&mut self, view: View, rows: &[Row]) -> Result<Config, BpfError> {
        self.switch(view, rows, 1)
    }

    /// As [`Maps::publish`], for what belongs to the generation in force.
    pub fn amend(&mut self, view: View, rows: &[Row]) -> Result<Config, BpfError> {
        self.switch(view, rows, 0)
    }

    fn switch(&mut self, mut view: View, rows: &[Row], newer: u32) -> Result<Config, BpfError> {
        let mut config = self.config()?;
        if rows.len() > config.half as usize {
            return Err(BpfError::Shape(format!("{} rows for {}", rows.len(), config.half)));
        }
        let idle = (config.active & 1) ^ 1;
        view.base = idle * config.half;
        for (index, &row) in (view.base..).zip(rows) {
            self.table.set(index, bytemuck::cast::<Row, u64>(row), 0)?;
        }
        config.views[idle as usize] = view;
        self.set_config(&config)?;
        config.active = idle;
        config.generation = config.generation.wrapping_add(newer);
        self.set_config(&config)?;
        Ok(config)
    }

    /// What is published of the slot now; nothing for one beyond the last.
    pub fn load(&self, slot: u32) -> Load {
        self.loads.load(slot)
    }

    /// Evicts the slot or puts it back, in one store; what its worker publishes stays as it is.
    pub fn set_evicted(&self, slot: u32, evicted: bool) {
        let Some(limit) = self.loads.limit(slot) else { return };
        if evicted {
            limit.fetch_or(EVICTED, Relaxed);
        } else {
            limit.fetch_and(!EVICTED, Relaxed);
        }
    }

    /// What was wanted for the socket in each slot, or for one that sat there before.
    pub fn seats(&self) -> Result<Vec<SeatState>, BpfError> {
        (0..self.seats.len()).map(|slot| Ok(bytemuck::cast(self.seats.get(&slot, 0)?))).collect()
    }

    /// Sets what `slot` is to get. It takes effect with the next plan.
    pub fn set_seat(&mut self, slot: u32, state: SeatState) -> Result<(), BpfError> {
        Ok(self.seats.set(slot, bytemuck::cast::<SeatState, SeatBytes>(state), 0)?)
    }

    /// Forgets `slot`'s load, seat and counts: the next socket in it is another worker's.
    pub fn reset_slot(&mut self, slot: u32) -> Result<(), BpfError> {
        self.loads.require_writable()?;
        for word in [self.loads.limit(slot), self.loads.pending(slot)].into_iter().flatten() {
            word.store(0, Relaxed);
        }
        self.set_seat(slot, SeatState::default())?;
        for hit in Hit::ALL {
            let cpus = self.counters.get(&hit.index(slot), 0)?.len();
            let zeroes = PerCpuValues::try_from(vec![0u64; cpus])?;
            self.counters.set(hit.index(slot), zeroes, 0)?;
        }
        Ok(())
    }

    /// Adds how often the slot was selected so far, by receiving CPU, to `by_cpu`.
    pub fn selections(&self, slot: u32, by_cpu: &mut Vec<u64>) -> Result<(), BpfError> {
        for hit in Hit::ALL {
            let values = self.counters.get(&hit.index(slot), 0)?;
            by_cpu.resize(values.len(), 0);
            for (sum, count) in by_cpu.iter_mut().zip(values.iter()) {
                *sum = sum.wrapping_add(*count);
            }
        }
        Ok(())
    }

    /// Counters by CPU id.
    pub fn counts(&self) -> Result<Vec<Counts>, BpfError> {
        let slots = self.sockets.slots();
        let mut cpus: Vec<Counts> = Vec::new();
        let mut read = |index: u32, place: &dyn Fn(&mut Counts, u64)| -> Result<(), BpfError> {
            let values = self.counters.get(&index, 0)?;
            cpus.resize_with(values.len(), || Counts {
                slots: vec![[0; Hit::ALL.len()]; slots as usize],
                ..Counts::default()
            });
            for (cpu, &value) in cpus.iter_mut().zip(values.iter()) {
                place(cpu, value);
            }
            Ok(())
        };
        for miss in Miss::ALL {
            read(miss.index(), &|counts, value| counts.misses[miss as usize] = value)?;
        }
        for slot in 0..slots {
            for hit in Hit::ALL {
                let place =
                    |counts: &mut Counts, value| counts.slots[slot as usize][hit as usize] = value;
                read(hit.index(slot), &place)?;
            }
        }
        Ok(cpus)
    }
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

/// Opens a map as the kind that it must be.
fn open<M: TryFrom<Map, Error = MapError>>(source: &Source<'_>, name: &str) -> Result<M, BpfError> {
    let map = Map::from_map_data(source(name)?)?;
    map.try_into().map_err(|error| BpfError::Shape(format!("{name}: {error}")))
}

/// Maps `LOAD` into memory, after a look at its shape.
fn map_loads(load: &MapData) -> Result<SharedLoads, BpfError> {
    let info = load.info()?;
    let shape = (info.map_type()?, info.key_size(), info.value_size() as usize);
    if shape != (MapType::Array, 4, size_of::<Load>()) {
        return Err(BpfError::Shape(format!("{} is not an array of loads", abi::LOAD)));
    }
    Ok(SharedLoads::map(load.fd().as_fd(), info.max_entries())?)
}

/// Whether `CONFIG` is of this version's ABI, whose number comes first in every version.
fn check(config: &Array<MapData, ConfigBytes>) -> Result<(), BpfError> {
    let config: Config = bytemuck::pod_read_unaligned(&config.get(&0, 0)?);
    match config.abi {
        ABI_VERSION => Ok(()),
        other => Err(BpfError::Shape(format!("ABI {other}, this version speaks {ABI_VERSION}"))),
    }
}

impl Counts {
    /// Adds another CPU's counts.
    pub fn add(&mut self, other: &Self) {
        self.slots.resize(self.slots.len().max(other.slots.len()), [0; Hit::ALL.len()]);
        for (mine, theirs) in self.slots.iter_mut().zip(&other.slots) {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine += theirs;
            }
        }
        for (mine, theirs) in self.misses.iter_mut().zip(other.misses) {
            *mine += theirs;
        }
    }

    /// Runs of the program that these counts stand for.
    pub fn runs(&self) -> u64 {
        self.slots.iter().flatten().sum::<u64>() + self.misses.iter().sum::<u64>()
    }
}

/// Map sizes for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Slots.
    pub slots: u32,
    /// Entries in each half of the table.
    pub half: u32,
}

impl Sizes {
    /// Room for `listeners` and a table of `entries`, and for about as many more: within it a new
    /// plan is a write to maps, beyond it a new program has to be loaded.
    pub fn for_group(listeners: usize, entries: usize) -> Self {
        let slots = (listeners * 2).next_power_of_two().max(64) as u32;
        let half = (entries * 2).next_power_of_two().max(64) as u32;
        Self { slots, half }
    }

    /// Entries of `COUNTERS`.
    pub(super) fn counters(self) -> u32 {
        stats::counters(self.slots)
    }
}
