//! What the user knows better: `--worker PID[/TID]=CPUS` and `--order CPUS`.

use crate::discover::procfs;
use crate::model::{Cpu, CpuSet, Evidence, Group, Listener, Pid, Served, Worker};

/// Who serves what, as told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Process, thread if one is meant, and the CPUs it runs on.
    pub workers: Vec<(Pid, Option<Pid>, CpuSet)>,
    /// CPU of the first, second, ... listener of each group, in the order of [`Group::listeners`].
    pub order: Option<Vec<Cpu>>,
}

/// A worker that is known by its name, for as long as it is called so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedWorker {
    /// `comm` of the process or thread.
    pub name: String,
    /// CPUs it runs on.
    pub cpus: CpuSet,
}

/// Says of the group's listeners who serves them and where, as far as names tell: of those whose worker
/// was found, the CPUs; of those whose worker is unknown, both.
pub(crate) fn apply_names(named: &[NamedWorker], group: &mut Group) {
    let of = |name: &str| named.iter().find(|worker| worker.name == name);
    for listener in &mut group.listeners {
        match &mut listener.served {
            Served::By(workers) => {
                for worker in workers {
                    if let Some(told) = of(&worker.name) {
                        tell(worker, &told.cpus);
                    }
                }
            }
            Served::Unknown(_) => {
                let told = listener.holders.iter().find_map(|holder| {
                    let worker = of(&procfs::name(holder.pid))?;
                    Some((holder.pid, worker))
                });
                if let Some((pid, worker)) = told {
                    listener.served = by(pid, None, &worker.cpus, &|_, _| worker.name.clone());
                }
            }
        }
    }
}

/// An override that fits nothing. Applying it in part would steer wrongly, so nothing was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OverrideError {
    /// The process or thread serves none of the listeners.
    #[error(
        "--worker {worker}: that process or thread serves none of the listeners found and holds none \
         whose worker is unknown; these processes hold them: {holders}"
    )]
    UnusedWorker {
        /// As it was given, without the CPUs.
        worker: String,
        /// Processes that hold listeners.
        holders: String,
    },
    /// No such CPU, and there never will be.
    #[error("there is no CPU {cpu} on this machine: --worker and --order take some of {possible}")]
    NoSuchCpu {
        /// As it was given.
        cpu: Cpu,
        /// CPUs that may be online at some time.
        possible: CpuSet,
    },
    /// More CPUs than listeners, or fewer.
    #[error(
        "--order names {cpus} CPUs, but the largest group has {listeners} listeners: name one for each"
    )]
    OrderLength {
        /// CPUs in the list.
        cpus: usize,
        /// Listeners of the largest group.
        listeners: usize,
    },
}

impl Overrides {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty() && self.order.is_none()
    }

    /// Refuses CPUs that are not among the `possible` ones; those that are only offline may be meant.
    pub fn check(&self, possible: &CpuSet) -> Result<(), OverrideError> {
        let told = self.workers.iter().flat_map(|(.., cpus)| cpus.iter());
        let mut all = told.chain(self.order.iter().flatten().copied());
        match all.find(|&cpu| !possible.contains(cpu)) {
            Some(cpu) => Err(OverrideError::NoSuchCpu { cpu, possible: possible.clone() }),
            None => Ok(()),
        }
    }

    /// Changes `served` of the listeners that the overrides speak of; changes nothing on error.
    ///
    /// `--order` first, then the more specific `--worker`.
    pub fn apply(&self, groups: &mut [Group]) -> Result<(), OverrideError> {
        self.apply_with(groups, &|pid, tid| procfs::thread_name(pid, tid.unwrap_or(pid)))
    }

    /// As [`Overrides::apply`], with a way to name workers that discovery did not name.
    fn apply_with(
        &self,
        groups: &mut [Group],
        name: &dyn Fn(Pid, Option<Pid>) -> String,
    ) -> Result<(), OverrideError> {
        let mut changed = groups.to_vec();
        if let Some(order) = &self.order {
            apply_order(order, &mut changed, name)?;
        }
        // Unidentified listeners go to the flags of their process one by one, so they are counted
        // before any flag makes one identified.
        let mut pool = self.unidentified(&changed);
        for (pid, tid, cpus) in &self.workers {
            let used = match tid {
                None => apply_process(*pid, cpus, &mut changed, name),
                Some(tid) => apply_thread(*pid, *tid, cpus, &mut changed, &mut pool, name),
            };
            if !used {
                let worker = tid.map_or(format!("{pid}"), |tid| format!("{pid}/{tid}"));
                return Err(OverrideError::UnusedWorker { worker, holders: holders(groups) });
            }
        }
        groups.clone_from_slice(&changed);
        Ok(())
    }

    /// Listeners whose thread is unknown, by process in order of descriptor: (pid, fd, group,
    /// listener).
    fn unidentified(&self, groups: &[Group]) -> Vec<(Pid, i32, usize, usize)> {
        let mut pool = Vec::new();
        for (group_index, group) in groups.iter().enumerate() {
            for (index, listener) in group.listeners.iter().enumerate() {
                for holder in &listener.holders {
                    let is_open = match &listener.served {
                        Served::Unknown(_) => true,
                        Served::By(workers) => workers
                            .iter()
                            .any(|worker| worker.pid == holder.pid && worker.tid.is_none()),
                    };
                    if is_open && self.workers.iter().any(|(pid, ..)| *pid == holder.pid) {
                        pool.push((holder.pid, holder.fd, group_index, index));
                    }
                }
            }
        }
        pool.sort_unstable();
        pool.dedup_by_key(|&mut (pid, _, group, listener)| (pid, group, listener));
        pool
    }
}

