//! `demo`: the engine on a server of its own.

use std::time::Duration;

use anyhow::Result;

use super::args::CommonArgs;
use super::output::to_json;
use crate::demo::{self, DemoOptions, Steering, SteeringError};
use crate::discover::{NetnsChoice, Target};
use crate::steer::{AttachOptions, Settings, attach, detach};

/// Show what steering does on this machine, with a server of its own
///
/// Starts one worker process per CPU on a loopback port, connects to them from every CPU, and
/// switches steering off and on in interleaved rounds: who served whom, connections per second and
/// latency, with their spread. Takes under 30 seconds and leaves nothing behind.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer demo
  reuseport-steer demo --rounds 3 --seconds 0.5
  reuseport-steer demo --json > demo.json")]
pub(super) struct Args {
    /// Pairs of rounds, one of each pair steered
    #[arg(long, default_value_t = DemoOptions::default().rounds)]
    rounds: u32,
    /// Measured seconds of each round
    #[arg(long, default_value_t = DemoOptions::default().duration.as_secs_f64(), value_parser = seconds)]
    seconds: f64,
    /// What the order of the rounds follows from; printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// Steer with the kernel's SO_INCOMING_CPU instead; needs no privilege, but Linux 6.2
    #[arg(long)]
    incoming_cpu: bool,
    #[command(flatten)]
    common: CommonArgs,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().unwrap_or(f64::NAN);
    if seconds.is_finite() && seconds > 0.0 && seconds < 1e6 {
        Ok(seconds)
    } else {
        Err("expected a positive number of seconds".to_owned())
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let options = DemoOptions {
        rounds: args.rounds,
        duration: Duration::from_secs_f64(args.seconds),
        seed: args.seed,
        ..DemoOptions::default()
    };
    let report = if args.incoming_cpu {
        demo::run_with_incoming_cpu(&options)?
    } else {
        demo::run(&options, &mut Engine { settings: args.common.settings() })?
    };
    let mut out = super::stdout();
    if args.common.json {
        return to_json(&mut out, &report);
    }
    Ok(report.print_into(&mut out)?)
}

pub(super) fn worker() -> Result<()> {
    Ok(demo::worker::run()?)
}

/// Attach and detach, as the verbs of the same names.
struct Engine {
    settings: Settings,
}

impl Engine {
    /// The port in our own namespace, whatever others listen on.
    fn target(port: u16) -> Target {
        Target { netns: NetnsChoice::Pid(std::process::id()), ..Target::tcp(port) }
    }
}

impl Steering for Engine {
    fn on(&mut self, port: u16) -> Result<(), SteeringError> {
        let settings = self.settings.clone();
        attach(&AttachOptions { settings, ..AttachOptions::new(Self::target(port)) })?;
        Ok(())
    }

    fn off(&mut self, port: u16) -> Result<(), SteeringError> {
        detach(&Self::target(port), &self.settings)?;
        Ok(())
    }
}
