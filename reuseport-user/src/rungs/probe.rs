//! Which rungs this kernel lets us have, asked of it by trying each on two listeners of our own.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::thread;

use serde::{Deserialize, Serialize};

use super::Rung;
use super::classic::{self, Rows};
use crate::bpf::{BpfError, object};
use crate::loopback::{ADDRESSES, Pair};
use crate::model::{Cpu, CpuSet};
use crate::sys::{sched, sockopt};

/// Connections to each listener: by the kernel's hash alone all would fall right once in 2^16 times.
const ROUNDS: usize = 8;

/// Why a rung is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "why", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Why {
    /// A privilege is missing; the kernel may well have it.
    NotPermitted(String),
    /// The kernel does not do it, as was seen.
    Unsupported(String),
    /// It is there, but does not fit: the group, or what was asked for.
    Unfit(String),
    /// It could not be tried.
    Untried(String),
}

impl Why {
    /// The kind's name in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotPermitted(_) => "not_permitted",
            Self::Unsupported(_) => "unsupported",
            Self::Unfit(_) => "unfit",
            Self::Untried(_) => "untried",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPermitted(why)
            | Self::Unsupported(why)
            | Self::Unfit(why)
            | Self::Untried(why) => f.write_str(why),
        }
    }
}

impl From<&BpfError> for Why {
    fn from(error: &BpfError) -> Self {
        match error {
            BpfError::NotPermitted { .. } | BpfError::Memlock { .. } => {
                Self::NotPermitted(error.to_string())
            }
            BpfError::NoBpf { .. } | BpfError::Verifier { .. } => {
                Self::Unsupported(error.to_string())
            }
            _ => Self::Untried(error.to_string()),
        }
    }
}

/// Whether this process can have `rung` on this kernel: [`Rung::Ebpf`] by loading the program,
/// the others by connections to two listeners of its own on the loopback interface, in the calling
/// thread's network namespace. Milliseconds the first time; what was answered for certain is not
/// asked again.
pub fn probe(rung: Rung) -> Result<(), Why> {
    static EBPF: OnceLock<Result<(), Why>> = OnceLock::new();
    static INCOMING_CPU: OnceLock<Result<(), Why>> = OnceLock::new();
    static CLASSIC: OnceLock<Result<(), Why>> = OnceLock::new();
    match rung {
        Rung::Ebpf => once(&EBPF, || object::probe().map_err(|error| Why::from(&error))),
        Rung::IncomingCpu => once(&INCOMING_CPU, || on_loopback(incoming_cpu)),
        Rung::ClassicBpf => once(&CLASSIC, || on_loopback(classic_bpf)),
        Rung::Hash => Ok(()),
    }
}

fn once(
    cell: &OnceLock<Result<(), Why>>,
    ask: impl FnOnce() -> Result<(), Why>,
) -> Result<(), Why> {
    if let Some(answer) = cell.get() {
        return answer.clone();
    }
    match ask() {
        untried @ Err(Why::Untried(_)) => untried,
        answer => cell.get_or_init(|| answer).clone(),
    }
}

/// A rung, and why not a better one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Choice {
    /// The best there is.
    pub rung: Rung,
    /// The better ones, best first.
    pub passed_over: Vec<PassedOver>,
}

/// `ebpf`, or `incoming-cpu (no ebpf: CAP_BPF is missing)`.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rung)?;
        let mut separator = " (";
        for PassedOver { rung, why } in &self.passed_over {
            write!(f, "{separator}no {rung}: {why}")?;
            separator = "; ";
        }
        if self.passed_over.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

/// A rung that is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PassedOver {
    /// Which.
    pub rung: Rung,
    /// Why not.
    #[serde(flatten)]
    pub why: Why,
}

/// The best rung that `fit` does not object to.
pub fn best(mut fit: impl FnMut(Rung) -> Result<(), Why>) -> Choice {
    let mut passed_over = Vec::new();
    for rung in Rung::LADDER {
        match fit(rung) {
            Ok(()) => return Choice { rung, passed_over },
            Err(why) => passed_over.push(PassedOver { rung, why }),
        }
    }
    Choice { rung: Rung::Hash, passed_over }
}

