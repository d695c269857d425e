//! `weight`.

use anyhow::Result;

use super::args::{CommonArgs, OfWorker, OverrideArgs, Percent, PortArgs};
use super::drain::show;
use crate::steer::change::{ChangeOptions, weigh};

/// Set workers' shares, for a canary or a slow one
///
/// In percent of a normal share: 25 gets a quarter of what its neighbours get, 0 nothing. Under policy
/// `cpu` it is a share of its CPU's connections, and what it leaves goes to the nearest others. It is
/// remembered until it is set again or the worker ends.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer weight --port 6432 4711=10
  reuseport-steer weight --port 443 4711=100 4712=100")]
pub(super) struct Args {
    #[command(flatten)]
    port: PortArgs,
    /// A worker and its share; without --netns the first one's namespace is looked into
    #[arg(value_name = "PID[/TID]=PERCENT", required = true)]
    weights: Vec<OfWorker<Percent>>,
    #[command(flatten)]
    overrides: OverrideArgs,
    #[command(flatten)]
    common: CommonArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let options = ChangeOptions {
        target: args.port.target(args.weights.first().map(|first| first.id.pid)),
        overrides: args.overrides.overrides(),
        settings: args.common.settings(),
    };
    let weights: Vec<_> = args.weights.iter().map(Into::into).collect();
    show(&weigh(&options, &weights)?, &args.common)
}
