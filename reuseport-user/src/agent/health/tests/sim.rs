//! A machine in simulated time: one worker per CPU, clients, the kernel's own decision over a table,
//! and the health of it all, polled as the agent would.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use reuseport_common::abi::{ABI_VERSION, Config, EVICTED, Load, Policy, Row, View};
use reuseport_common::decide::{Kernel, Outcome, Run, decide};
use reuseport_common::stats::Hit;

use super::super::*;

/// Microseconds.
type Micros = u64;

pub(super) const MS: Micros = 1000;
pub(super) const SECOND: Micros = 1000 * MS;

/// Entries per row.
const LANES: u32 = 8;

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A connection of this client begins.
    Connect(usize),
    /// A SYN that was dropped is sent again.
    Retry(usize),
    /// This worker is done with a request.
    Done(usize),
    /// It is time to look at the queues.
    Poll,
}

/// Who connects.
#[derive(Clone, Copy, Debug)]
struct Client {
    cpu: u32,
    /// Connections per second, at random; `None` for one that waits for its answer first.
    rate: Option<u64>,
}

#[derive(Debug, Default)]
struct Worker {
    queue: VecDeque<usize>,
    serving: Option<usize>,
    stopped: bool,
    /// What the next request takes, where it is not the usual.
    long: Option<Micros>,
    worked: Micros,
    worked_before: Micros,
}

/// The machine.
pub(super) struct Sim {
    pub(super) now: Micros,
    pub(super) health: Health,
    /// What a request takes.
    pub(super) service: Micros,
    /// The most by which a poll comes late.
    pub(super) jitter: Micros,
    pub(super) backlog: u32,
    /// Whether anything is looked at: without, it is plain steering.
    pub(super) armed: bool,
    /// What turned, and when.
    pub(super) turns: Vec<(Micros, u32, Turn)>,
    pub(super) shifts: Vec<(Micros, Shift)>,
    /// Connections that were put into the queue of a worker that was stopped.
    pub(super) stuck: u64,
    pub(super) served: u64,
    workers: Vec<Worker>,
    clients: Vec<Client>,
    events: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    order: u64,
    random: u64,
    loads: Vec<Load>,
    table: Vec<Row>,
    advice: Advice,
    /// Selections by CPU and slot.
    selections: Vec<Vec<u64>>,
}

/// One run of the program.
struct Packet<'a> {
    sim: &'a Sim,
    cpu: u32,
    hash: u32,
    chosen: Cell<u32>,
}

impl Kernel for Packet<'_> {
    fn cpu(&self) -> u32 {
        self.cpu
    }
    fn hash(&self) -> u32 {
        self.hash
    }
    fn random(&self) -> u32 {
        unreachable!("another policy")
    }
    fn turn(&self) -> u32 {
        unreachable!("another policy")
    }
    fn row(&self, index: u32) -> Option<Row> {
        self.sim.table.get(index as usize).copied()
    }
    fn load(&self, slot: u32) -> Option<Load> {
        self.sim.loads.get(slot as usize).copied()
    }
    fn select(&self, slot: u32) -> bool {
        self.chosen.set(slot);
        true
    }
}

impl Sim {
    pub(super) fn new(cpus: u32, seed: u64) -> Self {
        let mut sim = Self {
            now: 0,
            health: Health::default(),
            service: 50,
            jitter: 0,
            backlog: 511,
            armed: true,
            turns: Vec::new(),
            shifts: Vec::new(),
            stuck: 0,
            served: 0,
            workers: (0..cpus).map(|_| Worker::default()).collect(),
            clients: Vec::new(),
            events: BinaryHeap::new(),
            order: 0,
            random: seed,
            loads: vec![Load::default(); cpus as usize],
            table: Vec::new(),
            advice: Advice::default(),
            selections: vec![vec![0; cpus as usize]; cpus as usize],
        };
        let seat = |slot| Seat {
            slot,
            cookie: u64::from(slot) + 1,
            weight: 100,
            cpus: CpuSet::from([slot]),
        };
        let homes = (0..cpus).map(|cpu| vec![(cpu, 1.0)]).collect();
        sim.health.follow((0..cpus).map(seat).collect(), homes);
        sim.plan();
        sim.schedule(0, Event::Poll);
        sim
    }

    /// Clients on a CPU that each wait for their answer, and begin all at once.
    pub(super) fn closed_loop(&mut self, cpu: u32, count: usize) {
        for _ in 0..count {
            self.clients.push(Client { cpu, rate: None });
            self.schedule(0, Event::Connect(self.clients.len() - 1));
        }
    }

    /// Connections on a CPU that come as they come.
    pub(super) fn open_loop(&mut self, cpu: u32, rate: u64) -> usize {
        self.clients.push(Client { cpu, rate: Some(rate) });
        self.schedule(0, Event::Connect(self.clients.len() - 1));
        self.clients.len() - 1
    }

    /// Lets the connections of an open loop come on another CPU.
    pub(super) fn move_to(&mut self, client: usize, cpu: u32) {
        self.clients[client].cpu = cpu;
    }

    /// SIGSTOP.
    pub(super) fn stop(&mut self, worker: usize) {
        self.workers[worker].stopped = true;
    }

    /// SIGCONT.
    pub(super) fn resume(&mut self, worker: usize) {
        self.workers[worker].stopped = false;
        if self.workers[worker].serving.is_some() {
            // The signal came between its requests.
            self.schedule(0, Event::Done(worker));
        }
        self.serve(worker);
    }

    /// Lets the worker's next request take as long as this.
    pub(super) fn long_request(&mut self, worker: usize, takes: Micros) {
        self.workers[worker].long = Some(takes);
    }

