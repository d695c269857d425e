//! The `reuseport-steer` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    reuseport_user::cli::main()
}
