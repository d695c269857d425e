//! The integration tests: one binary, a module for each subject. Run by `sudo cargo xtask test`.

mod foreign;
mod haproxy;
mod harness;
mod nginx;
mod pgbouncer;
mod privileges;
mod programs;
mod races;
mod readme;
mod refusals;
mod scene;
mod usage;
