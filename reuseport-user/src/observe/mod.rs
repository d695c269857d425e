//! Watching: what is to be seen at one moment, what changed between two, and how it is told to
//! people and to Prometheus.
//!
//! ```text
//! steer::status, agent::State -> Snapshot -> Rates, Events -> top
//!                                    |
//!                                    +----> metrics: families -> text
//! ```
//!
//! All of it is pure but the taking of a snapshot and, with the command line, the server.

mod changes;
#[cfg(feature = "cli")]
pub mod http;
pub mod metrics;
mod rates;
mod snapshot;
#[cfg(test)]
pub(crate) mod test;

pub use changes::{Change, changes};
pub use rates::{GroupRates, Paths, Rates};
pub use snapshot::Snapshot;
