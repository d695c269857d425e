//! All runs of a bench: cell by cell, repetition by repetition, in random order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::generate::schedule::derive;
use super::interrupt::Interrupt;
use super::mechanism::Mechanism;
use super::record::{Cell, Matrix, Record, Settings};
use super::run::Stage;
use super::topology::{Scene, Topology};
use super::workload::{Pace, Workload};
use super::{BenchError, BenchOptions};
use super::{costs, goals, judge};
use crate::measure::{Rng, Ticks};
use crate::sys::clock;

/// How long the machine is looked at before each repetition: long enough for ticks to tell percents.
const LOOK: Duration = Duration::from_millis(300);

/// A bench under way.
pub(super) struct Series<'a> {
    options: &'a BenchOptions,
    interrupt: &'a Interrupt,
    progress: ProgressBar,
}

impl<'a> Series<'a> {
    pub(super) fn new(
        options: &'a BenchOptions,
        interrupt: &'a Interrupt,
        settings: &Settings,
    ) -> Self {
        Self { options, interrupt, progress: progress(options.progress, settings) }
    }

    /// Measures what the record lacks.
    pub(super) fn run(
        &mut self,
        record: &mut Record,
        save: &mut dyn FnMut(&Record) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        // What cannot be written is told before anything is measured.
        save(record)?;
        for (number, wanted) in wanted(&record.settings).into_iter().enumerate() {
            let Wanted { topology, workload, load, workers, .. } = wanted;
            let scene = Scene::new(topology, &record.settings.cpus, &self.options.bpffs)?;
            if record.cells.len() == number {
                let pace = self.pace(&record.settings, &scene, wanted)?;
                let saturation = record.settings.rate.is_none().then_some(load).flatten();
                record.cells.push(Cell {
                    topology,
                    workload,
                    workers,
                    pace,
                    load: saturation,
                    excluded: BTreeMap::new(),
                    background: Vec::new(),
                    samples: Vec::new(),
                    verdict: None,
                });
            }
            let done = record.cells[number].background.len() as u32;
            for repetition in 0..record.settings.repetitions {
                if repetition < done {
                    self.progress.inc(record.settings.mechanisms.len() as u64);
                    continue;
                }
                self.repeat(record, number, &scene, repetition)?;
                record.goals = goals::judge(record);
                save(record)?;
            }
        }
        if record.settings.costs && record.costs.is_none() {
            self.progress.set_message("costs");
            let costs = costs::measure(&record.settings, self.options, self.interrupt)?;
            record.costs = Some(costs);
            record.goals = goals::judge(record);
            save(record)?;
        }
        self.progress.finish_and_clear();
        Ok(())
    }

    /// In an open loop, a part of what the kernel's hash serves at most.
    fn pace(
        &self,
        settings: &Settings,
        scene: &Scene,
        Wanted { workload, load, connections, workers, .. }: Wanted,
    ) -> Result<Pace, BenchError> {
        let closed = Pace::Closed { connections };
        let Some(load) = load else { return Ok(closed) };
        if let Some(rate) = settings.rate {
            return Ok(Pace::Open { rate });
        }
        let mut stage = self.stage(settings, scene, workload, workers, closed);
        // Its shape without what happens in the middle.
        stage.workload = match workload {
            Workload::W6 | Workload::W7 => Workload::W1,
            Workload::W8 => Workload::W2,
            other => other,
        };
        self.progress.set_message(format!("{} {workload} saturation", scene.topology));
        let seed = derive(settings.seed, u64::MAX);
        let sample = stage.run(Mechanism::Hash, seed)?;
        if sample.requests == 0 {
            let errors = sample.errors;
            return Err(BenchError::NoReplies { mechanism: Mechanism::Hash, errors });
        }
        Ok(Pace::Open { rate: (sample.rate * load).max(1.0).round() })
    }

