//! The library's per-core server against others with the same service: requests per second, with a
//! connection for each request and with connections that are kept.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use reuseport_tests::binary::Cli;
use reuseport_tests::measure::{Goal, estimate, ratios};
use reuseport_tests::netns::Netns;
use reuseport_tests::server::{self, Server};
use reuseport_tests::{cpus, require, sys};
use reuseport_user::group::Group;
use serde_json::json;

use crate::Bench;

/// One that nobody else listens on, in any namespace; each server takes the next.
const PORT: u16 = 18_800;

/// How it is served; see `steer-http-server`.
const MODES: [&str; 5] = ["multi", "hash", "hash", "incoming-cpu", "steered"];
/// What each is called, against which the others are measured.
const NAMES: [&str; 5] = [
    "tokio multi-thread, one listener",
    "per core, plain reuseport",
    "per core, plain reuseport (control)",
    "per core, SO_INCOMING_CPU",
    "per core, steered",
];
const BASE: usize = 0;
const PLAIN: usize = 1;
const CONTROL: usize = 2;
const STEERED: usize = 4;

/// Connections at a time from each CPU that clients run on, each with a thread of its own.
const CLIENTS: usize = 8;

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// Requests on each connection.
    requests: u32,
    /// All clients on one CPU.
    skewed: bool,
}

const CASES: [Case; 4] = [
    Case { name: "short, balanced", requests: 1, skewed: false },
    Case { name: "keep-alive, balanced", requests: 100, skewed: false },
    Case { name: "short, skewed", requests: 1, skewed: true },
    Case { name: "keep-alive, skewed", requests: 100, skewed: true },
];

pub(crate) fn run(bench: &mut Bench) {
    require::cpus(2);
    opening(bench);
    let netns = Netns::new();
    // Every connection leaves a TIME_WAIT: room for them, and reuse.
    netns.sysctl("net/ipv4/ip_local_port_range", "1024 18000");
    netns.sysctl("net/ipv4/tcp_tw_reuse", "1");
    publishing(bench, &netns);
    let servers: Vec<(Server, SocketAddr)> =
        (PORT..).zip(MODES).map(|(port, mode)| start(&netns, mode, port)).collect();
    for case in CASES {
        measure(bench, &netns, &servers, case);
    }
    // Every steered packet went to a worker on the CPU that received it.
    let (_, address) = &servers[STEERED];
    let port = address.port().to_string();
    let status = Cli::new(["status", "--port", &port, "--json"]).netns(&netns).run().ok().json();
    let counters = &status[0]["steering"]["counters"];
    let local = counters["runs"].as_u64() > Some(0) && counters["runs"] == counters["local"];
    bench.report.gate("all local", local, counters);
    for (mut server, _) in servers {
        server.signal(libc::SIGTERM);
        // The one with tokio's runtime dies of it; the steered one takes its pins along.
        let _status = server.wait();
    }
}

fn start(netns: &Netns, mode: &str, port: u16) -> (Server, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut command = netns.command(server::http());
    command.args([mode, &address.to_string()]);
    (Server::spawn(command), address)
}

fn measure(bench: &mut Bench, netns: &Netns, servers: &[(Server, SocketAddr)], case: Case) {
    let (rounds, millis) = bench.choose((15, 1500), (3, 300));
    let mut found: Vec<Vec<f64>> = vec![Vec::new(); MODES.len()];
    let mut failed = 0;
    for _ in 0..rounds {
        let mut order: Vec<usize> = (0..MODES.len()).collect();
        bench.rng.shuffle(&mut order);
        for mode in order {
            let done = load(netns, servers[mode].1, case, Duration::from_millis(millis));
            found[mode].push(done.per_second);
            failed += done.failed;
        }
    }
    let ratio = |bench: &mut Bench, mode: usize, to: usize, goal| {
        let spread = estimate(&ratios(&found[mode], &found[to]), &mut bench.rng);
        let title = format!("{}: {} / {}", case.name, NAMES[mode], short(to));
        bench.report.figure(&title, "x", &spread, goal);
    };
    for mode in PLAIN..MODES.len() {
        if mode != CONTROL {
            ratio(bench, mode, BASE, None);
        }
    }
    // Balanced clients have to gain from it; the others are shown, not judged.
    let goal = (!case.skewed).then_some(Goal::AtLeast(1.0));
    ratio(bench, STEERED, PLAIN, goal);
    ratio(bench, CONTROL, PLAIN, None);
    let plain = estimate(&found[BASE], &mut bench.rng);
    bench.report.note(&format!("{}: {:.0} requests/s", NAMES[BASE], plain.median()));
    bench.report.gate(&format!("{}: no failed request", case.name), failed == 0, &json!(failed));
}

fn short(mode: usize) -> &'static str {
    if mode == BASE { "multi-thread" } else { "plain" }
}

