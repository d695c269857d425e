//! The generator against servers of which is known what they do.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use socket2::{Domain, Socket, Type};

use super::*;
use crate::bench::protocol::{REPLY, REQUEST};

/// One thread that answers one connection after the other, each after `delay`, and stands still once
/// for `stall` when it has answered for `before`. It ends with the test.
fn serve(delay: Duration, stall: Option<(Duration, Duration)>) -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    // All that comes while it stands still waits there.
    socket.listen(4096).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let began = clock::monotonic();
    let mut stall = stall;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if let Some((_, lasts)) = stall.take_if(|it| clock::monotonic() >= began + it.0) {
                thread::sleep(lasts);
            }
            if stream.read_exact(&mut [0; REQUEST]).is_ok() {
                thread::sleep(delay);
                drop(stream.write_all(&[b'.'; REPLY]));
            }
        }
    });
    address
}

fn load(address: SocketAddr, pace: Pace) -> Seen {
    let cpu = crate::sys::sched::affinity(0).unwrap().first().unwrap();
    let plan = plan(address, cpu, pace);
    run(&plan, window(&plan), &Arc::default()).unwrap()
}

fn plan(address: SocketAddr, cpu: Cpu, pace: Pace) -> Plan {
    Plan {
        address,
        udp: false,
        clients: vec![cpu],
        pace,
        work: Work::None,
        requests: 1,
        warmup: Duration::from_millis(100),
        duration: Duration::from_millis(1500),
        seed: 1,
        skew: false,
    }
}

/// The stall of a server, as an open loop and a closed loop tell of it: half a second of the requests
/// waits for it, and the closed loop has made none of them but those that were under way.
#[test]
fn what_a_stall_delays_is_counted_in_an_open_loop_only() {
    let stall = Some((Duration::from_millis(500), Duration::from_millis(500)));
    let open = load(serve(Duration::ZERO, stall), Pace::Open { rate: 1000.0 });
    assert!(open.errors.is_empty() && open.unanswered == 0, "{:?}", open.errors);
    let ms = |seen: &Seen, part| seen.latency.value_at_quantile(part) as f64 / 1e6;
    // About 1500 were due in the window, 500 of them while it stood still.
    assert!((1300..1700).contains(&open.latency.len()), "{}", open.latency.len());
    assert!(ms(&open, 0.99) >= 400.0, "p99 {} ms", ms(&open, 0.99));
    assert!(open.stuck >= 300, "{}", open.stuck);
    assert!(open.slowest.iter().any(|&slowest| slowest >= 450_000_000), "{:?}", open.slowest);

    let closed = load(serve(Duration::ZERO, stall), Pace::Closed { connections: 2 });
    assert!(closed.errors.is_empty(), "{:?}", closed.errors);
    assert!(closed.stuck < 100, "a closed loop hides it: {}", closed.stuck);
    assert!(closed.latency.max() >= 450_000_000, "{}", closed.latency.max());
}

/// A client that comes to run late makes all that was due meanwhile, and counts it as late as it is.
#[test]
fn a_late_client_owes_what_was_due_before_it_ran() {
    let cpu = crate::sys::sched::affinity(0).unwrap().first().unwrap();
    let plan = plan(serve(Duration::ZERO, None), cpu, Pace::Open { rate: 1000.0 });
    let window = window(&plan);
    thread::sleep(plan.warmup + Duration::from_millis(400));
    let seen = run(&plan, window, &Arc::default()).unwrap();
    assert!((1300..1700).contains(&seen.latency.len()), "{}", seen.latency.len());
    assert!(seen.stuck >= 250, "{}", seen.stuck);
}

#[test]
fn a_known_delay_is_what_is_measured() {
    let delay = Duration::from_millis(5);
    let seen = load(serve(delay, None), Pace::Open { rate: 50.0 });
    assert!(seen.latency.len() > 30, "{}", seen.latency.len());
    assert!(seen.latency.min() >= 5_000_000, "{}", seen.latency.min());
    // The fastest, as a busy machine delays the others.
    assert!(seen.latency.min() < 20_000_000, "{}", seen.latency.min());
}

#[test]
fn nobody_there_is_an_error_each_time() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let seen = load(free, Pace::Closed { connections: 1 });
    assert_eq!(seen.latency.len(), 0);
    let (error, count) = seen.errors.iter().next().unwrap();
    assert!(error.contains("refused") && *count > 10, "{count} x {error}");
}

/// Their time is counted after the window, when those that have all their answers would be gone.
#[test]
fn threads_stay_until_their_time_is_counted() {
    let address = serve(Duration::ZERO, None);
    let cpu = crate::sys::sched::affinity(0).unwrap().first().unwrap();
    let plan = Plan {
        duration: Duration::from_millis(200),
        ..plan(address, cpu, Pace::Closed { connections: 1 })
    };
    let (window, shared) = (window(&plan), Arc::new(Shared::staying()));
    thread::scope(|scope| {
        let load = scope.spawn(|| run(&plan, window, &shared));
        thread::sleep((window.end + Duration::from_millis(300)).saturating_sub(clock::monotonic()));
        let ran = crate::bench::host::running(&shared.tids());
        assert!(!ran.is_zero() && !load.is_finished());
        shared.stay.store(false, Ordering::Relaxed);
        assert!(!load.join().unwrap().unwrap().latency.is_empty());
    });
}
