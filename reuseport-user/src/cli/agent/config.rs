//! The configuration file, read whole or not at all: an error names file and line.

use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;
use toml::Spanned;

use super::super::args::{PolicyArg, RungArg};
use super::{GENERATION_TIMEOUT, RECONCILE_INTERVAL, SpillArg, WidenArg, duration};
use crate::agent::{AgentOptions, Goal, NamedWorker};
use crate::discover::{NetnsChoice, Target};
use crate::model::{CpuSet, Protocol};
use crate::steer::{AttachOptions, Settings};

/// Longest file that is read; one of a thousand targets takes a tenth of it.
const LONGEST: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ConfigError {
    /// There is no text.
    #[error("{path}: {source}", path = path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The text is wrong.
    #[error("{path}:{line}:{column}: {what}", path = path.display())]
    Wrong { path: PathBuf, line: usize, column: usize, what: String },
}

/// What the file may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    reconcile_interval: Option<Spanned<String>>,
    generation_timeout: Option<Spanned<String>>,
    #[serde(default)]
    detach_on_exit: bool,
    spill: Option<Spanned<String>>,
    widen: Option<Spanned<String>>,
    #[serde(default)]
    target: Vec<Spanned<TargetEntry>>,
}

/// `[[target]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TargetEntry {
    port: Spanned<u16>,
    #[serde(default)]
    addr: Vec<Spanned<String>>,
    netns: Option<PathBuf>,
    #[serde(default)]
    udp: bool,
    policy: Option<Spanned<String>>,
    rung: Option<Spanned<String>>,
    #[serde(default)]
    worker: Vec<WorkerEntry>,
}

/// `[[target.worker]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WorkerEntry {
    name: Spanned<String>,
    cpus: Spanned<String>,
}

/// A mistake and where it is.
type Mistake = (Range<usize>, String);

/// Reads the file. CPUs must be among the `possible` ones of this machine.
pub(super) fn read(
    path: &Path,
    settings: &Settings,
    possible: &CpuSet,
) -> Result<AgentOptions, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let bytes = read_bytes(path).map_err(unreadable)?;
    parse(&bytes, settings, possible).map_err(|(span, what)| {
        let before = &bytes[..span.start.min(bytes.len())];
        let lines = before.split(|&byte| byte == b'\n');
        let (line, last) = (1..).zip(lines).last().unwrap_or((1, before));
        let column = 1 + String::from_utf8_lossy(last).chars().count();
        ConfigError::Wrong { path: path.to_owned(), line, column, what }
    })
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    // A FIFO or a device would be waited for, or never end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8], settings: &Settings, possible: &CpuSet) -> Result<AgentOptions, Mistake> {
    let start = |what: &str| (0..0, what.to_owned());
    if bytes.len() as u64 > LONGEST {
        return Err(start("the file is larger than 1 MiB"));
    }
    if bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
        return Err(start("the file begins with a byte order mark: save it as UTF-8 without one"));
    }
    if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
        return Err((at..at, "there is a NUL byte: this is no text".to_owned()));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| (error.valid_up_to()..0, "this is not UTF-8".to_owned()))?;
    let file: File = toml::from_str(text)
        .map_err(|error| (error.span().unwrap_or(0..0), error.message().trim().to_owned()))?;
    file.options(settings, possible)
}

impl File {
    fn options(self, settings: &Settings, possible: &CpuSet) -> Result<AgentOptions, Mistake> {
        if self.target.is_empty() {
            return Err((0..0, "there is no [[target]]: nothing would be kept".to_owned()));
        }
        let mut goals: Vec<(Range<usize>, Goal)> = Vec::new();
        for entry in self.target {
            let goal = entry.get_ref().goal(settings, possible)?;
            if goals.iter().any(|(_, other)| overlap(&goal.attach.target, &other.attach.target)) {
                let port = entry.get_ref().port.clone();
                let what =
                    format!("port {} is named by another [[target]] already", port.get_ref());
                return Err((port.span(), what));
            }
            goals.push((entry.span(), goal));
        }
        Ok(AgentOptions {
            goals: goals.into_iter().map(|(_, goal)| goal).collect(),
            interval: time(self.reconcile_interval.as_ref(), RECONCILE_INTERVAL)?,
            generation_timeout: time(self.generation_timeout.as_ref(), GENERATION_TIMEOUT)?,
            detach_on_exit: self.detach_on_exit,
            spill: choice(self.spill.as_ref(), SpillArg::On)? == SpillArg::On,
            widen: choice(self.widen.as_ref(), WidenArg::Auto)? == WidenArg::Auto,
        })
    }
}