/// What publishing the load costs: an accept loop that does, and the same one that does not.
fn publishing(bench: &mut Bench, netns: &Netns) {
    let (rounds, millis) = bench.choose((30, 1000), (3, 200));
    let modes = ["publishing", "silent"];
    let servers: Vec<_> =
        (PORT + 50..).zip(modes).map(|(port, mode)| start(netns, mode, port)).collect();
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let mut order = [0, 1];
        bench.rng.shuffle(&mut order);
        for mode in order {
            let done = load(netns, servers[mode].1, CASES[0], Duration::from_millis(millis));
            found[mode].push(done.per_second);
        }
    }
    let [publishing, silent] = &found;
    let spread = estimate(&ratios(publishing, silent), &mut bench.rng);
    let goal = Some(Goal::AtLeast(0.99));
    bench.report.figure("load published / not published, short", "x", &spread, goal);
    for (server, _) in servers {
        server.stop();
    }
    // The store itself, without the connection around it.
    let nanoseconds = netns.run_in(|| {
        let address = SocketAddr::from(([127, 0, 0, 1], PORT + 60));
        let mut group = Group::builder().tcp(address).build().expect("a group");
        let workers = group.take_workers();
        let load = workers[0].load_guard();
        assert!(load.is_published(), "{}", group.rung());
        let turns = 1_000_000;
        let one = |_| {
            let start = Instant::now();
            for _ in 0..turns {
                drop(std::hint::black_box(load.enter()));
            }
            start.elapsed().as_nanos() as f64 / f64::from(turns)
        };
        (0..bench.choose(21, 3)).map(one).collect::<Vec<f64>>()
    });
    let spread = estimate(&nanoseconds, &mut bench.rng);
    bench.report.figure("one connection published, begin and end", "ns", &spread, None);
}

/// How long it takes to open 64 listeners and to steer them, in a process that just began.
fn opening(bench: &mut Bench) {
    let netns = Netns::new();
    let once = |_| -> (f64, f64) {
        let (mut server, _) = start(&netns, "open", PORT + 70);
        assert!(server.wait().0.success());
        let times = server.ready.split_once(' ');
        let times =
            times.and_then(|(wall, process)| Some((wall.parse().ok()?, process.parse().ok()?)));
        times.unwrap_or_else(|| panic!("not two numbers: {}", server.ready))
    };
    // The first reads the binary from disk.
    let times: Vec<(f64, f64)> = (0..=bench.choose(25, 3)).map(once).skip(1).collect();
    let (wall, process): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
    let wall = estimate(&wall, &mut bench.rng);
    let goal = Some(Goal::AtMost(50.0));
    bench.report.figure("64 listeners opened and steered, wall time", "ms", &wall, goal);
    let process = estimate(&process, &mut bench.rng);
    bench.report.figure("64 listeners opened and steered, process time", "ms", &process, None);
}

/// What clients saw.
struct Done {
    per_second: f64,
    failed: u64,
}

/// Requests as fast as they are answered, after a short warm-up.
fn load(netns: &Netns, address: SocketAddr, case: Case, duration: Duration) -> Done {
    let places: Vec<u32> = if case.skewed {
        std::iter::repeat_n(cpus()[0], CLIENTS * cpus().len()).collect()
    } else {
        cpus().into_iter().flat_map(|cpu| std::iter::repeat_n(cpu, CLIENTS)).collect()
    };
    let (counts, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let client = |cpu: u32| {
        sys::enter_netns(&netns.file()).expect("setns");
        sys::pin(0, &[cpu]).unwrap_or_else(|error| panic!("run on CPU {cpu}: {error}"));
        let (mut answered, mut failed) = (0_u64, 0_u64);
        while !stop.load(Relaxed) {
            let served = |(): ()| answered += u64::from(counts.load(Relaxed));
            let left = || !stop.load(Relaxed);
            if converse(address, case.requests, left, served).is_err() {
                failed += 1;
            }
        }
        (answered, failed)
    };
    thread::scope(|scope| {
        let clients: Vec<_> = places.iter().map(|&cpu| scope.spawn(move || client(cpu))).collect();
        thread::sleep(duration / 5);
        counts.store(true, Relaxed);
        let start = Instant::now();
        thread::sleep(duration);
        counts.store(false, Relaxed);
        let took = start.elapsed().as_secs_f64();
        stop.store(true, Relaxed);
        let ended = clients.into_iter().map(|client| client.join().expect("a client"));
        let (answered, failed) = ended.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        Done { per_second: answered as f64 / took, failed }
    })
}

/// One connection with up to `requests` requests, for as long as there is time left.
fn converse(
    address: SocketAddr,
    requests: u32,
    left: impl Fn() -> bool,
    mut served: impl FnMut(()),
) -> io::Result<()> {
    const KEPT: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
    const CLOSED: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answer = [0; 1024];
    for _ in 0..requests {
        stream.write_all(if requests == 1 { CLOSED } else { KEPT })?;
        // The whole of it comes in one piece.
        let length = stream.read(&mut answer)?;
        if !answer[..length].ends_with(b"Hello, world!") {
            return Err(io::ErrorKind::InvalidData.into());
        }
        served(());
        if !left() {
            break;
        }
    }
    if requests == 1 {
        // The server closes first; our reset clears its side, so that no port is ever used up.
        while stream.read(&mut answer)? > 0 {}
        sys::reset_on_close(stream.as_fd())?;
    }
    Ok(())
}