/// Tries each loopback address until one says yes or no. On a thread of its own, which stays on one
/// CPU: so all connections are received there.
fn on_loopback(attempt: fn(SocketAddr) -> Result<(), Failure>) -> Result<(), Why> {
    let ask = || {
        let mut answer = Err(Why::Untried("no address of the loopback interface".to_owned()));
        for address in ADDRESSES {
            answer = attempt(address).map_err(Why::from);
            if !matches!(answer, Err(Why::Untried(_))) {
                break;
            }
        }
        answer
    };
    let on_one_cpu = || {
        let cpu = sched::affinity(0).map(|cpus| cpus.first().into_iter().collect::<CpuSet>());
        // Where that is refused, connections from several CPUs make the try inconclusive.
        let _moved = cpu.and_then(|cpu| sched::set_affinity(0, &cpu));
        ask()
    };
    // A panic in there is a bug of ours; it must not look like an answer.
    thread::scope(|scope| scope.spawn(on_one_cpu).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Why a try did not succeed.
#[derive(Debug)]
enum Failure {
    /// It was tried, and did not work.
    No(&'static str),
    /// Something went wrong on the way.
    Untried(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Untried(error.to_string())
    }
}

impl From<Failure> for Why {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::No(why) => Self::Unsupported(why.to_owned()),
            Failure::Untried(why) => {
                Self::Untried(format!("it could not be tried on the loopback interface: {why}"))
            }
        }
    }
}

/// Whether the listener that has our CPU gets every connection, whichever of the two it is.
fn incoming_cpu(address: SocketAddr) -> Result<(), Failure> {
    let pair = Pair::open(address)?;
    let (_, cpu) = arrival(&pair)?;
    for favoured in 0..2 {
        for (place, listener) in pair.listeners.iter().enumerate() {
            // No machine has that other CPU.
            let cpu = if place == favoured { cpu } else { i32::MAX as Cpu };
            sockopt::set_incoming_cpu(listener.as_fd(), Some(cpu))?;
        }
        all_arrive(
            &pair,
            (favoured, cpu),
            "this kernel does not heed SO_INCOMING_CPU in a reuseport group (6.2 and later do, and \
             6.1 with the fix)",
        )?;
    }
    Ok(())
}

/// Whether a classic program's number is the place in the order of `listen()`.
fn classic_bpf(address: SocketAddr) -> Result<(), Failure> {
    for favoured in 0..2 {
        // A group for each: to replace a classic program is what is to be avoided.
        let pair = Pair::open(address)?;
        let (_, cpu) = arrival(&pair)?;
        let members: Vec<_> = pair.listeners.iter().map(AsFd::as_fd).collect();
        let shares = vec![classic::Share { place: favoured as u16, part: 1 }];
        classic::apply(&members, &Rows::from([(cpu, shares)]))?;
        all_arrive(
            &pair,
            (favoured, cpu),
            "this kernel does not number the members of a group in the order in which they began to \
             listen",
        )?;
    }
    Ok(())
}

/// Connects a few times; all must come to that listener, on that CPU.
fn all_arrive(pair: &Pair, expected: (usize, Cpu), otherwise: &'static str) -> Result<(), Failure> {
    for _ in 0..ROUNDS {
        let (place, cpu) = arrival(pair)?;
        if cpu != expected.1 {
            return Err(Failure::Untried("connections came in on several CPUs".to_owned()));
        }
        if place != expected.0 {
            return Err(Failure::No(otherwise));
        }
    }
    Ok(())
}

/// Connects; which listener is told of it, and which CPU received it.
fn arrival(pair: &Pair) -> Result<(usize, Cpu), Failure> {
    let Some((_client, place)) = pair.connect()? else {
        return Err(Failure::Untried("a connection did not arrive".to_owned()));
    };
    let (connection, _) = pair.listeners[place].accept()?;
    Ok((place, sockopt::incoming_cpu(connection.as_fd())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns;

    /// The kernel that the tests run on has all.
    #[test]
    fn this_kernel_has_every_rung() {
        for rung in Rung::LADDER {
            assert_eq!(probe(rung), Ok(()), "{rung}");
        }
        for attempt in [incoming_cpu, classic_bpf] {
            for address in ADDRESSES {
                assert!(attempt(address).is_ok(), "{address}");
            }
        }
    }

    #[test]
    fn a_kernel_that_does_not_heed_it_is_found_out() {
        let pair = Pair::open(ADDRESSES[0]).unwrap();
        let (_, cpu) = arrival(&pair).unwrap();
        // As if it did not: nobody was told which CPU is whose.
        let answers = [0, 1].map(|place| all_arrive(&pair, (place, cpu), "no"));
        assert!(answers.iter().any(|it| matches!(it, Err(Failure::No("no")))), "{answers:?}");
    }

    #[test]
    fn without_a_loopback_interface_nothing_is_known() {
        let answers = netns::inside(&netns::fresh().unwrap(), || {
            [incoming_cpu, classic_bpf].map(|attempt| on_loopback(attempt).unwrap_err())
        });
        for why in answers.unwrap() {
            assert!(matches!(&why, Why::Untried(_)), "{why:?}");
            assert!(why.to_string().contains("loopback interface"), "{why}");
        }
    }

    #[test]
    fn the_best_is_the_first_that_fits() {
        let missing = |what: &str| Err(Why::NotPermitted(what.to_owned()));
        let choice = best(|rung| match rung {
            Rung::Ebpf => missing("CAP_BPF"),
            Rung::IncomingCpu => Ok(()),
            _ => panic!("asked for {rung}"),
        });
        assert_eq!(choice.rung, Rung::IncomingCpu);
        let PassedOver { rung, why } = &choice.passed_over[0];
        assert_eq!((*rung, why.to_string().as_str()), (Rung::Ebpf, "CAP_BPF"));
        let none = best(|rung| if rung == Rung::Hash { Ok(()) } else { missing("all") });
        assert_eq!((none.rung, none.passed_over.len()), (Rung::Hash, 3));
    }
}
