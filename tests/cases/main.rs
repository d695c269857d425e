//! The integration tests: one binary, a module for each subject. Run by `sudo cargo xtask test`.

mod harness;
mod measure;
