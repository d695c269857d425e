//! The integration tests: one binary, a module for each subject. Run by `sudo cargo xtask test`.

mod concurrency;
mod foreign;
mod haproxy;
mod harness;
mod lifecycle;
mod measure;
mod nginx;
mod pgbouncer;
mod placement;
mod planted;
mod privileges;
mod programs;
mod races;
mod readme;
mod refusals;
mod replan;
mod review;
mod scene;
mod selection;
mod soak;
mod status;
mod usage;
