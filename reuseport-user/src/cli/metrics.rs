//! `metrics`.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::args::{SettingsArgs, WhereArgs};
use crate::observe::{Snapshot, metrics};
use crate::steer::status;

/// Print metrics in Prometheus' text format
///
/// What `status` knows, for a monitoring system. Without an agent: run it from a timer into the
/// directory of node_exporter's textfile collector. An agent serves the same, and what it did itself,
/// with `agent --metrics`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer metrics
  reuseport-steer metrics --output /var/lib/prometheus/node-exporter/reuseport-steer.prom
  reuseport-steer metrics --port 6432 | promtool check metrics")]
pub(super) struct Args {
    /// Only the groups on this port, also those that are not steered
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Write into this file instead: a reader finds the old one or the new one, never a part
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    place: WhereArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let target = args.port.map(|port| args.place.target(port));
    let groups = status(target.as_ref(), &args.settings.settings())?;
    let text = metrics::text(&metrics::collect(&Snapshot::of(groups)))?;
    match &args.output {
        Some(path) => replace(path, &text).with_context(|| format!("write {}", path.display())),
        None => Ok(super::stdout().write_all(text.as_bytes())?),
    }
}

/// Puts a new file in the place of `path`, readable for everybody.
fn replace(path: &Path, text: &str) -> Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    if !directory.is_dir() {
        bail!("there is no directory {0}: create it, `mkdir -p {0}`", directory.display());
    }
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    // Whatever the umask: node_exporter runs as a user of its own.
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}
