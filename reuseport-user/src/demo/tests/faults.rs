//! Death, signals, limits: it ends with a clear error and leaves nothing.

use super::*;

#[test]
fn a_worker_that_dies_ends_the_demo() {
    let _alone = alone();
    let mut steering = Recorded { signal: Some("KILL"), ..Recorded::default() };
    let error = run(&DemoOptions { rounds: 50, ..quick() }, &mut steering).unwrap_err();
    let DemoError::WorkerDied { pid, status, .. } = &error else { panic!("{error}") };
    assert!(error.to_string().contains("signal: 9"), "{status:?}");
    assert!(!alive(*pid));
    let (last, port) = *steering.calls.last().unwrap();
    assert_eq!(last, "off");
    assert!(refused(port), "the other workers are gone too");
}

#[test]
fn steering_that_cannot_be_stopped_is_told_beside_what_happened() {
    let _alone = alone();
    let mut steering = Recorded { stick: true, ..Recorded::default() };
    let error = run(&DemoOptions { rounds: 50, ..quick() }, &mut steering).unwrap_err();
    assert!(matches!(error, DemoError::SteeringOff { .. }), "{error}");
    let offs = steering.calls.iter().filter(|call| call.0 == "off").count();
    assert_eq!(offs, 2, "tried once more than it worked, not over and over: {:?}", steering.calls);

    let mut steering = Recorded { signal: Some("KILL"), stick: true, ..Recorded::default() };
    let error =
        run(&DemoOptions { rounds: 50, seed: Some(1), ..quick() }, &mut steering).unwrap_err();
    assert!(matches!(error, DemoError::Left { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("signal: 9") && text.contains("the pin is busy"), "{text}");
    assert!(refused(steering.calls[0].1));
}

#[test]
fn a_worker_that_hangs_ends_the_demo() {
    let _alone = alone();
    let mut steering = Recorded { signal: Some("STOP"), ..Recorded::default() };
    let error = run(&DemoOptions { rounds: 50, ..quick() }, &mut steering).unwrap_err();
    let DemoError::WorkerSilent { pid, .. } = &error else { panic!("{error}") };
    assert!(!alive(*pid), "a stopped process does not see its socket close, and is killed");
    assert!(refused(steering.calls[0].1));
}

#[test]
fn too_few_descriptors_are_told_with_the_limit() {
    let WorkerCommand { program, arguments, environment } =
        entry("demo::tests::demo_entry", "demo");
    for limit in [10, 13] {
        let output = Command::new("sh")
            .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")])
            .arg(&program)
            .args(&arguments)
            .envs(environment.clone())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let ended = text.lines().find(|line| line.starts_with("ended")).expect("it ends");
        assert!(ended.contains("`ulimit -n`"), "{limit}: {ended}");
    }
}

#[test]
fn one_cpu_is_not_enough() {
    let cpu = two_cpus().first().unwrap();
    let pinned = std::thread::spawn(move || {
        assert!(core_affinity::set_for_current(core_affinity::CoreId { id: cpu as usize }));
        run_with_incoming_cpu(&quick())
    });
    let error = pinned.join().unwrap().unwrap_err();
    assert!(error.to_string().contains(&format!("only CPU {cpu}")), "{error}");
}

#[test]
fn a_stopped_demo_cleans_up() {
    let _alone = alone();
    for signal in ["INT", "TERM"] {
        let WorkerCommand { program, arguments, environment } =
            entry("demo::tests::demo_entry", "demo");
        let mut demo = Command::new(program)
            .args(arguments)
            .envs(environment)
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let lines: Vec<String> = lines_after_signal(&mut demo, signal);
        assert!(demo.wait().unwrap().success());
        assert_eq!(lines.iter().find(|line| line.starts_with("off")).unwrap(), "off in time");
        let ended = lines.iter().find(|line| line.starts_with("ended")).unwrap();
        assert!(ended.contains(&format!("ended by SIG{signal}")), "{ended}");
    }
}

/// Signals the demo while its second round or a later one runs; what it says from then on.
fn lines_after_signal(demo: &mut Child, signal: &str) -> Vec<String> {
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    let on = lines.find(|line| line.starts_with("on ")).expect("it steers");
    let port: u16 = on["on ".len()..].parse().unwrap();
    let started = Instant::now();
    // As a terminal does: all of its process group.
    kill(signal, &format!("-{}", demo.id()));
    let rest = lines.collect();
    assert!(refused(port), "its workers are gone");
    // Far less than the 400 s that were ahead; no claim on speed.
    assert!(started.elapsed() < Duration::from_mins(1));
    rest
}

#[test]
fn a_killed_demo_leaves_no_workers() {
    let _alone = alone();
    let WorkerCommand { program, arguments, environment } =
        entry("demo::tests::demo_entry", "demo");
    let mut demo = Command::new(program)
        .args(arguments)
        .envs(environment)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    let on = lines.find(|line| line.starts_with("on ")).expect("it steers");
    let port: u16 = on["on ".len()..].parse().unwrap();
    demo.kill().unwrap();
    demo.wait().unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while !refused(port) {
        assert!(Instant::now() < deadline, "workers still listen on {port}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_port_that_is_taken_is_not_shared() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, options, cpus) = (holder.local_addr().unwrap(), quick(), two_cpus());
    let group = runtime.block_on(Group::start_on(address, &options.worker, &cpus)).unwrap();
    assert!(group.is_none(), "{group:?}");
}

#[test]
fn a_worker_that_cannot_start_is_named() {
    let worker = WorkerCommand { program: "/nonexistent".into(), ..quick().worker };
    let error = run_with_incoming_cpu(&DemoOptions { worker, ..quick() }).unwrap_err();
    assert!(matches!(error, DemoError::Spawn { .. }), "{error}");
    // A program that is no worker.
    let worker = WorkerCommand { program: "true".into(), ..quick().worker };
    let error = run_with_incoming_cpu(&DemoOptions { worker, ..quick() }).unwrap_err();
    assert!(matches!(error, DemoError::WorkerDied { .. }), "{error}");
}

#[test]
fn a_worker_reports_a_cpu_it_cannot_have() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime
        .block_on(Group::start(&quick().worker, &CpuSet::from([1023])))
        .expect_err("no CPU 1023");
    assert!(matches!(error, DemoError::WorkerFailed { cpu: 1023, .. }), "{error}");
    assert!(error.to_string().contains("taskset"), "{error}");
}

#[test]
fn options_out_of_range_are_refused() {
    let refuse = |options: DemoOptions| run_with_incoming_cpu(&options).unwrap_err();
    assert!(matches!(refuse(DemoOptions { rounds: 0, ..quick() }), DemoError::Rounds(0)));
    assert!(matches!(
        refuse(DemoOptions { duration: Duration::ZERO, ..quick() }),
        DemoError::Duration(_)
    ));
    assert!(matches!(
        refuse(DemoOptions { connections_per_cpu: 0, ..quick() }),
        DemoError::Connections(0)
    ));
    let one = refuse(DemoOptions { most_workers: 1, ..quick() });
    assert!(matches!(one, DemoError::TooFewCpus(_)), "{one}");
    assert!(one.to_string().contains("only CPU"), "{one}");
}
