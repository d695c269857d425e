//! The machine that a bench runs on: what it is, and how busy it was.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Pid;
use crate::sys::clock;

/// What figures depend on besides what is compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Of this program.
    pub version: String,
    /// Of its sources, where the build was told: `REUSEPORT_STEER_COMMIT`.
    #[serde(default)]
    pub commit: Option<String>,
    /// `uname -r`.
    pub kernel: String,
    /// The processor, as `/proc/cpuinfo` calls it.
    pub processor: String,
    /// Whether there is a hypervisor.
    pub virtual_machine: bool,
    /// CPUs that this process may use, of those that there are.
    pub cpus: String,
    /// Cores, LLCs, nodes and CPUs.
    pub topology: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// `/sys/devices/system/cpu/vulnerabilities`, where they are not "Not affected".
    pub mitigations: BTreeMap<String, String>,
    /// How a guest waits before it halts; nanoseconds.
    pub halt_poll_ns: Option<u64>,
    /// What chooses idle states.
    pub idle_governor: Option<String>,
    /// What keeps time.
    pub clocksource: String,
    /// Timer interrupts per second.
    pub hz: Option<u32>,
    /// The scheduler's preemption, where it tells.
    pub preemption: Option<String>,
    /// Whether run-time statistics of BPF programs are counted, which costs 20 to 30 ns each.
    pub bpf_stats: bool,
}

impl Environment {
    /// Why figures of another environment are none of this one: what is different, there and here.
    pub(super) fn differs(&self, other: &Self) -> Option<String> {
        let of = |it: &Self| {
            let commit = it.commit.as_deref().unwrap_or("not known").to_owned();
            [
                ("version", it.version.clone()),
                ("commit", commit),
                ("kernel", it.kernel.clone()),
                ("processor", it.processor.clone()),
                ("CPUs", it.cpus.clone()),
            ]
        };
        let mut pairs = of(self).into_iter().zip(of(other));
        let ((what, here), (_, there)) = pairs.find(|(here, there)| here.1 != there.1)?;
        Some(format!("its {what}: {there}; here: {here}"))
    }

    /// Looks around. What cannot be read is left out.
    pub(super) fn read(cpus: &crate::model::CpuSet) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let info = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let topology = crate::topology::Topology::read();
        let topology = topology.map_or_else(|error| error.to_string(), |it| describe(&it));
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("REUSEPORT_STEER_COMMIT").map(str::to_owned),
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            processor: info("model name").or_else(|| info("CPU part")).unwrap_or_default(),
            virtual_machine: info("flags").is_some_and(|flags| flags.contains("hypervisor")),
            cpus: cpus.to_string(),
            topology,
            memory_mib: memory.unwrap_or_default() / 1024,
            mitigations: mitigations(),
            halt_poll_ns: read("/sys/module/haltpoll/parameters/guest_halt_poll_ns")
                .and_then(|ns| ns.parse().ok()),
            idle_governor: read("/sys/devices/system/cpu/cpuidle/current_governor"),
            clocksource: read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                .unwrap_or_default(),
            hz: hz(clock::tick()),
            preemption: preemption(),
            bpf_stats: read("/proc/sys/kernel/bpf_stats_enabled").as_deref() == Some("1"),
        }
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn describe(topology: &crate::topology::Topology) -> String {
    let count = |of: &dyn Fn(&crate::topology::CpuInfo) -> u32| {
        let places: std::collections::BTreeSet<u32> = topology.cpus().iter().map(of).collect();
        places.len()
    };
    format!(
        "{} CPUs, {} cores, {} LLCs, {} nodes",
        topology.cpus().len(),
        count(&|it| it.core),
        count(&|it| it.llc),
        count(&|it| it.node),
    )
}

fn mitigations() -> BTreeMap<String, String> {
    let files = fs::read_dir("/sys/devices/system/cpu/vulnerabilities");
    let files = files.into_iter().flatten().flatten();
    let each = files.filter_map(|file| {
        let text = fs::read_to_string(file.path()).ok()?.trim().to_owned();
        (text != "Not affected").then(|| (file.file_name().to_string_lossy().into_owned(), text))
    });
    each.collect()
}

/// The kernel's clocks that are read without looking at the hardware go by the timer's interrupts.
fn hz(tick: Duration) -> Option<u32> {
    (!tick.is_zero()).then(|| (1.0 / tick.as_secs_f64()).round() as u32)
}

fn preemption() -> Option<String> {
    let version = read("/proc/sys/kernel/version")?;
    let word = version.split_whitespace().find(|word| word.starts_with("PREEMPT"));
    Some(word.unwrap_or("none").to_owned())
}

/// The time that these threads have been running. What an interrupt did on their back is theirs, as
/// the kernel counts it.
pub(super) fn running(threads: &[Pid]) -> Duration {
    let one = |pid: &Pid| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
        text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(threads.iter().map(one).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_has_a_rate_that_kernels_are_built_with() {
        assert_eq!(hz(Duration::from_millis(4)), Some(250));
        assert_eq!(hz(Duration::from_nanos(3_333_333)), Some(300));
        let here = hz(clock::tick()).unwrap();
        assert!([100, 250, 300, 1000].contains(&here), "{here}");
    }

    #[test]
    fn what_differs_is_named() {
        let there = Environment { kernel: "6.1".to_owned(), ..Environment::default() };
        let here = Environment { kernel: "6.18".to_owned(), memory_mib: 1, ..there.clone() };
        assert_eq!(here.differs(&there).as_deref(), Some("its kernel: 6.1; here: 6.18"));
        assert_eq!(there.differs(&there), None);
        assert_eq!(Environment { memory_mib: 2, ..there.clone() }.differs(&there), None);
    }

    #[test]
    fn a_thread_that_works_has_been_running() {
        let own = crate::sys::sched::thread_id();
        let before = running(&[own]);
        let began = clock::thread();
        while clock::thread() < began + Duration::from_millis(20) {}
        assert!(running(&[own]) >= before + Duration::from_millis(10));
    }
}
