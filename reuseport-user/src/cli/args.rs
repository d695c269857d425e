//! Options that several verbs share, and the values they take.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use reuseport_common::abi::Policy;

use crate::bpf::pins::BPFFS;
use crate::discover::overrides::Overrides;
use crate::discover::{NetnsChoice, Target};
use crate::model::{Cpu, CpuSet, Pid, Protocol};
use crate::rungs::Rung;
use crate::steer::{Ladder, Settings, Weight};

/// Which groups are meant.
#[derive(Debug, clap::Args)]
pub(super) struct TargetArgs {
    /// Port that the listeners share
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    #[command(flatten)]
    rest: WhereArgs,
}

/// What narrows a port down.
#[derive(Debug, clap::Args)]
pub(super) struct WhereArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Look in the network namespace of this process
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(Pid).range(1..), conflicts_with = "netns")]
    pid: Option<Pid>,
}

/// A port, where another option tells whose namespace it is in.
#[derive(Debug, clap::Args)]
pub(super) struct PortArgs {
    /// Port that the listeners share
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What narrows a port down, but for a process.
#[derive(Debug, clap::Args)]
struct PlaceArgs {
    /// Only the groups on this local address (repeatable); without it all on the port
    #[arg(short, long, value_name = "IP")]
    addr: Vec<IpAddr>,
    /// Look in this network namespace (/run/netns/NAME, /proc/PID/ns/net)
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// UDP sockets instead of TCP listeners: QUIC and other servers may attach programs of their own
    #[arg(long)]
    udp: bool,
}

impl TargetArgs {
    pub(super) fn target(&self) -> Target {
        self.rest.target(self.port)
    }
}

impl WhereArgs {
    pub(super) fn target(&self, port: u16) -> Target {
        self.place.target(port, self.pid)
    }
}

impl PortArgs {
    /// In the namespace of `pid`, where none is named.
    pub(super) fn target(&self, pid: Option<Pid>) -> Target {
        self.place.target(self.port, pid)
    }
}

impl PlaceArgs {
    fn target(&self, port: u16, pid: Option<Pid>) -> Target {
        let netns = match (&self.netns, pid) {
            (Some(path), _) => NetnsChoice::Path(path.clone()),
            (None, Some(pid)) => NetnsChoice::Pid(pid),
            (None, None) => NetnsChoice::Auto,
        };
        let protocol = if self.udp { Protocol::Udp } else { Protocol::Tcp };
        Target { port, addrs: self.addr.clone(), netns, protocol }
    }
}

/// Where things are and how they are shown.
#[derive(Debug, clap::Args)]
pub(super) struct CommonArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Where things are.
#[derive(Debug, clap::Args)]
pub(super) struct SettingsArgs {
    /// Where the BPF file system is mounted
    #[arg(long, value_name = "PATH", default_value = BPFFS)]
    bpffs: PathBuf,
    /// When the kernel's verifier refuses a program, show its whole log
    #[arg(long)]
    verifier_log: bool,
}

impl CommonArgs {
    pub(super) fn settings(&self) -> Settings {
        self.settings.settings()
    }
}

impl SettingsArgs {
    pub(super) fn settings(&self) -> Settings {
        Settings { bpffs: self.bpffs.clone(), verifier_log: self.verifier_log }
    }
}

/// `--policy`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PolicyArg {
    /// The worker on the CPU that received the connection
    Cpu,
    /// By the connection's 4-tuple, as the kernel does, but with weights and second choices
    Hash,
    /// A random worker
    Random,
    /// Each CPU takes the workers in turn
    RoundRobin,
}

impl From<PolicyArg> for Policy {
    fn from(arg: PolicyArg) -> Self {
        match arg {
            PolicyArg::Cpu => Self::Cpu,
            PolicyArg::Hash => Self::Hash,
            PolicyArg::Random => Self::Random,
            PolicyArg::RoundRobin => Self::RoundRobin,
        }
    }
}

/// `--rung`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum RungArg {
    /// The best that is permitted and fits
    Auto,
    /// The eBPF program
    Ebpf,
    /// SO_INCOMING_CPU on each listener: one CPU each, no second choice (Linux 6.2, or 6.1 with the fix)
    IncomingCpu,
    /// A classic BPF program, right until a listener joins or leaves
    ClassicBpf,
    /// The kernel's hash: detach
    Hash,
}

impl From<RungArg> for Ladder {
    fn from(arg: RungArg) -> Self {
        Self::Only(match arg {
            RungArg::Auto => return Self::Auto,
            RungArg::Ebpf => Rung::Ebpf,
            RungArg::IncomingCpu => Rung::IncomingCpu,
            RungArg::ClassicBpf => Rung::ClassicBpf,
            RungArg::Hash => Rung::Hash,
        })
    }
}

/// What the user knows better than what can be seen.
#[derive(Debug, clap::Args)]
pub(super) struct OverrideArgs {
    /// The CPUs a worker runs on, where that cannot be seen (repeatable)
    #[arg(long, value_name = "PID[/TID]=CPUS")]
    worker: Vec<OfWorker<Cpus>>,
    /// CPUs of the listeners in order of their creation, where that cannot be seen
    #[arg(long, value_name = "CPUS")]
    order: Option<CpuOrder>,
}

