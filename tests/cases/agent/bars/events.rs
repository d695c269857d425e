//! Workers that are killed, stopped, started, and join, in any order, under load: after each event
//! the mapping is right, and no connection is lost but those that a killed worker had in hand.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reuseport_tests::measure::Rng;
use reuseport_tests::netns::Netns;
use reuseport_tests::require;
use reuseport_tests::traffic::{Pace, Plan, Traffic};
use reuseport_tests::worker::{Spec, Worker};
use reuseport_tests::{cpus, eventually};
use reuseport_user::discover::{Look, NetnsChoice, Target};
use reuseport_user::model;

use super::super::{PATIENCE, two};
use super::mapping::{Live, Mapping};
use super::{is_full, length, migrations, quantile};
use crate::scene::Scene;

const PORT: u16 = 8080;
/// Workers in the beginning; as many as are ever missing return.
const USUAL: u32 = 8;
/// With those that join.
const MOST: usize = 12;
/// Those that accept.
const LEAST: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
    /// One that was killed returns.
    Start,
    /// One more, on either CPU.
    Join,
}

struct Seated {
    worker: Worker,
    index: u32,
    live: Live,
}

/// A run of many events.
struct Run {
    rng: Rng,
    workers: Vec<Seated>,
    /// CPUs of those that were killed, to return to.
    missing: Vec<u32>,
    next: u32,
    /// Connections that killed workers had in hand.
    in_hand: u64,
    pins: PathBuf,
    healed: Vec<Duration>,
    spilled: Vec<Duration>,
    /// From the first connection that waits at a stopped worker until it is steered around.
    held: Vec<Duration>,
    look: Look,
    scene: Scene,
}

#[test]
fn after_any_event_the_mapping_is_right_and_nothing_else_is_lost() {
    require::cpus(2);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    let told = std::env::var("REUSEPORT_BARS_SEED").ok();
    let seed = told.map_or(now.subsec_nanos().into(), |seed| seed.parse().expect("a number"));
    let count = length(1000, 12);
    println!("{count} events, REUSEPORT_BARS_SEED={seed}");
    let mut run = Run::new(seed);
    // It never settles, so nobody is taken for a newer generation of somebody else.
    let agent = run.scene.agent(&["--generation-timeout", "1440m", "--widen", "off"]);
    let status = run.scene.becomes("steered", |status| status["steering"]["in_force"] == true);
    run.pins = PathBuf::from(status["steering"]["pins"].as_str().expect("a path"));
    let address = "127.0.0.1:8080".parse().expect("an address");
    let from = two().map(|cpu| (cpu, Pace::Open(150.0))).to_vec();
    let lasts = Duration::from_hours(2);
    let traffic =
        Traffic::start(&run.scene.netns, &Plan { address, from, lasts, patience: PATIENCE, seed });
    for place in 0..count {
        let event = run.pick();
        run.perform(event, &|| format!("event {place} ({event:?})\n{}", agent.log()));
    }
    for it in run.workers.iter_mut().filter(|it| !it.live.runs) {
        it.worker.thaw();
        it.live.runs = true;
    }
    let connections = traffic.end();
    let failed = connections.iter().filter(|it| it.took.is_none()).count() as u64;
    let [moved, lost] = migrations(&run.scene.netns);
    let p = |figures: &[Duration], share| quantile(figures, share);
    println!(
        "{} connections, {failed} failed, {} in the hands of killed workers; {moved} migrated, {lost} \
         could not be. {} heals: median {:.1?}, p99 {:.1?}, most {:.1?}. {} stops until steered \
         around: median {:.1?}, p99 {:.1?}; from the first that waits: median {:.1?}, p99 {:.1?}",
        connections.len(),
        run.in_hand,
        run.healed.len(),
        p(&run.healed, 0.5),
        p(&run.healed, 0.99),
        p(&run.healed, 1.0),
        run.spilled.len(),
        p(&run.spilled, 0.5),
        p(&run.spilled, 0.99),
        p(&run.held, 0.5),
        p(&run.held, 0.99),
    );
    assert!(connections.len() > 10 * count as usize, "there was no load");
    assert!(failed <= run.in_hand, "{failed} failed, {} were in hand", run.in_hand);
    for (what, figures) in [("heals", &run.healed), ("held", &run.held)] {
        let slowest = p(figures, 0.99);
        let fast = slowest < Duration::from_millis(100);
        assert!(!is_full() || fast, "{what}: p99 {slowest:.1?}");
    }
    agent.stop();
}