/// The k-th listener runs on the k-th CPU.
fn apply_order(
    order: &[Cpu],
    groups: &mut [Group],
    name: &dyn Fn(Pid, Option<Pid>) -> String,
) -> Result<(), OverrideError> {
    let listeners = groups.iter().map(|group| group.listeners.len()).max().unwrap_or(0);
    if order.len() != listeners {
        return Err(OverrideError::OrderLength { cpus: order.len(), listeners });
    }
    for group in groups {
        for (listener, &cpu) in group.listeners.iter_mut().zip(order) {
            let cpus = CpuSet::from([cpu]);
            match &mut listener.served {
                Served::By(workers) => workers.iter_mut().for_each(|worker| tell(worker, &cpus)),
                Served::Unknown(_) => {
                    if let Some(holder) = listener.holders.first() {
                        listener.served = by(holder.pid, None, &cpus, name);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Sets the CPUs of whatever a process serves; false when it serves nothing.
fn apply_process(
    pid: Pid,
    cpus: &CpuSet,
    groups: &mut [Group],
    name: &dyn Fn(Pid, Option<Pid>) -> String,
) -> bool {
    let mut used = false;
    let holds = |listener: &Listener| listener.holders.iter().any(|holder| holder.pid == pid);
    let unknown =
        |listener: &&Listener| matches!(listener.served, Served::Unknown(_)) && holds(listener);
    // A process that holds one unknown listener means that one, whoever else holds it.
    let all = || groups.iter().flat_map(|group| &group.listeners);
    let only_one = all().filter(unknown).count() == 1;
    for listener in groups.iter_mut().flat_map(|group| &mut group.listeners) {
        let alone = listener.holders.iter().all(|holder| holder.pid == pid);
        let held = holds(listener);
        match &mut listener.served {
            Served::By(workers) => {
                for worker in workers.iter_mut().filter(|worker| worker.pid == pid) {
                    tell(worker, cpus);
                    used = true;
                }
            }
            Served::Unknown(_) if held && (alone || only_one) => {
                listener.served = by(pid, None, cpus, name);
                used = true;
            }
            Served::Unknown(_) => {}
        }
    }
    used
}

/// Sets the CPUs of what a thread serves, or gives it the process's next unidentified listener.
fn apply_thread(
    pid: Pid,
    tid: Pid,
    cpus: &CpuSet,
    groups: &mut [Group],
    pool: &mut Vec<(Pid, i32, usize, usize)>,
    name: &dyn Fn(Pid, Option<Pid>) -> String,
) -> bool {
    let mut used = false;
    for listener in groups.iter_mut().flat_map(|group| &mut group.listeners) {
        let Served::By(workers) = &mut listener.served else { continue };
        let mine = |worker: &&mut Worker| worker.pid == pid && worker.tid == Some(tid);
        for worker in workers.iter_mut().filter(mine) {
            tell(worker, cpus);
            used = true;
        }
    }
    if used {
        return true;
    }
    let Some(next) = pool.iter().position(|&(owner, ..)| owner == pid) else { return false };
    let (_, _, group, listener) = pool.remove(next);
    groups[group].listeners[listener].served = by(pid, Some(tid), cpus, name);
    true
}

fn tell(worker: &mut Worker, cpus: &CpuSet) {
    worker.cpus = cpus.clone();
    worker.evidence = Evidence::Told;
}

fn by(
    pid: Pid,
    tid: Option<Pid>,
    cpus: &CpuSet,
    name: &dyn Fn(Pid, Option<Pid>) -> String,
) -> Served {
    let evidence = Evidence::Told;
    Served::By(vec![Worker { pid, tid, name: name(pid, tid), cpus: cpus.clone(), evidence }])
}

/// Processes that hold any listener, for messages.
fn holders(groups: &[Group]) -> String {
    let all = groups.iter().flat_map(|group| &group.listeners);
    let mut pids: Vec<Pid> = all.flat_map(|it| &it.holders).map(|holder| holder.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
