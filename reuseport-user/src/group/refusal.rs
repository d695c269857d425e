//! Why a rung is not the one.

use super::GroupError;
use crate::rungs::{Rung, RungError, Why};
use crate::steer::SteerError;

/// Why a rung was not climbed. What had been done was undone.
pub(super) enum Refusal {
    Steer(SteerError),
    Why(Why),
}

pub(super) fn unfit(why: String) -> Refusal {
    Refusal::Why(Why::Unfit(why))
}

impl From<RungError> for Refusal {
    fn from(error: RungError) -> Self {
        Self::Why(Why::Untried(error.to_string()))
    }
}

impl Refusal {
    /// As the reason for a lower rung.
    pub(super) fn why(self) -> Why {
        match self {
            Self::Why(why) => why,
            Self::Steer(SteerError::Bpf { source, .. }) => Why::from(&source),
            Self::Steer(error)
                if error.is_foreign() || matches!(error, SteerError::Suspicious { .. }) =>
            {
                Why::Unfit(error.to_string())
            }
            Self::Steer(error) => Why::Untried(error.to_string()),
        }
    }

    /// As a failure.
    pub(super) fn demanded(self, rung: Rung) -> GroupError {
        match self {
            Self::Why(why) => GroupError::Rung { rung, why },
            Self::Steer(error) => error.into(),
        }
    }
}
