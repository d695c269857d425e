//! `--pin`: gives each worker that may run anywhere the CPU that the plan counts it on.

use std::fs;

use serde::Serialize;

use crate::model::{Cpu, CpuSet, Group, Pid, Served, Worker};
use crate::plan::Plan;
use crate::sys::sched;

use super::Notice;
use super::fill::Slots;

/// A worker that was pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinnedWorker {
    /// The process.
    pub pid: Pid,
    /// The thread; `None` for all threads of the process.
    pub tid: Option<Pid>,
    /// Where it runs now.
    pub cpu: Cpu,
    /// Where it could run before.
    pub before: CpuSet,
}

/// Pins the workers of listeners that are not pinned; a worker of several listeners is left alone.
pub(super) fn pin_workers(
    group: &Group,
    slots: &Slots,
    plan: &Plan,
) -> (Vec<PinnedWorker>, Vec<Notice>) {
    let mut pinned = Vec::new();
    let mut notices = Vec::new();
    let workers = |group: &Group| -> Vec<(u64, Worker)> {
        let of = |it: &crate::model::Listener| match &it.served {
            Served::By(workers) => {
                workers.iter().map(|worker| (it.cookie, worker.clone())).collect()
            }
            Served::Unknown(_) => Vec::new(),
        };
        group.listeners.iter().flat_map(of).collect()
    };
    let all = workers(group);
    for (cookie, worker) in &all {
        let Some(&slot) = slots.get(cookie) else { continue };
        let Some(seat) = plan.seats.iter().find(|seat| seat.slot == slot) else { continue };
        let Some(cpu) = seat.home.filter(|_| !seat.pinned) else { continue };
        let name =
            worker.tid.map_or(format!("{}", worker.pid), |tid| format!("{}/{tid}", worker.pid));
        let same = |other: &&(u64, Worker)| other.1.pid == worker.pid && other.1.tid == worker.tid;
        if all.iter().filter(same).count() > 1 {
            notices.push(Notice::new(
                format!("worker {name} serves several listeners and was not pinned"),
                "pin it yourself with `taskset`, then attach again",
            ));
            continue;
        }
        match pin(worker, cpu) {
            Ok(()) => pinned.push(PinnedWorker {
                pid: worker.pid,
                tid: worker.tid,
                cpu,
                before: worker.cpus.clone(),
            }),
            Err(error) => notices.push(Notice::new(
                format!("worker {name} could not be pinned to CPU {cpu}: {error}"),
                "pin it yourself (`taskset -pc`, systemd CPUAffinity=), then attach again; pinning \
                 other users' processes takes CAP_SYS_NICE",
            )),
        }
    }
    (pinned, notices)
}

fn pin(worker: &Worker, cpu: Cpu) -> Result<(), crate::sys::SyscallError> {
    let cpus = CpuSet::from([cpu]);
    if let Some(tid) = worker.tid {
        return sched::set_affinity(tid, &cpus);
    }
    sched::set_affinity(worker.pid, &cpus)?;
    let tasks = fs::read_dir(format!("/proc/{}/task", worker.pid)).into_iter().flatten().flatten();
    for tid in tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()) {
        match sched::set_affinity(tid, &cpus) {
            // A thread that ended meanwhile needs no CPU.
            Err(error) if error.errno() == libc::ESRCH => {}
            result => result?,
        }
    }
    Ok(())
}
