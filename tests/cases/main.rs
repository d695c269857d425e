//! The integration tests: one binary, a module for each subject. Run by `sudo cargo xtask test`.

mod haproxy;
mod harness;
mod nginx;
mod pgbouncer;
mod programs;
mod readme;