impl OverrideArgs {
    pub(super) fn overrides(&self) -> Overrides {
        let worker = |it: &OfWorker<Cpus>| (it.id.pid, it.id.tid, it.value.0.clone());
        Overrides {
            workers: self.worker.iter().map(worker).collect(),
            order: self.order.as_ref().map(|cpus| cpus.0.clone()),
        }
    }
}

/// `PID[/TID]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkerId {
    pub(super) pid: Pid,
    pub(super) tid: Option<Pid>,
}

impl FromStr for WorkerId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pid, tid) = match text.split_once('/') {
            Some((pid, tid)) => (pid, Some(tid)),
            None => (text, None),
        };
        let id = |text: &str| {
            let id = text.parse::<Pid>().ok().filter(|&id| id > 0);
            id.ok_or_else(|| format!("`{text}` is not a process or thread id"))
        };
        Ok(Self { pid: id(pid)?, tid: tid.map(id).transpose()? })
    }
}

/// `PID[/TID]=VALUE`.
#[derive(Clone, Debug)]
pub(super) struct OfWorker<T> {
    pub(super) id: WorkerId,
    pub(super) value: T,
}

impl<T: FromStr<Err: std::fmt::Display>> FromStr for OfWorker<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (worker, value) =
            text.split_once('=').ok_or("expected PID=... or PID/TID=...".to_owned())?;
        let value = value.parse().map_err(|error: T::Err| error.to_string())?;
        Ok(Self { id: worker.parse()?, value })
    }
}

/// CPUs that are at least one.
#[derive(Clone, Debug)]
pub(super) struct Cpus(pub(super) CpuSet);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cpus: CpuSet =
            text.parse().map_err(|error: crate::model::CpuSetError| error.to_string())?;
        if cpus.is_empty() { Err("no CPU is named".to_owned()) } else { Ok(Self(cpus)) }
    }
}

/// CPUs in the order given, also more than once: `1,0`, `0-3,0-3`.
#[derive(Clone, Debug)]
pub(super) struct CpuOrder(pub(super) Vec<Cpu>);

impl FromStr for CpuOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut order = Vec::new();
        for part in text.split(',') {
            order.extend(part.parse::<Cpus>()?.0.iter());
        }
        Ok(Self(order))
    }
}

/// Percent of a normal share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Percent(u32);

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let percent = text.strip_suffix('%').unwrap_or(text).parse().ok();
        let percent = percent.filter(|&percent: &u32| percent <= 10_000);
        percent.map(Self).ok_or_else(|| format!("`{text}` is not a share of 0 to 10000 percent"))
    }
}

impl From<&OfWorker<Percent>> for Weight {
    fn from(arg: &OfWorker<Percent>) -> Self {
        Self { pid: arg.id.pid, tid: arg.id.tid, percent: arg.value.0 }
    }
}

/// `500ms`, `1s`, `2m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time such as 500ms, 1s or 2m");
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(digits);
    let count: u32 = count.parse().map_err(|_not_a_number| wrong())?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_mins(1),
        _ => return Err(wrong()),
    };
    match unit.checked_mul(count) {
        Some(time) if !time.is_zero() => Ok(time),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_keeps_its_order() {
        let order = |text: &str| text.parse::<CpuOrder>().map(|order| order.0);
        assert_eq!(order("1,0"), Ok(vec![1, 0]));
        assert_eq!(order("2-3,0,0-1"), Ok(vec![2, 3, 0, 0, 1]));
        for text in ["", "1,", ",1", "3-1", "a", "-1"] {
            assert!(order(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn workers_are_read_or_refused() {
        let worker: OfWorker<Cpus> = "12/34=0-1,4".parse().unwrap();
        assert_eq!((worker.id.pid, worker.id.tid), (12, Some(34)));
        assert_eq!(worker.value.0, CpuSet::from([0, 1, 4]));
        let weight: OfWorker<Percent> = "7=50%".parse().unwrap();
        assert_eq!(Weight::from(&weight), Weight { pid: 7, tid: None, percent: 50 });
        for text in ["", "1", "0=1", "x=1", "1/=1", "1/0=1", "=1", "1=", "1=99999", "1=3-1"] {
            assert!(text.parse::<OfWorker<Cpus>>().is_err(), "{text:?}");
        }
        let order: CpuOrder = "3,0-1,3".parse().unwrap();
        assert_eq!(order.0, [3, 0, 1, 3]);
        for text in ["", "0,,1", "a", "1-0", "99999"] {
            assert!(text.parse::<CpuOrder>().is_err(), "{text:?}");
        }
        for text in ["1=-1", "1=a", "1=10001", "1=1.5"] {
            assert!(text.parse::<OfWorker<Percent>>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_are_read_or_refused() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for text in ["", "1", "s", "0s", "-1s", "1.5s", "1h", "99999999999s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
