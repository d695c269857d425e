//! The integration tests: one binary, a module for each subject. Run by `sudo cargo xtask test`.

mod concurrency;
mod harness;
mod lifecycle;
mod placement;
mod replan;
mod selection;
mod soak;
mod status;
