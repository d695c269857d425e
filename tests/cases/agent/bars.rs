//! The bars that the agent is held to in the long run: workers that come and go at random, rolling
//! restarts, an agent that is killed all the time, thousands of ticks.
//!
//! A few seconds each, unless `REUSEPORT_BARS` says how many percent of the full length to run; what
//! it takes in milliseconds is held to a limit at 100 only, and is to be measured on a quiet machine:
//! `REUSEPORT_BARS=100 cargo xtask test bars --threads 1`. What was counted is printed: see it with
//! `--nocapture`.
#![expect(clippy::print_stdout, reason = "the figures of a run, shown with --nocapture")]

use std::env;
use std::time::Duration;

use reuseport_tests::netns::Netns;

mod events;
mod killed;
mod mapping;
mod rolling;
mod steady;

/// Percent of the full length; `None` for short ones.
fn percent() -> Option<u32> {
    let wanted = env::var("REUSEPORT_BARS").ok()?;
    Some(wanted.parse().expect("REUSEPORT_BARS is a number of percent"))
}

/// How many of `full` to do; `short` unless told.
fn length(full: u32, short: u32) -> u32 {
    percent().map_or(short, |percent| (full * percent).div_ceil(100))
}

/// Whether figures are held to their limits.
fn is_full() -> bool {
    percent().is_some_and(|percent| percent >= 100)
}

/// What this share (0 to 1) of the figures does not exceed.
fn quantile(figures: &[Duration], share: f64) -> Duration {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

/// Connections that the kernel moved from a listener that closed, and those that it could not.
pub(super) fn migrations(netns: &Netns) -> [u64; 2] {
    let path = "/proc/thread-self/net/netstat";
    let text = netns.run_in(|| std::fs::read_to_string(path).expect("the kernel's counters"));
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    ["TCPMigrateReqSuccess", "TCPMigrateReqFailure"].map(|wanted| {
        let place = names.split(' ').position(|name| name == wanted).expect("a counter");
        values.split(' ').nth(place).expect("a value").parse().expect("a number")
    })
}
