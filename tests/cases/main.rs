//! The integration tests: one binary, a module for each subject. Run by `sudo cargo xtask test`.

mod foreign;
mod harness;
mod privileges;
mod races;
mod refusals;
mod scene;
mod usage;
