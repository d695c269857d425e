//! Runs inside a virtual machine that `cargo xtask vm` booted, as its only program: tries the
//! command on that machine's kernel and says on a serial line what worked, a line of JSON for each
//! check.
//!
//! A check that must hold everywhere panics when it does not; what depends on the kernel is a fact,
//! said in words.

mod checks;
mod migration;
mod rungs;
mod scene;
mod tracing;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// The last panic's message and place.
static COMPLAINT: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_else(|| "/dev/stdout".to_owned());
    match run(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(path: &str) -> io::Result<()> {
    let mut report = OpenOptions::new().write(true).open(path)?;
    panic::set_hook(Box::new(|info| {
        let mut complaint = COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner);
        // The first one: what follows while unwinding is its consequence.
        if complaint.is_empty() {
            *complaint = info.to_string();
        }
    }));
    for (name, check) in checks::ALL {
        say(&mut report, &json!({ "begin": name }))?;
        let result = panic::catch_unwind(AssertUnwindSafe(check));
        let complaint =
            std::mem::take(&mut *COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner));
        let line = match result {
            Ok(said) => json!({"check": name, "held": true, "said": said}),
            Err(_) => json!({"check": name, "held": false, "said": complaint}),
        };
        say(&mut report, &line)?;
    }
    say(&mut report, &json!({"end": true}))
}

/// One line, so that a kernel that dies later cannot take it back.
fn say(report: &mut File, line: &Value) -> io::Result<()> {
    report.write_all(format!("{line}\n").as_bytes())?;
    report.flush()
}
