//! The `reuseport-steer` command.

fn main() {}
