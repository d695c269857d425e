//! The systemd unit of `deploy/`: checked by systemd's own tools, and run by systemd.

use std::fs;
use std::path::Path;
use std::time::Duration;

use reuseport_tests::bpffs::Bpffs;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::process::{command, must};
use reuseport_tests::scene::{PORT, place};
use reuseport_tests::systemd::{Booted, Files};
use reuseport_tests::{binary, cpus, eventually};

use crate::readme;

const UNIT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd/reuseport-steer@.service");
const PATIENCE: Duration = Duration::from_secs(30);

/// The unit that steers the workers' port.
fn steer() -> String {
    format!("reuseport-steer@{PORT}.service")
}

/// A system with workers, and our unit for their port, set up as the README says.
fn booted(bpffs: &Bpffs) -> Booted {
    let files = Files::new();
    files.install(&binary::path(), "root/.cargo/bin/reuseport-steer");
    let worker = Path::new(env!("CARGO_BIN_EXE_steer-test-worker"));
    files.install(worker, "usr/bin/steer-test-worker");
    let unit = fs::read_to_string(UNIT).expect("the unit");
    files.write("root/sources/deploy/systemd/reuseport-steer@.service", &unit);
    // A busy machine may well keep a worker from accepting, which is not what is tested here.
    let options = "STEER_OPTIONS=--spill off\n";
    files.write(&format!("etc/reuseport-steer/{PORT}.env"), options);
    for (index, cpu) in cpus().into_iter().enumerate() {
        let unit = format!(
            "[Service]\nUser=nobody\nExecStart=/bin/sh -c 'sleep infinity | exec \
             /usr/bin/steer-test-worker index={index} addr=0.0.0.0 port={PORT} listeners=1 \
             style=epoll cpus={cpu} backlog=511'\n"
        );
        files.write(&format!("etc/systemd/system/worker-{index}.service"), &unit);
    }
    let workers: Vec<_> = (0..cpus().len()).map(|it| format!("worker-{it}.service")).collect();
    let wants = workers.join(" ");
    let target = format!("[Unit]\nWants={wants}\nAfter={wants}\nAllowIsolate=yes\n");
    files.write("etc/systemd/system/steer-test.target", &target);
    let booted = files.boot("steer-test.target", bpffs);
    must(booted.command("ip").args(["link", "set", "lo", "up"]));
    for step in readme::commands().into_iter().filter(|it| readme::sets_up(it)) {
        let step = format!("cd ~/sources && {}", step.replace("6432", &PORT.to_string()));
        must(booted.command("sh").env("HOME", "/root").args(["-c", &step]));
    }
    booted
}

fn assert_steered(booted: &Booted) {
    let steered = || {
        let mut status = booted.command("reuseport-steer");
        let text = must(status.args(["status", "--json", "--port", &PORT.to_string()]));
        let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let listeners = all[0]["listeners"].as_array().map_or(&[][..], Vec::as_slice);
        let seated = listeners.iter().filter(|it| it["slot"].is_u64()).count();
        all[0]["steering"]["in_force"] == true && seated == cpus().len()
    };
    assert!(eventually(PATIENCE, steered), "{}", booted.journal(&steer()));
    let (netns, target) = (booted.netns(), Target::plain("127.0.0.1:8080"));
    for cpu in cpus() {
        burst(&netns, cpu, &target, 30).assert_local(place);
    }
}

#[test]
fn the_unit_is_well_formed_and_confined() {
    let home = tempfile::tempdir().expect("a directory");
    let unit = fs::read_to_string(UNIT).expect("the unit");
    // Where a build is installed is not what is checked here.
    let here = binary::path().display().to_string();
    let unit = unit.replace("/usr/bin/reuseport-steer", &here);
    let file = home.path().join("reuseport-steer@8080.service");
    fs::write(&file, unit).expect("write a unit");
    let mut verify = command("systemd-analyze");
    let verify = verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&file);
    let said = verify.output().expect("systemd-analyze");
    assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
    // 10 is a service without any confinement, 9.6 systemd's own default.
    let mut security = command("systemd-analyze");
    must(security.args(["security", "--offline=true", "--threshold=30"]).arg(&file));
}

#[test]
fn systemd_runs_it() {
    let bpffs = Bpffs::new();
    let booted = booted(&bpffs);
    assert_eq!(booted.property(&steer(), "SubState"), "running", "{}", booted.journal(&steer()));
    assert_steered(&booted);
    let pid = booted.property(&steer(), "MainPID");
    let status = must(booted.command("cat").arg(format!("/proc/{pid}/status")));
    for line in ["CapEff:\t000000c000080000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}\n{status}");
    }

    // A crash is the watchdog's and systemd's to see; steering goes on and the next one takes over.
    must(booted.command("kill").args(["-KILL", &pid]));
    let again = || {
        let now = booted.property(&steer(), "MainPID");
        now != "0" && now != pid && booted.property(&steer(), "SubState") == "running"
    };
    assert!(eventually(PATIENCE, again), "{}", booted.journal(&steer()));
    assert_steered(&booted);

    // A worker that systemd starts again gets its row back.
    must(booted.command("systemctl").args(["restart", "worker-0.service"]));
    assert_steered(&booted);

    let pid = booted.property(&steer(), "MainPID");
    let answer = booted.systemctl(&["reload", &steer()]);
    assert_eq!(answer, "", "{}", booted.journal(&steer()));
    assert_eq!(booted.property(&steer(), "MainPID"), pid, "{}", booted.journal(&steer()));
    must(booted.command("systemctl").args(["stop", &steer()]));
    assert_eq!(booted.property(&steer(), "Result"), "success");
    assert_steered(&booted);
}
