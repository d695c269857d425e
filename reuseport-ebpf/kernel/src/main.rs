//! Picks the listener of a new connection: two programs over the same maps, and an iterator that
//! tells which program a group runs ([`members`]).
//!
//! Whatever happens the program passes: any other verdict would refuse the connection.
#![no_std]
#![no_main]

mod maps;
mod members;
mod memory;
mod object;
#[allow(dead_code, reason = "other objects use the rest")]
mod tcp;

// Included, not depended upon: cargo mixes the absolute path of a dependency outside its workspace
// into symbol names, and the objects would differ from checkout to checkout.
#[path = "../../../reuseport-common/src/abi.rs"]
#[allow(dead_code, reason = "the user side uses the rest")]
mod abi;
#[path = "../../../reuseport-common/src/decide.rs"]
mod decide;
#[path = "../../../reuseport-common/src/stats.rs"]
#[allow(dead_code, reason = "the user side uses the rest")]
mod stats;

use aya_ebpf::{
    bindings::sk_action::SK_PASS,
    helpers::generated::{bpf_get_prandom_u32, bpf_get_smp_processor_id},
    macros::sk_reuseport,
    programs::SkReuseportContext,
};
use aya_log_ebpf::warn;
use abi::{Load, Row};
use decide::{Kernel, Outcome, Run, decide};
use maps::{CONFIG, COUNTERS, LOAD, SOCKETS, TABLE};
use stats::{CURSOR, Miss};

/// For kernels without request migration.
#[sk_reuseport]
pub fn select(ctx: SkReuseportContext) -> u32 {
    steer::<false>(&ctx, Run::Packet)
}

/// Also runs when a listener closes. Reading `migrating_sk` is what a kernel without migration
/// refuses to verify: loading this program is the probe.
#[sk_reuseport(migrate)]
pub fn select_or_migrate(ctx: SkReuseportContext) -> u32 {
    let run = if ctx.migrating_sk().is_some() { Run::Migration } else { Run::Packet };
    steer::<false>(&ctx, run)
}

/// [`select`], with a log of what it could not steer.
#[sk_reuseport]
pub fn select_logged(ctx: SkReuseportContext) -> u32 {
    steer::<true>(&ctx, Run::Packet)
}

/// [`select_or_migrate`], with a log of what it could not steer.
#[sk_reuseport(migrate)]
pub fn select_or_migrate_logged(ctx: SkReuseportContext) -> u32 {
    let run = if ctx.migrating_sk().is_some() { Run::Migration } else { Run::Packet };
    steer::<true>(&ctx, run)
}

/// A switch in a constant that the loader sets would not do for the log: without CAP_PERFMON the
/// verifier follows the branch not taken as well, as a CPU might speculate, and refuses the program
/// for what the log would do there (seen on 5.10, 6.1 and 6.12; 6.18 and 7.2 accept it).
#[inline(always)]
fn steer<const LOG: bool>(ctx: &SkReuseportContext, run: Run) -> u32 {
    let outcome = match CONFIG.get(0) {
        Some(config) => decide(&Bpf { ctx }, config, run),
        None => Outcome::Missed(Miss::NoConfig),
    };
    match outcome {
        Outcome::Selected { slot, hit } => count(hit.index(slot)),
        Outcome::Missed(miss) => {
            count(miss.index());
            if LOG {
                warn!(ctx, "miss {} on cpu {} hash {:x}", miss as u32, cpu(), ctx.hash());
            }
        }
    }
    SK_PASS
}

/// The kernel behind [`decide`]: inlined map reads and one helper.
struct Bpf<'a> {
    ctx: &'a SkReuseportContext,
}

impl Kernel for Bpf<'_> {
    #[inline(always)]
    fn cpu(&self) -> u32 {
        cpu()
    }

    #[inline(always)]
    fn hash(&self) -> u32 {
        self.ctx.hash()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments, no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn turn(&self) -> u32 {
        let Some(cursor) = COUNTERS.get_ptr_mut(CURSOR) else { return 0 };
        // SAFETY: a per-CPU value that only this CPU's softirq writes.
        unsafe {
            let turn = *cursor as u32;
            *cursor = u64::from(turn.wrapping_add(1));
            turn
        }
    }

    #[inline(always)]
    fn row(&self, index: u32) -> Option<Row> {
        let entry = TABLE.get_ptr(index)?;
        // SAFETY: a live map value, 8-byte aligned; one volatile word so that no update is seen half.
        let word = unsafe { entry.cast::<u64>().read_volatile() };
        Some(Row { first: word as u32, second: (word >> 32) as u32 })
    }

    #[inline(always)]
    fn load(&self, slot: u32) -> Option<Load> {
        let entry = LOAD.get_ptr(slot)?;
        // SAFETY: as in `row`.
        let word = unsafe { entry.cast::<u64>().read_volatile() };
        Some(Load { pending: word as u32, limit: (word >> 32) as u32 })
    }

    #[inline(always)]
    fn select(&self, slot: u32) -> bool {
        SOCKETS.select(self.ctx, slot)
    }
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_get_smp_processor_id() as u32 }
}

#[inline(always)]
fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a per-CPU value; a run that interrupts this one may cost a count, nothing else.
        unsafe { *counter = (*counter).wrapping_add(1) }
    }
}
