//! Interleaved rounds: each pair measures both modes, in random order, within seconds.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::group::Group;
use super::load::{self, LoadOptions};
use super::matrix::Matrix;
use super::report::{Pair, Sample};
use super::{DemoError, DemoOptions, Mechanism};
use crate::measure::{Rng, orders};
use crate::model::CpuSet;

/// Signals that end a demo, and what they are called.
pub(super) struct Interrupts([(Signal, &'static str); 3]);

impl Interrupts {
    /// Must be called within a runtime. From then on the signals do not end the process.
    pub(super) fn catch() -> Result<Self, DemoError> {
        let catch = |kind, name| match signal(kind) {
            Ok(stream) => Ok((stream, name)),
            Err(source) => Err(DemoError::Runtime { operation: "catch signals", source }),
        };
        Ok(Self([
            catch(SignalKind::interrupt(), "SIGINT")?,
            catch(SignalKind::terminate(), "SIGTERM")?,
            catch(SignalKind::hangup(), "SIGHUP")?,
        ]))
    }

    async fn next(&mut self) -> DemoError {
        let [interrupt, terminate, hangup] = &mut self.0;
        DemoError::Interrupted(tokio::select! {
            _ = interrupt.0.recv() => interrupt.1,
            _ = terminate.0.recv() => terminate.1,
            _ = hangup.0.recv() => hangup.1,
        })
    }
}

/// The group with its switch. Steering is off again when this is dropped, whatever happened.
struct Switch<'a, 'm> {
    runtime: &'a Runtime,
    group: &'a mut Group,
    mechanism: &'a mut Mechanism<'m>,
    on: bool,
}

impl Switch<'_, '_> {
    fn set(&mut self, on: bool) -> Result<(), DemoError> {
        if self.on == on {
            return Ok(());
        }
        let port = self.group.address().port();
        match (&mut *self.mechanism, on) {
            (Mechanism::Steering(steering), true) => {
                steering.on(port).map_err(|source| DemoError::SteeringOn { port, source })?;
            }
            (Mechanism::Steering(steering), false) => {
                // Before the call: what failed once is not tried again on the way out.
                self.on = false;
                steering.off(port).map_err(|source| DemoError::SteeringOff { port, source })?;
            }
            (Mechanism::IncomingCpu, on) => self.runtime.block_on(self.group.prefer_cpu(on))?,
        }
        self.on = on;
        Ok(())
    }
}

impl Drop for Switch<'_, '_> {
    fn drop(&mut self) {
        // For panics; else `close` was called. SO_INCOMING_CPU goes with its listeners.
        if matches!(self.mechanism, Mechanism::Steering(_)) {
            drop(self.set(false));
        }
    }
}

impl Switch<'_, '_> {
    /// Steering off after `outcome`, whatever that is; tells both when both failed.
    fn close<T>(mut self, outcome: Result<T, DemoError>) -> Result<T, DemoError> {
        if outcome.is_err() && matches!(self.mechanism, Mechanism::IncomingCpu) {
            return outcome;
        }
        match (outcome, self.set(false)) {
            (Err(first), Err(then)) => {
                Err(DemoError::Left { first: Box::new(first), then: Box::new(then) })
            }
            (Ok(_), Err(error)) | (Err(error), Ok(())) => Err(error),
            (Ok(value), Ok(())) => Ok(value),
        }
    }
}

/// What all pairs saw.
pub(super) struct Rounds {
    pub(super) pairs: Vec<Pair>,
    pub(super) before: Matrix,
    pub(super) after: Matrix,
}

pub(super) fn run(
    runtime: &Runtime,
    options: &DemoOptions,
    cpus: &CpuSet,
    seed: u64,
    group: &mut Group,
    mechanism: &mut Mechanism<'_>,
    interrupts: &mut Interrupts,
) -> Result<Rounds, DemoError> {
    let load = LoadOptions {
        address: group.address(),
        cpus: cpus.clone(),
        connections_per_cpu: options.connections_per_cpu,
        warmup: options.warmup,
        duration: options.duration,
    };
    let progress = progress(options);
    let mut switch = Switch { runtime, group, mechanism, on: false };
    let outcome = pairs(options, cpus, seed, &load, &progress, &mut switch, interrupts);
    progress.finish_and_clear();
    switch.close(outcome)
}

fn pairs(
    options: &DemoOptions,
    cpus: &CpuSet,
    seed: u64,
    load: &LoadOptions,
    progress: &ProgressBar,
    switch: &mut Switch<'_, '_>,
    interrupts: &mut Interrupts,
) -> Result<Rounds, DemoError> {
    let mut rounds =
        Rounds { pairs: Vec::new(), before: Matrix::new(cpus), after: Matrix::new(cpus) };
    let orders = orders(&[false, true], options.rounds as usize, &mut Rng::with_seed(seed));
    // What prevents steering (a missing capability, most of all) is known before the first round.
    switch.set(true)?;
    for (number, order) in (1..).zip(orders) {
        let mut pair = Pair { steered_first: order[0], ..Pair::default() };
        for steered in order {
            let mode = if steered { "steered" } else { "kernel's hash" };
            progress.set_message(format!("pair {number} of {}, {mode}", options.rounds));
            switch.set(steered)?;
            let (sample, matrix) = if steered {
                (&mut pair.after, &mut rounds.after)
            } else {
                (&mut pair.before, &mut rounds.before)
            };
            *sample = round(switch.runtime, switch.group, load, matrix, interrupts)?;
            progress.inc(1);
        }
        rounds.pairs.push(pair);
    }
    Ok(rounds)
}

/// One mode, measured once.
fn round(
    runtime: &Runtime,
    group: &mut Group,
    load: &LoadOptions,
    matrix: &mut Matrix,
    interrupts: &mut Interrupts,
) -> Result<Sample, DemoError> {
    let running = load::start(load)?;
    let end = running.end();
    // Returning early drops `running`, which stops the load.
    runtime.block_on(async {
        tokio::select! {
            () = tokio::time::sleep_until(end.into()) => Ok(()),
            interrupt = interrupts.next() => Err(interrupt),
            failure = group.failure() => Err(failure),
        }
    })?;
    let result = running.finish()?;
    let mut counted = matrix.cleared();
    runtime.block_on(group.count_into(&mut counted))?;
    matrix.merge(&counted);
    if result.connections == 0 {
        return Err(DemoError::NoConnections { address: load.address, errors: result.errors });
    }
    Ok(Sample::of(&result, &counted))
}

/// Hidden unless standard error is a terminal.
fn progress(options: &DemoOptions) -> ProgressBar {
    let rounds = 2 * u64::from(options.rounds);
    let target =
        if options.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(rounds), target);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

impl DemoOptions {
    /// How long the rounds take together, without start and end.
    pub fn planned(&self) -> Duration {
        (self.warmup + self.duration) * 2 * self.rounds
    }
}
