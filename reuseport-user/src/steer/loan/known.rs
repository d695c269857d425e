//! Who serves the listeners of a group on loan, kept from before anything was changed: later, busy
//! threads cannot be seen, and the pins that remembered them are gone.

use std::collections::HashMap;

use reuseport_common::abi::EVICTED;

use crate::bpf::pins::Pins;
use crate::discover::procfs;
use crate::model::{Cpu, CpuSet, Evidence, Group, Listener, Served, Worker};
use crate::steer::attach::AttachReport;
use crate::steer::intent::{Intent, Intents};
use crate::steer::{AttachOptions, SteerError};

/// The CPUs that the plan in force counts listeners on, by cookie. Refuses where workers publish
/// their loads: a server maps them once, and would go on with the maps of before.
pub(super) fn homes(
    group: &Group,
    options: &AttachOptions,
) -> Result<HashMap<u64, Cpu>, SteerError> {
    let Some(pinned) = Pins::at(&options.settings.bpffs)?.open(&group.key)? else {
        return Ok(HashMap::new());
    };
    let cookies = pinned.maps.sockets.cookies().map_err(SteerError::of(&group.key))?;
    let limited = |(slot, _)| pinned.maps.load(slot).limit & !EVICTED != 0;
    if (0..).zip(cookies).filter(|(_, cookie)| cookie.is_some()).any(limited) {
        let why = "its server publishes load limits (a `LoadGuard` of the library), which \
                   would be without effect after it until the server is started again; measure a server \
                   that sets none"
            .to_owned();
        return Err(SteerError::NotToBorrow { group: group.key, why });
    }
    let intents = Intents::read(&pinned.maps).map_err(SteerError::of(&group.key))?;
    let home = |(cookie, intent): (u64, Intent)| Some((cookie, intent.home?));
    Ok(intents.into_map().into_iter().filter_map(home).collect())
}

/// Who serves each listener, by cookie: as it was seen, or else by its home.
pub(super) fn served(group: &Group, homes: &HashMap<u64, Cpu>) -> HashMap<u64, Served> {
    let known = |it: &Listener| match (&it.served, it.holders.first()) {
        (Served::By(_), _) => Some((it.cookie, it.served.clone())),
        (Served::Unknown(_), Some(holder)) => {
            let worker = Worker {
                pid: holder.pid,
                tid: None,
                name: procfs::name(holder.pid),
                cpus: CpuSet::from([*homes.get(&it.cookie)?]),
                evidence: Evidence::Told,
            };
            Some((it.cookie, Served::By(vec![worker])))
        }
        (Served::Unknown(_), None) => None,
    };
    group.listeners.iter().filter_map(known).collect()
}

/// Listeners whose home is not where `planned`, which goes by what is seen, would count them: the
/// user placed them, by `--worker` or `--order`. They are put there again.
pub(super) fn told(planned: &[AttachReport], homes: &HashMap<u64, Cpu>) -> HashMap<u64, Served> {
    let mut told = HashMap::new();
    for report in planned {
        for (listener, slot) in report.group.listeners.iter().zip(&report.slots) {
            let seat = report.plan.seats.iter().find(|seat| seat.slot == *slot);
            let (Some(&home), Served::By(workers)) =
                (homes.get(&listener.cookie), &listener.served)
            else {
                continue;
            };
            if seat.and_then(|seat| seat.home).is_some_and(|planned| planned != home) {
                let place = |it: &Worker| Worker { cpus: CpuSet::from([home]), ..it.clone() };
                told.insert(listener.cookie, Served::By(workers.iter().map(place).collect()));
            }
        }
    }
    told
}
