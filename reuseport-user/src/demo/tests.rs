//! The demo for real: processes, sockets and signals, with `SO_INCOMING_CPU` as the mechanism. A
//! worker (and, for signals, a whole demo) is this test binary again, run for one of the two entries
//! below.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::group::Group;
use super::*;

mod faults;

/// What an entry is to be in the child.
const ROLE: &str = "REUSEPORT_DEMO_TEST";

#[test]
fn worker_entry() {
    if std::env::var_os(ROLE).is_some_and(|role| role == "worker") {
        worker::run().expect("a worker ends well when the demo closes its socket");
    }
}

#[test]
fn demo_entry() {
    if std::env::var_os(ROLE).is_some_and(|role| role == "demo") {
        let options = DemoOptions { rounds: 100, duration: Duration::from_secs(2), ..quick() };
        let outcome = run(&options, &mut Spoken);
        say(&format!(
            "ended {}",
            outcome.err().map_or_else(String::new, |error| error.to_string())
        ));
    }
}

fn say(line: &str) {
    writeln!(io::stdout(), "\n{line}").expect("the test reads");
}

/// Tells its calls.
struct Spoken;

impl Steering for Spoken {
    fn on(&mut self, port: u16) -> Result<(), SteeringError> {
        say(&format!("on {port}"));
        Ok(())
    }

    fn off(&mut self, port: u16) -> Result<(), SteeringError> {
        // Workers must outlive steering, so that it is taken from a group that still exists.
        say(&format!("off {}", if refused(port) { "too late" } else { "in time" }));
        Ok(())
    }
}

fn entry(name: &str, role: &str) -> WorkerCommand {
    WorkerCommand {
        program: std::env::current_exe().expect("this binary"),
        arguments: vec!["--exact".into(), name.into(), "--nocapture".into()],
        environment: vec![(OsString::from(ROLE), role.into())],
    }
}

fn quick() -> DemoOptions {
    DemoOptions {
        rounds: 2,
        duration: Duration::from_millis(200),
        warmup: Duration::from_millis(50),
        seed: Some(7),
        progress: false,
        worker: entry("demo::tests::worker_entry", "worker"),
        ..DemoOptions::default()
    }
}

/// Held by the tests that make a load: ten at once starve each other out of their short windows.
fn alone() -> MutexGuard<'static, ()> {
    static LOAD: Mutex<()> = Mutex::new(());
    LOAD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port))
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn alive(pid: Pid) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn two_cpus() -> CpuSet {
    let cpus: CpuSet = allowed_cpus().iter().take(2).collect();
    assert_eq!(cpus.len(), 2, "these tests need two CPUs");
    cpus
}

/// Records its calls, steers nothing, and may refuse.
#[derive(Default)]
struct Recorded {
    calls: Vec<(&'static str, u16)>,
    refuse: bool,
    /// Signal a worker when steering goes on for the second time.
    signal: Option<&'static str>,
    /// Fail to stop from the second time on.
    stick: bool,
}

impl Steering for Recorded {
    fn on(&mut self, port: u16) -> Result<(), SteeringError> {
        self.calls.push(("on", port));
        if self.refuse {
            return Err("CAP_BPF is missing".into());
        }
        if let (Some(signal), true) = (self.signal, self.calls.len() > 2) {
            kill(signal, &a_worker_on(port).to_string());
        }
        Ok(())
    }

    fn off(&mut self, port: u16) -> Result<(), SteeringError> {
        self.calls.push(("off", port));
        if self.stick && self.calls.len() > 2 {
            return Err("the pin is busy".into());
        }
        Ok(())
    }
}

/// Inodes of the sockets of 127.0.0.1:`port` in a state: `0A` is LISTEN, `06` TIME_WAIT.
fn sockets(port: u16, state: &str) -> Vec<String> {
    let address = format!("0100007F:{port:04X}");
    std::fs::read_to_string("/proc/net/tcp")
        .expect("procfs")
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| (fields[1] == address || fields[2] == address) && fields[3] == state)
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect()
}

/// A process that listens on `port`, found in procfs as an outsider would.
fn a_worker_on(port: u16) -> Pid {
    let inodes = sockets(port, "0A");
    let holds = |pid: &Pid| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|files| {
            files.flatten().any(|file| {
                std::fs::read_link(file.path())
                    .is_ok_and(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
            })
        })
    };
    std::fs::read_dir("/proc")
        .expect("procfs")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(holds)
        .expect("a worker that listens")
}

fn kill(signal: &str, target: &str) {
    let status = Command::new("kill").args([&format!("-{signal}"), "--", target]).status();
    assert!(status.expect("kill(1)").success());
}

