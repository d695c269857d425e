//! `undrain`.

use anyhow::Result;

use super::drain::WhoArgs;
use crate::steer::change::undrain;

/// Give a drained worker its share again
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer undrain --port 6432 --pid 4711
  reuseport-steer undrain --port 443 --slot 3")]
pub(super) struct Args {
    #[command(flatten)]
    who: WhoArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    args.who.show(&undrain(&args.who.options(), args.who.who()?)?)
}
