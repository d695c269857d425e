//! `completions` and `man`: made from the command line's own definition.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer completions bash > /etc/bash_completion.d/reuseport-steer
  reuseport-steer completions zsh > \"${fpath[1]}/_reuseport-steer\"")]
pub(super) struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

/// Print the manual page, or write all of them into a directory
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  reuseport-steer man | man -l -
  reuseport-steer man /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Where to write reuseport-steer.1 and one page per verb
    directory: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "reuseport-steer", &mut text);
    Ok(super::stdout().write_all(&text)?)
}

pub(super) fn man(args: &ManArgs, command: Command) -> Result<()> {
    if let Some(directory) = &args.directory {
        fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
        return clap_mangen::generate_to(command, directory)
            .with_context(|| format!("write manual pages into {}", directory.display()));
    }
    let mut text = Vec::new();
    // As the page in a directory has it.
    let command = command.disable_help_subcommand(true);
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(super::stdout().write_all(&text)?)
}
