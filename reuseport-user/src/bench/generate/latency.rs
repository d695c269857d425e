//! What a client thread sees, and how it adds up.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest latency that the histograms tell apart.
const LONGEST_NS: u64 = 60_000_000_000;

/// Longer than that, and a connection was stuck: nobody waits so long who does not wait for a worker
/// that has stopped, or for a packet to be sent again.
pub(crate) const STUCK: Duration = Duration::from_millis(100);

/// Of what happens over time, the parts that are told apart.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

/// A histogram of nanoseconds with the bounds that all share, so that adding two never fails.
pub(crate) fn new_histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants, and valid")]
    Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds")
}

/// What clients have seen.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Nanoseconds from when a request was due until its reply was complete.
    pub(crate) latency: Histogram<u64>,
    /// Requests that took longer than [`STUCK`].
    pub(crate) stuck: u64,
    /// Requests without an answer when the run ended.
    pub(crate) unanswered: u64,
    /// Failures, those of the warm-up included, by the step and the error.
    pub(crate) errors: BTreeMap<String, u64>,
    /// The slowest of each [`SLICE`] of the window, in nanoseconds.
    pub(crate) slowest: Vec<u64>,
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self {
            latency: new_histogram(),
            stuck: 0,
            unanswered: 0,
            errors: BTreeMap::new(),
            slowest: Vec::new(),
        }
    }

    /// A reply that took so long, to a request of so long after the window began.
    pub(crate) fn answer(&mut self, took: Duration, at: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(nanos);
        self.stuck += u64::from(took > STUCK);
        let slice = (at.as_nanos() / SLICE.as_nanos()) as usize;
        if slice >= self.slowest.len() {
            self.slowest.resize(slice + 1, 0);
        }
        self.slowest[slice] = self.slowest[slice].max(nanos);
    }

    pub(crate) fn fail(&mut self, what: String) {
        *self.errors.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.latency += &other.latency;
        self.stuck += other.stuck;
        self.unanswered += other.unanswered;
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
        let slices = self.slowest.len().max(other.slowest.len());
        self.slowest.resize(slices, 0);
        for (mine, theirs) in self.slowest.iter_mut().zip(&other.slowest) {
            *mine = (*mine).max(*theirs);
        }
    }
}
