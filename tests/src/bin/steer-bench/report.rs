//! What the benchmarks found: a table for people, JSON for machines, and whether the gates held.

use std::fs;
use std::path::Path;
use std::time::Duration;

use reuseport_tests::measure::{Estimate, Goal, Standing, Ticks};
use reuseport_tests::process::{command, must};
use serde_json::{Map, Value, json};

/// Background load and stolen time, in percent, beyond which figures count for nothing.
const MOST_BACKGROUND: f64 = 2.0;
const MOST_STEAL: f64 = 1.0;

/// Grows as subjects run.
pub(crate) struct Report {
    quick: bool,
    environment: Value,
    subjects: Map<String, Value>,
    subject: &'static str,
    figures: Vec<Value>,
    gates: Vec<Value>,
    notes: Vec<Value>,
    noise: Value,
    ticks: Ticks,
    failed: Vec<String>,
}

impl Report {
    /// Prints the environment.
    pub(crate) fn new(seed: u64, quick: bool) -> Self {
        let environment = environment(seed);
        for (name, value) in environment.as_object().into_iter().flatten() {
            println!("{name:>14}  {}", value.as_str().map_or(value.to_string(), str::to_owned));
        }
        Self {
            quick,
            environment,
            subjects: Map::new(),
            subject: "",
            figures: Vec::new(),
            gates: Vec::new(),
            notes: Vec::new(),
            noise: Value::Null,
            ticks: ticks(),
            failed: Vec::new(),
        }
    }

    /// Starts a subject; looks how busy the machine is with other things.
    pub(crate) fn begin(&mut self, subject: &'static str) {
        println!("\n== {subject}");
        let background = Ticks::background().expect("read /proc/stat");
        self.noise = json!({"background_percent": background});
        if background > MOST_BACKGROUND {
            println!("   the machine is busy ({background:.0} %): these figures are inconclusive");
        }
        self.subject = subject;
        self.ticks = ticks();
    }

    /// Takes down a figure, against a goal if there is one.
    pub(crate) fn figure(&mut self, name: &str, unit: &str, spread: &Estimate, goal: Option<Goal>) {
        let spread_text = if unit == "x" { format!("{spread:.3}") } else { format!("{spread:.1}") };
        let spread_text = format!("{unit} {spread_text}");
        let mut entry = json!({"name": name, "unit": unit});
        if let (Some(entry), Value::Object(parts)) = (entry.as_object_mut(), json!(spread)) {
            entry.extend(parts);
        }
        let mut verdict_text = String::new();
        if let Some(goal) = goal {
            let verdict = goal.judge(spread.ci95);
            let judged = !self.quick || binding(goal, self.quick);
            let verdict_is = if judged { verdict.as_str() } else { "not judged when quick" };
            verdict_text = format!("  goal {goal}: {verdict_is}");
            entry["goal"] = json!({"is": goal.to_string(), "verdict": verdict.as_str()});
            if verdict == Standing::Missed && binding(goal, self.quick) {
                self.failed.push(format!("{}: {name}: {spread_text}{verdict_text}", self.subject));
            }
        }
        println!("{name:<54} {spread_text}{verdict_text}");
        self.figures.push(entry);
    }

    /// Takes down something that must hold for the figures to mean anything.
    pub(crate) fn gate(&mut self, name: &str, holds: bool, found: &Value) {
        if !holds {
            let line = format!("{}: {name}: {found}", self.subject);
            println!("   GATE BROKEN: {name}: {found}");
            self.failed.push(line);
        }
        self.gates.push(json!({"name": name, "holds": holds, "found": found}));
    }

    /// A line in between.
    pub(crate) fn note(&mut self, text: &str) {
        println!("   {text}");
        self.notes.push(json!(text));
    }

    /// Ends the subject.
    pub(crate) fn end(&mut self, took: Duration) {
        let (_, steal) = self.ticks.busy_and_steal(&ticks());
        self.noise["steal_percent"] = json!(steal);
        let quiet = self.noise["background_percent"].as_f64().unwrap_or(100.0) <= MOST_BACKGROUND
            && steal <= MOST_STEAL;
        let held = self.gates.iter().filter(|gate| gate["holds"] == true).count();
        println!("   gates that held: {held} of {}; {took:.0?}", self.gates.len());
        if !quiet {
            println!("   inconclusive: the machine was not quiet: {}", self.noise);
        }
        let result = json!({
            "seconds": took.as_secs_f64(),
            "conclusive": quiet && !self.quick,
            "noise": self.noise,
            "figures": std::mem::take(&mut self.figures),
            "gates": std::mem::take(&mut self.gates),
            "notes": std::mem::take(&mut self.notes),
        });
        self.subjects.insert(self.subject.to_owned(), result);
    }

    /// Writes the file; says whether all held.
    pub(crate) fn finish(self, file: Option<&Path>) -> bool {
        println!();
        for line in &self.failed {
            println!("FAILED  {line}");
        }
        if self.failed.is_empty() {
            println!("gates and goals: none broken");
        }
        if let Some(file) = file {
            let all = json!({
                "quick": self.quick,
                "environment": self.environment,
                "results": self.subjects,
                "failed": self.failed,
            });
            fs::write(file, format!("{all:#}\n")).expect("write the result file");
        }
        self.failed.is_empty()
    }
}

/// Whether a goal must be reached for the run to pass. Of a quick run only the signs: that one thing
/// is no slower than another, measured side by side. A loss of 1 % or a time is for the full run, on a
/// quiet machine.
fn binding(goal: Goal, quick: bool) -> bool {
    !quick || matches!(goal, Goal::AtLeast(least) if least >= 1.0)
}

fn ticks() -> Ticks {
    Ticks::now().expect("read /proc/stat")
}

/// What the figures depend on.
fn environment(seed: u64) -> Value {
    let read = |path: &str| {
        fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |it| it.trim().to_owned())
    };
    let cpuinfo = read("/proc/cpuinfo");
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let flaws = ["retbleed", "spec_rstack_overflow", "spectre_v2"];
    let mitigations = flaws.map(|it| {
        format!("{it}: {}", read(&format!("/sys/devices/system/cpu/vulnerabilities/{it}")))
    });
    let commit = std::env::var("STEER_BENCH_COMMIT").unwrap_or_else(|_| "unknown".to_owned());
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": model.unwrap_or("unknown"),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "mitigations": mitigations.join("; "),
        "cpuidle": read("/sys/devices/system/cpu/cpuidle/current_governor"),
        "halt_poll_ns": read("/sys/module/haltpoll/parameters/guest_halt_poll_ns"),
        "clocksource": read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "commit": commit,
        "seed": seed,
        "date": must(command("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])).trim(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_is_held_to_signs_alone() {
        for (goal, quick) in
            [(Goal::AtLeast(1.0), true), (Goal::AtLeast(0.99), false), (Goal::AtMost(40.0), false)]
        {
            assert_eq!(binding(goal, true), quick, "{goal}");
            assert!(binding(goal, false), "{goal}");
        }
    }
}
