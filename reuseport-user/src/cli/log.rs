//! `log`: follows the aya-log records of the programs in force.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use super::args::{CommonArgs, TargetArgs};
use crate::steer::status;

/// Follow the program's log (after `attach --log-misses`)
///
/// One line per connection that could not be steered, and why, until Ctrl-C. Needs CAP_SYS_ADMIN.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer attach --port 6432 --log-misses
  reuseport-steer log --port 6432")]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Writes records where the verbs write.
struct Print;

impl Log for Print {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let _reader_gone = writeln!(super::stdout(), "{}", record.args());
    }

    fn flush(&self) {}
}

pub(super) fn run(args: &Args) -> Result<()> {
    let groups = status(Some(&args.target.target()), &args.common.settings())?;
    let steered: Vec<_> = groups.iter().filter_map(|group| group.steering.as_ref()).collect();
    let logging: Vec<u32> = steered.iter().filter(|it| it.logs).map(|it| it.program_id).collect();
    if logging.is_empty() {
        bail!("no program on this port logs: attach it with --log-misses first");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut loggers = Vec::new();
    for id in logging {
        let logger = EbpfLogger::init_from_id_with_logger(id, Print);
        loggers.push(logger.with_context(|| format!("read the log of program {id}"))?);
    }
    runtime.block_on(async {
        // Records are rare by design; looking ten times a second costs nothing.
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => return Ok(()),
                _ = ticks.tick() => loggers.iter_mut().for_each(EbpfLogger::flush),
            }
        }
    })
}