    fn stage<'b>(
        &'b self,
        settings: &'b Settings,
        scene: &'b Scene,
        workload: Workload,
        workers: u32,
        pace: Pace,
    ) -> Stage<'b> {
        let warmup = Duration::from_secs_f64(settings.warmup);
        Stage {
            scene,
            workload,
            pace,
            cpus: &settings.cpus,
            workers,
            warmup: if settings.quick { warmup } else { warmup.max(workload.least_warmup()) },
            duration: Duration::from_secs_f64(settings.seconds).max(workload.least()),
            bpffs: &self.options.bpffs,
            server: &self.options.server,
            interrupt: self.interrupt,
        }
    }

    /// All mechanisms of a cell, once.
    fn repeat(
        &self,
        record: &mut Record,
        number: usize,
        scene: &Scene,
        repetition: u32,
    ) -> Result<(), BenchError> {
        let (settings, cell) = (&record.settings, &mut record.cells[number]);
        let stage = self.stage(settings, scene, cell.workload, cell.workers, cell.pace);
        // Of its own, so that a resumed bench goes on as it would have.
        let seed = derive(settings.seed, (number as u64) << 32 | u64::from(repetition));
        let mut order = settings.mechanisms.clone();
        Rng::with_seed(seed).shuffle(&mut order);
        let before = Ticks::now().map_err(BenchError::Stat)?;
        self.interrupt.sleep_until(clock::monotonic() + LOOK)?;
        let (busy, _) = before.busy_and_steal(&Ticks::now().map_err(BenchError::Stat)?);
        let mut samples = Vec::new();
        for (mechanism, position) in order.into_iter().zip(0..) {
            self.progress.set_message(format!(
                "{} {} {mechanism}, repetition {}",
                cell.topology,
                cell.workload,
                repetition + 1
            ));
            self.progress.inc(1);
            let Entry::Vacant(excluded) = cell.excluded.entry(mechanism) else { continue };
            if let Some(why) = cell.workload.excludes(mechanism) {
                excluded.insert(why.to_owned());
                continue;
            }
            // The same requests at the same times for all of them.
            match stage.run(mechanism, seed) {
                Ok(mut sample) => {
                    (sample.repetition, sample.position) = (repetition, position);
                    samples.push(sample);
                }
                Err(BenchError::Unavailable(why)) if !is_baseline(mechanism) => {
                    excluded.insert(why);
                }
                Err(BenchError::Unavailable(why)) => {
                    let (topology, workload) = (cell.topology, cell.workload);
                    return Err(BenchError::NoBaseline { mechanism, topology, workload, why });
                }
                Err(error) => return Err(error),
            }
        }
        cell.samples.extend(samples);
        cell.background.push(busy / 100.0);
        cell.verdict = Some(judge::judge(cell, settings));
        Ok(())
    }
}

fn is_baseline(mechanism: Mechanism) -> bool {
    matches!(mechanism, Mechanism::Hash | Mechanism::HashAgain)
}

/// A cell to measure.
#[derive(Clone, Copy)]
struct Wanted {
    topology: Topology,
    workload: Workload,
    /// Part of the saturation, in an open loop.
    load: Option<f64>,
    /// At a time, in a closed loop.
    connections: usize,
    /// On each CPU.
    workers: u32,
}

/// Connections at a time, each with a worker on each CPU.
const CONNECTIONS: [usize; 6] = [1, 4, 16, 64, 256, 1024];
/// Workers on each CPU, beyond that one.
const WORKERS: [u32; 3] = [2, 4, 8];

/// The cells, in order.
fn wanted(settings: &Settings) -> Vec<Wanted> {
    let pairs: Vec<_> = if settings.matrix == Matrix::Goals {
        goals::cells()
    } else {
        let with = |&topology| settings.workloads.iter().map(move |&it| (topology, it));
        settings.topologies.iter().flat_map(with).collect()
    };
    let mut cells = Vec::new();
    for (topology, workload) in pairs.into_iter().filter(|it| it.1.fits(it.0)) {
        let connections = settings.connections;
        let cell = Wanted { topology, workload, load: None, connections, workers: 1 };
        if settings.matrix == Matrix::Series && !workload.is_open() {
            cells.extend(CONNECTIONS.map(|connections| Wanted { connections, ..cell }));
            cells.extend(WORKERS.map(|workers| Wanted { workers, ..cell }));
        } else if !workload.is_open() {
            cells.push(cell);
        } else if settings.rate.is_some() {
            cells.push(Wanted { load: Some(1.0), ..cell });
        } else {
            let loads = settings.loads.iter();
            cells.extend(loads.map(|&load| Wanted { load: Some(load), ..cell }));
        }
    }
    cells
}

/// Hidden unless standard error is a terminal.
fn progress(shown: bool, settings: &Settings) -> ProgressBar {
    let runs = wanted(settings).len() * settings.mechanisms.len();
    let runs = runs as u64 * u64::from(settings.repetitions);
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(runs), target);
    let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {msg}, {eta} left");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
