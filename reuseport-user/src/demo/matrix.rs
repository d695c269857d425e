//! Who accepted what was received where.

use std::io::{self, Write};

use serde::Serialize;

use crate::model::{Cpu, CpuSet};

/// Connections by the CPU that received them (rows) and the CPU of the worker that accepted them
/// (columns).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Matrix {
    /// The rows' CPUs.
    pub received: Vec<Cpu>,
    /// The columns' CPUs.
    pub workers: Vec<Cpu>,
    /// Row by row.
    pub counts: Vec<Vec<u64>>,
}

impl Matrix {
    /// Zeros, with a row and a column per CPU.
    pub fn new(cpus: &CpuSet) -> Self {
        let workers: Vec<Cpu> = cpus.iter().collect();
        let counts = vec![vec![0; workers.len()]; workers.len()];
        Self { received: workers.clone(), workers, counts }
    }

    /// The same rows and columns, all zeros.
    pub(super) fn cleared(&self) -> Self {
        let counts = vec![vec![0; self.workers.len()]; self.received.len()];
        Self { counts, ..self.clone() }
    }

    /// Adds `count` connections. A receiving CPU without a row gets one: softirqs run where the
    /// kernel puts them (RPS on the loopback). `worker` must be a column.
    pub fn add(&mut self, received: Cpu, worker: Cpu, count: u64) {
        let Some(column) = self.workers.iter().position(|cpu| *cpu == worker) else {
            return;
        };
        let row = self.received.iter().position(|cpu| *cpu == received).unwrap_or_else(|| {
            self.received.push(received);
            self.counts.push(vec![0; self.workers.len()]);
            self.received.len() - 1
        });
        self.counts[row][column] += count;
    }

    /// Adds another, cell by cell.
    pub(super) fn merge(&mut self, other: &Self) {
        for (received, row) in other.received.iter().zip(&other.counts) {
            for (worker, count) in other.workers.iter().zip(row) {
                self.add(*received, *worker, *count);
            }
        }
    }

    /// All connections.
    pub fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Share of connections accepted on the CPU that received them, 0 to 1; not a number without
    /// any.
    pub fn locality(&self) -> f64 {
        let mut local = 0;
        for (received, row) in self.received.iter().zip(&self.counts) {
            for (worker, count) in self.workers.iter().zip(row) {
                local += if received == worker { *count } else { 0 };
            }
        }
        local as f64 / self.total() as f64
    }

    pub(super) fn print_into(&self, out: &mut impl Write) -> io::Result<()> {
        write!(out, "  {:<16}", "")?;
        for worker in &self.workers {
            write!(out, " {:>10}", format!("worker {worker}"))?;
        }
        writeln!(out)?;
        for (received, row) in self.received.iter().zip(&self.counts) {
            write!(out, "  {:<16}", format!("received on {received}"))?;
            for count in row {
                write!(out, " {count:>10}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}
