//! A virtual machine from boot to power-off.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// What to boot, and how.
pub(super) struct Machine {
    pub(super) vmlinuz: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) cpus: u32,
    pub(super) limit: Duration,
    /// Where the serial lines are written.
    pub(super) logs: PathBuf,
}

/// What a machine left on its serial lines.
pub(super) struct Outcome {
    /// The guest's report, a line of JSON each.
    pub(super) report: String,
    /// The end of the console, for when the report is not complete.
    pub(super) console: String,
    /// Whether it powered off within its time.
    pub(super) in_time: bool,
    pub(super) took: Duration,
}

/// How often a kernel that dies before our program begins is booted: kernels patch their own code
/// while booting, and the emulation of several CPUs now and then runs what is half patched (an
/// `int3` oops).
const ATTEMPTS: u32 = 3;

impl Machine {
    /// Boots it and waits for its end.
    pub(super) fn boot(&self) -> Result<Outcome> {
        for _ in 1..ATTEMPTS {
            let outcome = self.attempt()?;
            if !outcome.report.is_empty() || !outcome.in_time {
                return Ok(outcome);
            }
            println!("died while booting; once more");
        }
        self.attempt()
    }

    fn attempt(&self) -> Result<Outcome> {
        fs::create_dir_all(&self.logs)?;
        let (console, report) = (self.logs.join("console"), self.logs.join("report"));
        for path in [&console, &report] {
            fs::write(path, "")?;
        }
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1024"]);
        command.args(["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"]);
        command.arg("-smp").arg(self.cpus.to_string());
        command.arg("-kernel").arg(&self.vmlinuz).arg("-initrd").arg(&self.initramfs);
        // The emulation is slow and its clock jumps: neither is the kernel's fault.
        let line = "console=ttyS0 quiet panic=-1 rcupdate.rcu_cpu_stall_suppress=1 nowatchdog";
        command.args(["-append", line]);
        for path in [&console, &report] {
            command.arg("-serial").arg(format!("file:{}", path.display()));
        }
        command.stdin(Stdio::null());
        let start = Instant::now();
        let mut child = Guard(command.spawn().context("start qemu-system-x86_64")?);
        let mut ended = false;
        while !ended && start.elapsed() < self.limit {
            sleep(Duration::from_millis(100));
            ended = child.0.try_wait()?.is_some();
        }
        drop(child);
        let text = |path: &PathBuf| {
            fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let took = start.elapsed();
        Ok(Outcome { report: text(&report)?, console: text(&console)?, in_time: ended, took })
    }
}

/// Ended with us, also on an error.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            drop(self.0.kill());
        }
        drop(self.0.wait());
    }
}
