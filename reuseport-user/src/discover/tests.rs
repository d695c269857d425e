//! Discovery on real sockets: children that serve in each of the known ways.

mod finding;
mod servers;
mod styles;
pub(super) mod support;