/// Eyes on the accept queues in a namespace.
fn look(netns: &Netns) -> Look {
    let path = netns.path();
    let target = Target { netns: NetnsChoice::Path(path), ..Target::tcp(PORT) };
    let found =
        model::Netns { cookie: netns.cookie(), inode: netns.inode(), pid: None, own: false };
    Look::open(&target, &found).expect("look at the namespace")
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut scene = Scene::new();
        scene.workers.clear();
        let mut run = Self {
            rng: Rng::with_seed(seed),
            workers: Vec::new(),
            missing: Vec::new(),
            next: 0,
            in_hand: 0,
            pins: PathBuf::new(),
            healed: Vec::new(),
            spilled: Vec::new(),
            held: Vec::new(),
            look: look(&scene.netns),
            scene,
        };
        for place in 0..USUAL {
            run.start(two()[place as usize % 2]);
        }
        run
    }

    fn start(&mut self, cpu: u32) {
        let index = self.next;
        self.next += 1;
        // Now and then one is killed with a connection in hand.
        let nap = 2000;
        let spec = Spec { index, cpus: vec![cpu], ledger: true, nap, ..Spec::default() };
        let worker = Worker::start(&self.scene.netns, &spec);
        let live = Live { cookie: worker.cookies()[0], cpu, runs: true };
        self.workers.push(Seated { worker, index, live });
    }

    fn live(&self) -> Vec<Live> {
        self.workers.iter().map(|it| it.live).collect()
    }

    /// Any of those that accept, or do not.
    fn any(&mut self, running: bool) -> usize {
        let places = 0..self.workers.len();
        let fits: Vec<_> = places.filter(|&it| self.workers[it].live.runs == running).collect();
        fits[self.rng.usize(..fits.len())]
    }

    /// Any event that may be now.
    fn pick(&mut self) -> Event {
        let running = self.workers.iter().filter(|it| it.live.runs).count();
        let stopped = self.workers.len() - running;
        let may = [
            (Event::Kill, running > LEAST),
            (Event::Stop, running > LEAST && stopped < 3),
            (Event::Continue, stopped > 0),
            (Event::Start, !self.missing.is_empty()),
            (Event::Join, self.workers.len() < MOST),
        ];
        let may: Vec<_> = may.into_iter().filter(|(_, may)| *may).map(|(it, _)| it).collect();
        may[self.rng.usize(..may.len())]
    }

    /// Does it, and waits until the mapping is right.
    fn perform(&mut self, event: Event, context: &dyn Fn() -> String) {
        let mut began = Instant::now();
        match event {
            Event::Kill => {
                let running = self.rng.usize(..4) > 0 || self.workers.iter().all(|it| it.live.runs);
                let place = self.any(running);
                let mut killed = self.workers.swap_remove(place);
                began = Instant::now();
                killed.worker.kill();
                self.in_hand += killed.worker.in_hand();
                self.missing.push(killed.live.cpu);
            }
            Event::Stop => {
                let place = self.any(true);
                // The last one is the one that was stopped last.
                let mut stopped = self.workers.swap_remove(place);
                stopped.worker.freeze();
                stopped.live.runs = false;
                self.workers.push(stopped);
            }
            Event::Continue => {
                let place = self.any(false);
                self.workers[place].worker.thaw();
                self.workers[place].live.runs = true;
            }
            Event::Start | Event::Join => {
                let cpu = match event {
                    Event::Start => self.missing.swap_remove(self.rng.usize(..self.missing.len())),
                    _ => two()[self.rng.usize(..2)],
                };
                self.start(cpu);
                began = Instant::now();
            }
        }
        let live = self.live();
        let mut wrong = Ok(());
        let mut waits = None;
        let deadline = began + PATIENCE;
        while Instant::now() < deadline {
            if event == Event::Stop && waits.is_none() && self.is_held() {
                waits = Some(Instant::now());
            }
            // Pins are replaced whole, and may be gone for a moment.
            let mapping = Mapping::of_pins(&self.pins).map_err(|error| error.to_string());
            wrong = mapping.and_then(|mapping| mapping.check(&live));
            if wrong.is_ok() {
                break;
            }
            sleep(Duration::from_millis(1));
        }
        let took = began.elapsed();
        assert!(wrong.is_ok(), "{wrong:?}\n{}", context());
        match event {
            Event::Kill | Event::Start | Event::Join => self.healed.push(took),
            Event::Stop => {
                self.spilled.push(took);
                self.held.extend(waits.map(|since| since.elapsed()));
            }
            // Whether it gets its rows back at once is up to how often it hung before.
            Event::Continue => {}
        }
        self.confirm(&live, context);
    }

    /// Whether a connection waits at the worker that was stopped last.
    fn is_held(&mut self) -> bool {
        let address = SocketAddr::from(([0, 0, 0, 0], PORT));
        let cookie = self.workers.last().expect("a worker").live.cookie;
        let queues = self.look.queues(&address).expect("accept queues");
        queues.iter().any(|it| it.cookie == cookie && it.queued > 0)
    }

    /// Asks `status`, and sees where connections land. A busy machine may keep any worker from
    /// accepting meanwhile, which changes the mapping: then it is asked again.
    fn confirm(&self, live: &[Live], context: &dyn Fn() -> String) {
        let mut wrong = Ok(());
        let confirmed = eventually(PATIENCE, || {
            let before = Mapping::of_status(&self.scene.status());
            wrong = before.check(live).and_then(|()| self.land(live, !before.evicted.is_empty()));
            wrong.is_ok()
        });
        assert!(confirmed, "{wrong:?}\n{}", context());
    }

    /// Connections from each CPU reach its own workers, while none of those is evicted.
    fn land(&self, live: &[Live], evictions: bool) -> Result<(), String> {
        for cpu in cpus() {
            let tally = self.scene.from(cpu, 5);
            let own = live.iter().any(|it| it.cpu == cpu && it.runs) && !evictions;
            let fits = |it: &Seated| it.live.runs && (it.live.cpu == cpu || !own);
            let fits = self.workers.iter().filter(|it| fits(it));
            let fits: Vec<String> = fits.map(|it| it.index.to_string()).collect();
            let stray = tally.by_worker(cpu).keys().any(|it| !fits.contains(&(*it).to_owned()));
            if tally.failed() > 0 || stray {
                return Err(format!("{tally}, but those of CPU {cpu} are {fits:?}"));
            }
        }
        Ok(())
    }
}
