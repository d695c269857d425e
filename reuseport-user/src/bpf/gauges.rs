//! What is looked at all the time: how loaded slots are, and how often they are selected.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::{MapData, MapType};
use reuseport_common::abi::{self, EVICTED, Load};
use reuseport_common::stats::Hit;

use super::BpfError;
use crate::sys::bpf;
use crate::sys::mapped::SharedLoads;

/// `LOAD`, mapped, and `COUNTERS` of one group, from their pins.
///
/// # Minimum kernel version
///
/// 5.5.
#[derive(Debug)]
pub struct Gauges {
    loads: SharedLoads,
    counters: MapData,
    values: Vec<u64>,
}

impl Gauges {
    /// Opens the pins in `directory`, which [`super::pins::maps`] has found to be of this
    /// version's ABI.
    pub fn open(directory: &Path) -> Result<Self, BpfError> {
        let load = MapData::from_pin(directory.join(abi::LOAD))?;
        let loads = SharedLoads::map(load.fd().as_fd(), load.info()?.max_entries())?;
        let counters = MapData::from_pin(directory.join(abi::COUNTERS))?;
        let info = counters.info()?;
        if info.map_type()? != MapType::PerCpuArray || info.value_size() != 8 {
            return Err(BpfError::Shape("COUNTERS is not a per-CPU array of counters".to_owned()));
        }
        Ok(Self { loads, counters, values: Vec::new() })
    }

    /// What is published of the slot now; nothing for one beyond the last.
    pub fn load(&self, slot: u32) -> Load {
        let read = |word: Option<&AtomicU32>| word.map_or(0, |word| word.load(Relaxed));
        Load { pending: read(self.loads.pending(slot)), limit: read(self.loads.limit(slot)) }
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

    /// Adds how often the slot was selected so far, by receiving CPU, to `by_cpu`.
    pub fn selections(&mut self, slot: u32, by_cpu: &mut Vec<u64>) -> Result<(), BpfError> {
        for hit in Hit::ALL {
            bpf::lookup_percpu_u64(self.counters.fd().as_fd(), hit.index(slot), &mut self.values)?;
            by_cpu.resize(self.values.len(), 0);
            for (sum, count) in by_cpu.iter_mut().zip(&self.values) {
                *sum = sum.wrapping_add(*count);
            }
        }
        Ok(())
    }
}
