//! A classic BPF program that returns a listener's place in its group.
//!
//! It has no map: rows are instructions, so that another plan is another program. It reads the CPU
//! and, where several listeners share one, a random number; it takes no privilege. The place is the
//! kernel's own index, which moves when a member leaves ([`super::keep`]). An index that is not there
//! falls to the kernel's hash: nothing here can lose a connection.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use super::mark::{self, Place};
use super::{Applied, RungError, Trace, inspect};
use crate::model::Cpu;
use crate::sys::{SyscallError, sockopt};

/// `BPF_MAXINSNS`: most instructions of a classic program.
pub const LONGEST: usize = 4096;

/// The listeners that share a CPU, by their place in the group, each with its part of the row.
pub type Rows = BTreeMap<Cpu, Vec<Share>>;

/// A listener's part of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its place in the group.
    pub place: u16,
    /// How often it is taken, of the sum of all; not 0.
    pub part: u32,
}

/// Rows for listeners in the group's order that get the connections of one CPU each, and share it
/// evenly where they have the same. Other CPUs have no row: the kernel's hash serves them.
pub fn rows(cpus: &[Option<Cpu>]) -> Rows {
    let mut rows = Rows::new();
    for (place, cpu) in (0..).zip(cpus) {
        if let Some(cpu) = *cpu {
            rows.entry(cpu).or_default().push(Share { place, part: 1 });
        }
    }
    rows
}

/// Attaches a program for `rows` to the group of `listeners`: all of its members, in the order in
/// which they began to listen.
pub(super) fn apply(listeners: &[BorrowedFd<'_>], rows: &Rows) -> Result<Applied, RungError> {
    let program = Program::new(rows)?;
    let Some(&first) = listeners.first() else { return Ok(Applied::default()) };
    for &fd in listeners {
        if matches!(inspect(fd)?, Trace::IncomingCpu { ours: false, .. }) {
            return Err(RungError::ServersOwn);
        }
    }
    let of = listeners.len() as u16;
    let set = || {
        for (index, &fd) in (0..).zip(listeners) {
            note(fd, Place { index, of })?;
        }
        program.attach(first)
    };
    match set() {
        Ok(()) => Ok(Applied { set: listeners.len(), left: 0 }),
        Err(error) => {
            for &fd in listeners {
                // Best effort: the failure that is told is the first.
                let _cleared = mark::clear(fd);
            }
            Err(error.into())
        }
    }
}

/// Lets a listener remember its place. To be done for all of a group before [`Program::attach`]: no
/// moment then leaves a program of ours that nobody remembers.
pub fn note(listener: BorrowedFd<'_>, place: Place) -> Result<(), SyscallError> {
    mark::set_place(listener, place)
}

/// A program for one group.
#[derive(Debug)]
pub struct Program(Vec<libc::sock_filter>);

impl Program {
    /// The instructions for `rows`.
    pub fn new(rows: &Rows) -> Result<Self, RungError> {
        let mut program = vec![step(LOAD, THE_CPU)];
        for (&cpu, shares) in rows {
            let choice = choose(shares);
            // A row may be longer than a conditional jump reaches.
            program.push(branch(IF_EQUAL, cpu, 1, 0));
            program.push(step(JUMP, choice.len() as u32));
            program.extend(choice);
        }
        program.push(step(RETURN, NOBODY));
        let steps = program.len();
        if steps > LONGEST {
            return Err(RungError::TooLong { rows: rows.len(), steps });
        }
        Ok(Self(program))
    }

    /// Attaches it to the group of `listener`, in place of whatever is attached.
    ///
    /// # Minimum kernel version
    ///
    /// 4.5; 5.10 as tested.
    pub fn attach(&self, listener: BorrowedFd<'_>) -> Result<(), SyscallError> {
        sockopt::attach_reuseport_classic(listener, &self.0)
    }
}

/// Operations, as `linux/filter.h` composes them.
const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// What a load at one of these addresses reads instead of the packet.
const THE_CPU: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32;
const A_RANDOM_NUMBER: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;

/// No member has this place.
const NOBODY: u32 = u32::MAX;

/// Returns one of `shares`, by their parts.
fn choose(shares: &[Share]) -> Vec<libc::sock_filter> {
    let Some((last, others)) = shares.split_last() else { return vec![step(RETURN, NOBODY)] };
    let mut steps = Vec::new();
    if !others.is_empty() {
        let whole: u32 = shares.iter().map(|share| share.part).sum();
        steps.extend([step(LOAD, A_RANDOM_NUMBER), step(MODULO, whole)]);
    }
    let mut bound = 0;
    for share in others {
        bound += share.part;
        steps.extend([branch(IF_AT_LEAST, bound, 1, 0), step(RETURN, u32::from(share.place))]);
    }
    steps.push(step(RETURN, u32::from(last.place)));
    steps
}

fn step(code: u32, k: u32) -> libc::sock_filter {
    branch(code, k, 0, 0)
}

/// Skips `yes` or `no` instructions.
fn branch(code: u32, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k }
}

#[cfg(test)]
mod tests;