impl TargetEntry {
    fn goal(&self, settings: &Settings, possible: &CpuSet) -> Result<Goal, Mistake> {
        if *self.port.get_ref() == 0 {
            return Err((self.port.span(), "0 is no port".to_owned()));
        }
        let address = |text: &Spanned<String>| {
            let wrong = |error| (text.span(), format!("`{}`: {error}", text.get_ref()));
            text.get_ref().parse::<IpAddr>().map_err(wrong)
        };
        let target = Target {
            port: *self.port.get_ref(),
            addrs: self.addr.iter().map(address).collect::<Result<_, _>>()?,
            netns: self.netns.clone().map_or(NetnsChoice::Auto, NetnsChoice::Path),
            protocol: if self.udp { Protocol::Udp } else { Protocol::Tcp },
        };
        let attach = AttachOptions {
            policy: choice(self.policy.as_ref(), PolicyArg::Cpu)?.into(),
            rung: choice(self.rung.as_ref(), RungArg::Auto)?.into(),
            settings: settings.clone(),
            ..AttachOptions::new(target)
        };
        Ok(Goal { attach, workers: self.workers(possible)? })
    }

    /// Workers by name, each with CPUs of its own.
    fn workers(&self, possible: &CpuSet) -> Result<Vec<NamedWorker>, Mistake> {
        let mut workers: Vec<NamedWorker> = Vec::new();
        for entry in &self.worker {
            let wrong = |what: String| Err((entry.cpus.span(), what));
            let name = entry.name.get_ref().clone();
            if workers.iter().any(|other| other.name == name) {
                return Err((entry.name.span(), format!("worker `{name}` is named already")));
            }
            let cpus: CpuSet = match entry.cpus.get_ref().parse() {
                Ok(cpus) => cpus,
                Err(error) => return wrong(error.to_string()),
            };
            if cpus.is_empty() {
                return wrong("no CPU is named".to_owned());
            }
            if let Some(cpu) = cpus.iter().find(|&cpu| !possible.contains(cpu)) {
                return wrong(format!("there is no CPU {cpu} on this machine, only {possible}"));
            }
            let shared = |other: &&NamedWorker| !other.cpus.intersection(&cpus).is_empty();
            if let Some(other) = workers.iter().find(shared) {
                let both = other.cpus.intersection(&cpus);
                return wrong(format!("CPU {both} is worker `{}`'s already", other.name));
            }
            workers.push(NamedWorker { name, cpus });
        }
        Ok(workers)
    }
}

/// Whether a group may be meant by both.
fn overlap(one: &Target, other: &Target) -> bool {
    let shared = |addrs: &[IpAddr]| addrs.iter().any(|addr| other.addrs.contains(addr));
    one.port == other.port
        && one.protocol == other.protocol
        && one.netns == other.netns
        && (one.addrs.is_empty() || other.addrs.is_empty() || shared(&one.addrs))
}

/// One of the names that the option of the command line takes.
fn choice<T: ValueEnum>(name: Option<&Spanned<String>>, default: T) -> Result<T, Mistake> {
    let Some(name) = name else { return Ok(default) };
    T::from_str(name.get_ref(), false).map_err(|_unknown| {
        let names = T::value_variants().iter().filter_map(T::to_possible_value);
        let names: Vec<String> = names.map(|it| it.get_name().to_owned()).collect();
        (name.span(), format!("`{}` is none of {}", name.get_ref(), names.join(", ")))
    })
}

fn time(text: Option<&Spanned<String>>, default: Duration) -> Result<Duration, Mistake> {
    match text {
        None => Ok(default),
        Some(text) => duration(text.get_ref()).map_err(|what| (text.span(), what)),
    }
}

#[cfg(test)]
mod tests;
