//! Started by `reuseport-steer run`: the copies beside this one are its equals, and which of them
//! serves is the launcher's matter.

use std::path::PathBuf;

/// Set for whatever `run` starts: where the launcher has its pins.
pub(crate) const VARIABLE: &str = "REUSEPORT_STEER_RUN";

/// Where the launcher of this process has its pins; `None` without a launcher.
pub(super) fn bpffs() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}
