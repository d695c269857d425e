//! Traffic: connections from chosen CPUs, at a rate or as fast as they are answered, and how long
//! each took.
//!
//! At a rate (open loop) they come at random, as from many clients that know nothing of each other,
//! and each is timed from when it was due: a server that stalls delays none of those that follow.
//! Tails are measured this way. In a closed loop each client waits for its answer first: that is for
//! throughput.
//!
//! One thread per entry, pinned: on loopback a connection is received on the CPU that makes it.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::measure::{Rng, exponential};
use crate::netns::Netns;
use crate::sys;
use crate::sys::reactor::{self, Reactor};

/// How connections follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// At random, so many per second.
    Open(f64),
    /// So many at a time, each begun when another ends.
    Closed(usize),
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A server that speaks first.
    pub address: SocketAddr,
    /// From which CPU, and how.
    pub from: Vec<(u32, Pace)>,
    /// How long connections are begun.
    pub lasts: Duration,
    /// How long those that are not answered by the end are waited for.
    pub patience: Duration,
    /// Repeats the times of an earlier run.
    pub seed: u64,
}

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The CPU it came from.
    pub cpu: u32,
    /// When it was due, since the traffic began.
    pub at: Duration,
    /// From then to the first byte of its answer; `None` where it was refused, reset, or not
    /// answered to the end.
    pub took: Option<Duration>,
}

/// Traffic under way; ended and waited for on drop.
#[derive(Debug)]
pub struct Traffic {
    /// When it begins.
    pub began: Instant,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Connection>>>,
}

impl Traffic {
    /// Starts it in `netns`.
    pub fn start(netns: &Netns, plan: &Plan) -> Self {
        sys::usage::raise_open_files().expect("raise RLIMIT_NOFILE");
        let began = Instant::now() + Duration::from_millis(20);
        let stop = Arc::new(AtomicBool::new(false));
        let threads = plan.from.iter().zip(0..).map(|(&(cpu, pace), place)| {
            let (plan, inside, stop) = (plan.clone(), netns.file(), Arc::clone(&stop));
            thread::spawn(move || {
                sys::enter_netns(&inside).expect("setns");
                sys::pin(0, &[cpu]).unwrap_or_else(|error| panic!("run on CPU {cpu}: {error}"));
                thread::sleep(began.saturating_duration_since(Instant::now()));
                Client::new(cpu, &plan, began, plan.seed.wrapping_add(place)).run(pace, &stop)
            })
        });
        let threads = threads.collect();
        Self { began, stop, threads }
    }

    /// Waits for its end; all connections, in no order.
    pub fn finish(mut self) -> Vec<Connection> {
        let join = |thread: JoinHandle<_>| thread.join().expect("a client thread");
        self.threads.drain(..).flat_map(join).collect()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn open_loop(pace: Pace) -> bool {
    matches!(pace, Pace::Open(_))
}

/// Times that connections took, in milliseconds, ascending; those without an answer count as
/// `missing`.
pub fn sorted_ms<'a>(
    connections: impl IntoIterator<Item = &'a Connection>,
    missing: Duration,
) -> Vec<f64> {
    let took = |it: &Connection| it.took.unwrap_or(missing).as_secs_f64() * 1e3;
    let mut all: Vec<f64> = connections.into_iter().map(took).collect();
    all.sort_by(f64::total_cmp);
    all
}

/// One thread's connections.
struct Client<'a> {
    cpu: u32,
    plan: &'a Plan,
    began: Instant,
    rng: Rng,
    reactor: Reactor,
    /// Connections under way, by token, and when they were due.
    open: Vec<Option<(TcpStream, Duration)>>,
    free: Vec<usize>,
    done: Vec<Connection>,
}

impl<'a> Client<'a> {
    fn new(cpu: u32, plan: &'a Plan, began: Instant, seed: u64) -> Self {
        let reactor = Reactor::new().expect("an epoll set");
        let rng = Rng::with_seed(seed);
        Self {
            cpu,
            plan,
            began,
            rng,
            reactor,
            open: Vec::new(),
            free: Vec::new(),
            done: Vec::new(),
        }
    }

    fn run(mut self, pace: Pace, stop: &AtomicBool) -> Vec<Connection> {
        let mut due = Duration::ZERO;
        if let Pace::Closed(count) = pace {
            (0..count).for_each(|_| self.begin(Duration::ZERO));
        }
        while !stop.load(Relaxed) {
            let now = self.began.elapsed();
            // What is late because this thread is counts as late: none is left out.
            let over = now >= self.plan.lasts && !(open_loop(pace) && due < self.plan.lasts);
            if over && (self.is_idle() || now >= self.plan.lasts + self.plan.patience) {
                break;
            }
            let mut wait = Duration::from_millis(20);
            if let Pace::Open(rate) = pace
                && !over
            {
                while due <= now && due < self.plan.lasts {
                    self.begin(due);
                    due += Duration::from_secs_f64(exponential(&mut self.rng) / rate);
                }
                wait = wait.min(due.saturating_sub(self.began.elapsed()));
            }
            let ended = self.look(wait);
            let now = self.began.elapsed();
            if !open_loop(pace) && now < self.plan.lasts {
                (0..ended).for_each(|_| self.begin(now));
            }
        }
        let unanswered = self.open.iter().flatten();
        let unanswered =
            unanswered.map(|(_, at)| Connection { cpu: self.cpu, at: *at, took: None });
        self.done.extend(unanswered);
        self.done
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.open.len()
    }

    fn begin(&mut self, at: Duration) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        let stream = reactor::connect(reactor::v4(self.plan.address)).and_then(|stream| {
            sys::reset_on_close(stream.as_fd())?;
            self.reactor.add(&stream, place as u64)?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => self.open[place] = Some((stream, at)),
            // Refused at once, or out of ports.
            Err(_) => self.end(place, at, None),
        }
    }

    /// Waits for answers; says how many connections ended.
    fn look(&mut self, wait: Duration) -> usize {
        let mut ended = 0;
        for token in self.reactor.wait(wait).expect("epoll_pwait2") {
            let place = token as usize;
            let Some((stream, at)) = &mut self.open[place] else { continue };
            let at = *at;
            let took = match reactor::receive(stream, &mut [0; 1024]) {
                Ok(None) => continue,
                Ok(Some(count)) if count > 0 => Some(self.began.elapsed().saturating_sub(at)),
                _ => None,
            };
            self.end(place, at, took);
            ended += 1;
        }
        ended
    }

    fn end(&mut self, place: usize, at: Duration, took: Option<Duration>) {
        self.open[place] = None;
        self.free.push(place);
        self.done.push(Connection { cpu: self.cpu, at, took });
    }
}
