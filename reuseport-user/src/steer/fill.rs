//! Slots: which listener sits where, and putting it there.

use std::collections::HashMap;

use crate::bpf::maps::Maps;
use crate::bpf::sockarray::SetError;
use crate::discover::acquire::{AcquireError, with_listener};
use crate::model::{Group, Listener};

use super::SteerError;
use super::attach::of_maps;

/// Slot of each listener, by cookie.
pub(super) type Slots = HashMap<u64, u32>;

/// Keeps the listeners that already sit where they sit, and gives the others the lowest free slots
/// in order of creation.
pub(super) fn assign(listeners: &[Listener], occupied: &[Option<u64>]) -> Slots {
    let mut slots: Slots = occupied
        .iter()
        .zip(0..)
        .filter_map(|(cookie, slot)| Some(((*cookie)?, slot)))
        .filter(|(cookie, _)| listeners.iter().any(|listener| listener.cookie == *cookie))
        .collect();
    let is_free = |slot: &u32| occupied.get(*slot as usize).is_none_or(Option::is_none);
    let mut free = (0..).filter(is_free);
    for listener in listeners {
        slots.entry(listener.cookie).or_insert_with(|| free.next().unwrap_or(u32::MAX));
    }
    slots
}

/// Puts every listener that has a slot and is not in the map yet into it, one at a time, each
/// held for microseconds. On error, what was put is taken out again.
///
/// Returns the cookies of listeners that went away meanwhile.
pub(super) fn fill(maps: &mut Maps, group: &Group, slots: &Slots) -> Result<Vec<u64>, SteerError> {
    let of = SteerError::of(&group.key);
    let occupied = maps.sockets.cookies().map_err(&of)?;
    let mut gone = Vec::new();
    let mut put = Vec::new();
    for listener in &group.listeners {
        let Some(&slot) = slots.get(&listener.cookie) else { continue };
        if occupied.get(slot as usize).copied().flatten() == Some(listener.cookie) {
            continue;
        }
        maps.reset_slot(slot).map_err(of_maps(&group.key))?;
        let sockets = &maps.sockets;
        let error = match with_listener(listener, &group.key, |fd| sockets.set(slot, fd)) {
            Ok(Ok(())) => {
                put.push(slot);
                continue;
            }
            Ok(Err(SetError::NotListening))
            | Err(
                AcquireError::Gone
                | AcquireError::NotTheOne { .. }
                | AcquireError::NotListening { .. },
            ) => {
                gone.push(listener.cookie);
                continue;
            }
            Ok(Err(SetError::Elsewhere)) => {
                SteerError::SocketTaken { group: group.key, pid: holder(listener) }
            }
            Ok(Err(source)) => SteerError::Fill { group: group.key, pid: holder(listener), source },
            Err(error) => error.into(),
        };
        for slot in put {
            maps.sockets.remove(slot).map_err(&of)?;
        }
        return Err(error);
    }
    Ok(gone)
}

fn holder(listener: &Listener) -> crate::model::Pid {
    listener.holders.first().map_or(0, |holder| holder.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Served;

    fn listeners(cookies: &[u64]) -> Vec<Listener> {
        let served = || Served::Unknown(String::new());
        let listener = |&cookie: &u64| Listener {
            cookie,
            inode: cookie,
            queued: 0,
            backlog: 0,
            holders: Vec::new(),
            served: served(),
        };
        cookies.iter().map(listener).collect()
    }

    #[test]
    fn fresh_groups_are_seated_in_order_of_creation() {
        let slots = assign(&listeners(&[10, 20, 30]), &[None; 4]);
        assert_eq!((slots[&10], slots[&20], slots[&30]), (0, 1, 2));
    }

    #[test]
    fn who_sits_stays_and_who_joins_takes_the_lowest_free_slot() {
        // 20 left slot 1; 99 in slot 3 is no longer discovered but still sits there.
        let occupied = [Some(10), None, Some(30), Some(99)];
        let slots = assign(&listeners(&[10, 30, 40, 50]), &occupied);
        assert_eq!((slots[&10], slots[&30], slots[&40], slots[&50]), (0, 2, 1, 4));
        assert_eq!(slots.len(), 4);
    }
}