#[test]
fn steering_makes_every_connection_local_and_the_hash_does_not() {
    let _alone = alone();
    let report = run_with_incoming_cpu(&quick()).unwrap();
    let cpus = report.cpus.len() as f64;
    let before = report.matrix_before.locality();
    assert!((before - 1.0 / cpus).abs() < 0.1, "hash: {before} on {cpus} CPUs");
    assert!(report.matrix_after.locality() > 0.999, "steered: {:?}", report.matrix_after);
    assert_eq!(report.errors, 0);
    assert_eq!(report.pairs.len(), 2);
    for sample in report.pairs.iter().flat_map(|pair| [&pair.before, &pair.after]) {
        assert!(sample.connections > 0 && sample.completed > sample.connections);
        assert_eq!(sample.accepted, sample.completed, "both sides count the same connections");
        assert!(0.0 < sample.p50_us && sample.p50_us <= sample.p99_us);
    }
    let every_row_and_column_served = |matrix: &Matrix| {
        (0..matrix.workers.len()).all(|cpu| {
            matrix.counts[cpu].iter().sum::<u64>() > 0
                && matrix.counts.iter().map(|row| row[cpu]).sum::<u64>() > 0
        })
    };
    assert!(every_row_and_column_served(&report.matrix_before));
    assert!(every_row_and_column_served(&report.matrix_after));
    assert_eq!(report.verdict, crate::measure::Verdict::CannotTell, "two pairs never suffice");
    assert!(!report.workers.iter().any(|pid| alive(*pid)), "{:?}", report.workers);
}

#[test]
fn a_report_prints_and_serializes() {
    let _alone = alone();
    let report = run_with_incoming_cpu(&DemoOptions { rounds: 1, ..quick() }).unwrap();
    let mut text = Vec::new();
    report.print_into(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    for expected in
        ["received on", "worker", "locality, %", "connections/s", "p99", "seed 7", "machine"]
    {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["matrix_after"]["counts"][0][0], report.matrix_after.counts[0][0]);
    assert_eq!(json["pairs"][0]["after"]["errors"], 0);
}

#[test]
fn without_effect_it_says_so() {
    let _alone = alone();
    let mut steering = Recorded::default();
    let report = run(&quick(), &mut steering).unwrap();
    assert!(report.conclusion.contains("not in force"), "{}", report.conclusion);
    let (port, calls) = (steering.calls[0].1, steering.calls);
    assert!(calls.iter().all(|call| call.1 == port), "one port: {calls:?}");
    // On and off alternate, and it ends off.
    assert!(calls.chunks(2).all(|pair| pair[0].0 == "on" && pair[1].0 == "off"), "{calls:?}");
    assert!(calls.len() >= 2 * quick().rounds as usize - 1, "{calls:?}");
    assert!(refused(port));
    assert_eq!(sockets(port, "06").len(), 0, "no TIME_WAIT, on either side");
}

#[test]
fn steering_that_is_refused_leaves_nothing() {
    let mut steering = Recorded { refuse: true, ..Recorded::default() };
    let error = run(&quick(), &mut steering).unwrap_err();
    assert!(matches!(error, DemoError::SteeringOn { .. }), "{error}");
    assert!(error.to_string().contains("CAP_BPF is missing"), "{error}");
    let port = steering.calls[0].1;
    assert_eq!(steering.calls, [("on", port)], "tried once, before the first round");
    assert!(refused(port));
}

#[test]
fn the_default_takes_less_than_half_a_minute() {
    assert!(DemoOptions::default().planned() < Duration::from_secs(28));
}

#[test]
fn a_dead_port_is_counted_by_its_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let result = load::run(&load::LoadOptions {
        address,
        cpus: two_cpus(),
        connections_per_cpu: 1,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(50),
    });
    let result = result.unwrap();
    assert_eq!(result.connections, 0);
    let (kind, count) = result.errors.iter().next().unwrap();
    assert!(kind.starts_with("connect: Connection refused"), "{kind}");
    assert!(*count > 0 && result.errors.len() == 1, "{:?}", result.errors);
}

#[test]
fn a_load_from_no_such_cpu_is_an_error() {
    let result = load::run(&load::LoadOptions {
        address: ([127, 0, 0, 1], 1).into(),
        cpus: [1023].into(),
        connections_per_cpu: 1,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(50),
    });
    assert!(matches!(result, Err(LoadError::Pin(1023))), "{result:?}");
}

#[test]
fn a_matrix_grows_by_the_cpus_it_meets() {
    let mut matrix = Matrix::new(&[0, 2].into());
    matrix.add(0, 0, 3);
    matrix.add(2, 0, 1);
    matrix.add(5, 2, 4);
    assert_eq!(matrix.received, [0, 2, 5]);
    assert_eq!(matrix.counts, [[3, 0], [1, 0], [0, 4]]);
    assert!((matrix.locality() - 3.0 / 8.0).abs() < 1e-9);
    let mut sum = Matrix::new(&[0, 2].into());
    sum.merge(&matrix);
    assert_eq!(sum, matrix);
    assert!(Matrix::new(&[0].into()).locality().is_nan());
}
