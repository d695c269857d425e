//! Whether a figure is what it should be.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Interval;

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// From the one to the other.
    Between(f64, f64),
}

/// How a figure stands to its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The whole confidence interval is on the right side.
    Met,
    /// It lies on both sides.
    Open,
    /// All of it is on the wrong side.
    Missed,
}

impl Goal {
    /// As far as the confidence interval can tell.
    pub fn judge(self, ci95: Interval) -> Standing {
        let (met, missed) = match self {
            Self::AtLeast(limit) => (ci95.low >= limit, ci95.high < limit),
            Self::AtMost(limit) => (ci95.high <= limit, ci95.low > limit),
            Self::Between(low, high) => {
                (low <= ci95.low && ci95.high <= high, ci95.high < low || high < ci95.low)
            }
        };
        match (met, missed) {
            (true, _) => Standing::Met,
            (_, true) => Standing::Missed,
            _ => Standing::Open,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(limit) => write!(f, ">= {limit}"),
            Self::AtMost(limit) => write!(f, "<= {limit}"),
            Self::Between(low, high) => write!(f, "{low} to {high}"),
        }
    }
}

impl Standing {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Open => "inconclusive",
            Self::Missed => "MISSED",
        }
    }
}