    /// Selections of a slot since the start.
    pub(super) fn selected(&self, slot: usize) -> u64 {
        self.selections.iter().map(|cpu| cpu[slot]).sum()
    }

    /// Goes on for as long as this.
    pub(super) fn run(&mut self, time: Micros) {
        let end = self.now + time;
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            if at > end {
                self.events.push(Reverse((at, 0, event)));
                break;
            }
            self.now = at;
            match event {
                Event::Connect(client) => {
                    if let Some(rate) = self.clients[client].rate {
                        let pause = self.exponential(SECOND as f64 / rate as f64);
                        self.schedule(pause, event);
                    }
                    self.connect(client);
                }
                Event::Retry(client) => self.connect(client),
                Event::Done(worker) => self.finish(worker),
                Event::Poll => self.poll(),
            }
        }
        self.now = end;
    }

    fn schedule(&mut self, pause: Micros, event: Event) {
        self.order += 1;
        self.events.push(Reverse((self.now + pause, self.order, event)));
    }

    fn connect(&mut self, client: usize) {
        let cpu = self.clients[client].cpu;
        let hash = self.next() as u32;
        let view = View {
            policy: Policy::Cpu as u32,
            base: 0,
            rows: self.workers.len() as u32,
            lanes: LANES,
        };
        let config = Config { abi: ABI_VERSION, views: [view; 2], ..Config::default() };
        let packet = Packet { sim: self, cpu, hash, chosen: Cell::new(0) };
        let Outcome::Selected { slot, hit } = decide(&packet, &config, Run::Packet) else {
            panic!("every row has a choice");
        };
        assert_ne!(hit, Hit::Second, "all sockets are alive");
        self.selections[cpu as usize][slot as usize] += 1;
        let worker = &mut self.workers[slot as usize];
        if worker.queue.len() as u32 > self.backlog {
            self.schedule(SECOND, Event::Retry(client));
            return;
        }
        self.stuck += u64::from(worker.stopped);
        worker.queue.push_back(client);
        self.serve(slot as usize);
    }

    /// Accepts the next connection, if the worker is free to.
    fn serve(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.stopped || worker.serving.is_some() {
            return;
        }
        let Some(client) = worker.queue.pop_front() else { return };
        worker.serving = Some(client);
        let takes = worker.long.take().unwrap_or(self.service);
        worker.worked += takes;
        self.schedule(takes, Event::Done(index));
    }

    fn finish(&mut self, index: usize) {
        if self.workers[index].stopped {
            return;
        }
        let Some(client) = self.workers[index].serving.take() else { return };
        self.served += 1;
        if self.clients[client].rate.is_none() {
            // A round trip.
            self.schedule(20, Event::Connect(client));
        }
        self.serve(index);
    }

    fn poll(&mut self) {
        let now = Duration::from_micros(self.now);
        if self.armed {
            self.look(now);
        }
        let late = self.next() % (self.jitter + 1);
        self.schedule(self.health.pause(now).as_micros() as u64 + late, Event::Poll);
    }

    fn look(&mut self, now: Duration) {
        let reading = |(slot, worker): (u32, &Worker)| {
            let queued = worker.queue.len() as u32;
            let selections = self.selected(slot as usize);
            (slot, Reading { queued, backlog: self.backlog, selections })
        };
        let readings: BTreeMap<u32, Reading> = (0..).zip(&self.workers).map(reading).collect();
        for (slot, turn) in self.health.poll(now, &readings) {
            let limit = &mut self.loads[slot as usize].limit;
            *limit = if matches!(turn, Turn::Evicted { .. }) { EVICTED } else { 0 };
            self.turns.push((self.now, slot, turn));
        }
        if self.health.window_is_over(now) {
            let by_cpu = self.selections.iter().map(|cpu| cpu.iter().sum()).collect();
            let busy = |worker: &mut Worker| {
                let worked =
                    worker.worked - std::mem::replace(&mut worker.worked_before, worker.worked);
                (worked as f64 / WINDOW.as_micros() as f64).min(1.0)
            };
            let busy = self.workers.iter_mut().map(busy).collect();
            let shifts = self.health.close_window(now, by_cpu, || Some(busy));
            self.shifts.extend(shifts.into_iter().map(|shift| (self.now, shift)));
        }
        let advice = self.health.advice(now);
        if advice != self.advice {
            self.advice = advice;
            self.plan();
        }
    }

    /// The table: as the planner's for one worker per CPU, all equally near.
    fn plan(&mut self) {
        let cpus = self.workers.len() as u32;
        let well: Vec<u32> = (0..cpus).filter(|slot| !self.advice.out.contains(slot)).collect();
        let row = |(cpu, lane): (u32, u32)| {
            let others: Vec<u32> = well.iter().copied().filter(|slot| *slot != cpu).collect();
            let turn = |slots: &[u32], turn: u32| slots[turn as usize % slots.len()];
            let shared = self.advice.hot.contains(cpu);
            let first = match (shared, self.advice.out.contains(&cpu)) {
                (true, _) => turn(&well, lane),
                (false, true) => turn(&others, lane),
                (false, false) => cpu,
            };
            let rest: Vec<u32> = well.iter().copied().filter(|slot| *slot != first).collect();
            Row {
                first,
                second: rest.get(lane as usize % rest.len().max(1)).copied().unwrap_or(first),
            }
        };
        let entries = (0..cpus).flat_map(|cpu| (0..LANES).map(move |lane| (cpu, lane)));
        self.table = entries.map(row).collect();
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn exponential(&mut self, mean: f64) -> Micros {
        let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        (-(1.0 - uniform).ln() * mean).ceil() as Micros
    }
}
