//! Running other programs: each is printed before it runs, and steps are summed up.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The root of the repository: of the checkout that runs us, also from a shared target directory.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    let own = here.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().unwrap_or(&own).to_owned()
}

/// `cargo ARGS...`, with the cargo that runs us.
pub(crate) fn cargo(args: &[&str]) -> Command {
    program(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()), args)
}

/// `PROGRAM ARGS...` in the repository's root.
pub(crate) fn program(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(args).current_dir(root());
    command
}

/// Runs a command that must succeed, its output shown.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("$ {line}");
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command that must succeed; what it wrote to stdout.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command.output().with_context(|| format!("start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` wrote no text"))
}

/// As it would be typed.
pub(crate) fn line(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={}", name.to_string_lossy(), value?.to_string_lossy()))
    });
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    let words = words.map(|word| {
        let word = word.to_string_lossy();
        if word.contains(char::is_whitespace) { format!("'{word}'") } else { word.into_owned() }
    });
    set.chain(words).collect::<Vec<_>>().join(" ")
}

/// Steps that all run even if one fails, so that a run shows everything there is to mend.
#[derive(Debug, Default)]
pub(crate) struct Steps(Vec<(&'static str, Duration, Result<()>)>);

impl Steps {
    /// Runs one.
    pub(crate) fn step(&mut self, name: &'static str, run: impl FnOnce() -> Result<()>) {
        println!("\n== {name}");
        let start = Instant::now();
        let result = run();
        if let Err(error) = &result {
            println!("{name}: {error:#}");
        }
        self.0.push((name, start.elapsed(), result));
    }

    /// A line for each; an error when one failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!();
        for (name, took, result) in &self.0 {
            let word = if result.is_ok() { "ok" } else { "FAILED" };
            println!("{word:>6} {:>6.1}s  {name}", took.as_secs_f64());
        }
        let failed: Vec<_> =
            self.0.iter().filter(|(.., result)| result.is_err()).map(|(name, ..)| *name).collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}
