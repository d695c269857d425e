//! What happened between two snapshots, in words: the events of `top` where no agent tells its own.

use std::collections::BTreeMap;

use super::Snapshot;
use crate::bpf::owner::Attached;
use crate::model::{GroupKey, Served};
use crate::steer::GroupStatus;
use crate::steer::status::ListenerStatus;

/// Something that happened to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The group.
    pub group: GroupKey,
    /// What, in words.
    pub what: String,
}

/// What is different in `later`, group by group.
pub fn changes(earlier: &Snapshot, later: &Snapshot) -> Vec<Change> {
    let mut found = Vec::new();
    for now in &later.groups {
        let whats = match earlier.group(&now.group) {
            Some(then) => of_group(then, now),
            None => vec!["appeared".to_owned()],
        };
        found.extend(whats.into_iter().map(|what| Change { group: now.group, what }));
    }
    let gone = earlier.groups.iter().filter(|then| later.group(&then.group).is_none());
    found.extend(gone.map(|then| Change { group: then.group, what: "is gone".to_owned() }));
    found
}

fn of_group(then: &GroupStatus, now: &GroupStatus) -> Vec<String> {
    let mut found = Vec::new();
    match (&then.steering, &now.steering) {
        (None, None) => {}
        (None, Some(_)) => found.push("is steered now".to_owned()),
        (Some(_), None) => found.push("is steered no more".to_owned()),
        (Some(then), Some(now)) => {
            if then.program_id != now.program_id {
                found.push(format!("program {} replaced {}", now.program_id, then.program_id));
            }
            if then.generation != now.generation {
                found.push(format!("new plan: generation {}", now.generation));
            }
            if then.policy != now.policy {
                found.push(format!("policy {}", now.policy.unwrap_or("unknown")));
            }
        }
    }
    if then.attached != now.attached {
        let steering = now.steering.as_ref();
        found.extend(match &now.attached {
            Attached::Nothing => Some("no program is attached any more".to_owned()),
            Attached::Classic => Some("a classic BPF program was attached".to_owned()),
            Attached::Program { id } if steering.is_none_or(|it| it.program_id != *id) => {
                Some(format!("another program was attached: {id}"))
            }
            Attached::Program { .. } | Attached::Unknown { .. } => None,
        });
    }
    found.extend(listeners(then, now));
    found
}

/// Who came, went and moved.
fn listeners(then: &GroupStatus, now: &GroupStatus) -> Vec<String> {
    fn by_cookie(group: &GroupStatus) -> BTreeMap<u64, &ListenerStatus> {
        group.listeners.iter().map(|it| (it.listener.cookie, it)).collect()
    }
    let (then, now) = (by_cookie(then), by_cookie(now));
    let mut found = Vec::new();
    for it in then.iter().filter(|(cookie, _)| !now.contains_key(cookie)).map(|(_, it)| it) {
        found.push(match it.slot {
            Some(slot) => format!("{} is gone from slot {slot}", name(it)),
            None => format!("{} is gone", name(it)),
        });
    }
    for (cookie, it) in &now {
        let before = then.get(cookie);
        if before.is_none() && it.slot.is_none() {
            found.push(format!("{} joined", name(it)));
        }
        match (before.and_then(|before| before.slot), it.slot) {
            (before, Some(slot)) if before != Some(slot) => {
                found.push(format!("{} took slot {slot}", name(it)));
            }
            (Some(slot), None) => found.push(format!("{} lost slot {slot}", name(it))),
            _ => {}
        }
        let cpus = it.listener.cpus();
        if before.is_some_and(|before| before.listener.cpus() != cpus) {
            found.push(format!("{} may run on CPU {cpus} now", name(it)));
        }
    }
    found
}

/// Who serves a listener, or its cookie.
fn name(it: &ListenerStatus) -> String {
    match &it.listener.served {
        Served::Unknown(_) => format!("listener {}", it.listener.cookie),
        served @ Served::By(_) => served.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::test::{group, listener, snapshot};
    use super::*;

    fn whats(then: &GroupStatus, now: &GroupStatus) -> Vec<String> {
        let pair = [then, now].map(|it| snapshot(1, vec![it.clone()]));
        changes(&pair[0], &pair[1]).into_iter().map(|change| change.what).collect()
    }

    #[test]
    fn nothing_happened_nothing_is_said() {
        let then = group(vec![listener(10, Some(0), 0), listener(11, Some(1), 1)]);
        assert_eq!(whats(&then, &then), [""; 0]);
    }

    #[test]
    fn workers_that_come_go_and_move_are_told() {
        let then = group(vec![listener(10, Some(0), 0), listener(11, Some(1), 1)]);
        let now =
            group(vec![listener(11, Some(1), 0), listener(12, Some(0), 0), listener(13, None, 1)]);
        assert_eq!(
            whats(&then, &now),
            [
                "worker 10 is gone from slot 0",
                "worker 11 may run on CPU 0 now",
                "worker 12 took slot 0",
                "worker 13 joined",
            ]
        );
    }

    #[test]
    fn plans_programs_and_groups_are_told() {
        let then = group(vec![listener(10, Some(0), 0)]);
        let mut now = then.clone();
        let steering = now.steering.as_mut().unwrap();
        steering.generation += 1;
        steering.program_id = 8;
        now.attached = Attached::Program { id: 8 };
        assert_eq!(whats(&then, &now), ["program 8 replaced 7", "new plan: generation 2"]);
        now.attached = Attached::Program { id: 9 };
        assert_eq!(whats(&then, &now)[2..], ["another program was attached: 9"]);
        now.steering = None;
        now.attached = Attached::Nothing;
        assert_eq!(
            whats(&then, &now),
            ["is steered no more", "no program is attached any more", "worker 10 took slot 0"][..2]
        );
        let gone = changes(&snapshot(1, vec![then.clone()]), &snapshot(2, Vec::new()));
        assert_eq!(gone[0].what, "is gone");
        let appeared = changes(&snapshot(1, Vec::new()), &snapshot(2, vec![then]));
        assert_eq!(appeared[0].what, "appeared");
    }
}
