//! What the guests said, as a table.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::boot::Outcome;

/// Lines of the console that are shown when a machine did not finish.
const TAIL: usize = 25;

/// One kernel's report.
pub(super) struct Report {
    name: String,
    checks: Vec<Check>,
    /// Why it is not complete.
    broken: Option<String>,
    seconds: f64,
}

struct Check {
    name: String,
    held: bool,
    said: String,
}

impl Report {
    /// Reads what a machine left.
    pub(super) fn read(name: &str, outcome: &Outcome) -> Self {
        let mut checks = Vec::new();
        let mut begun = None;
        let mut ended = false;
        let lines = outcome.report.lines().filter_map(|line| serde_json::from_str(line).ok());
        for line in lines {
            let line: Value = line;
            if let Some(name) = line["begin"].as_str() {
                begun = Some(name.to_owned());
            }
            if let (Some(name), Some(held)) = (line["check"].as_str(), line["held"].as_bool()) {
                let said = line["said"].as_str().unwrap_or_default().to_owned();
                checks.push(Check { name: name.to_owned(), held, said });
            }
            ended |= line["end"] == true;
        }
        let broken = (!ended).then(|| {
            let what = match (&begun, outcome.in_time) {
                (None, true) => "did not boot".to_owned(),
                (None, false) => "did not boot in time".to_owned(),
                (Some(check), true) => format!("died in `{check}`"),
                (Some(check), false) => format!("did not finish `{check}` in time"),
            };
            let console: Vec<_> = outcome.console.lines().collect();
            let tail = console[console.len().saturating_sub(TAIL)..].join("\n");
            format!("{what}; the end of its console:\n{tail}")
        });
        let seconds = outcome.took.as_secs_f64();
        Self { name: name.to_owned(), checks, broken, seconds }
    }

    /// What it is called in the table: the kernel's own words where it booted.
    fn title(&self) -> &str {
        self.said("kernel").unwrap_or(&self.name)
    }

    fn said(&self, check: &str) -> Option<&str> {
        self.checks.iter().find(|it| it.name == check && it.held).map(|it| it.said.as_str())
    }

    /// One line on how it went.
    pub(super) fn summary(&self) -> String {
        let held = self.checks.iter().filter(|check| check.held).count();
        format!(
            "{}: {held} of {} checks held, {:.0} s",
            self.title(),
            self.checks.len(),
            self.seconds
        )
    }

    /// What did not hold, in full.
    pub(super) fn failures(&self) -> Vec<String> {
        let failed = self.checks.iter().filter(|check| !check.held);
        failed
            .map(|check| format!("{}: {}: {}", self.title(), check.name, check.said))
            .chain(self.broken.iter().map(|why| format!("{}: {why}", self.title())))
            .collect()
    }
}

/// A row per check, a column per kernel.
pub(super) fn table(reports: &[Report]) -> String {
    let mut rows: Vec<&str> = Vec::new();
    for check in reports.iter().flat_map(|report| &report.checks) {
        if check.name != "kernel" && !rows.contains(&check.name.as_str()) {
            rows.push(&check.name);
        }
    }
    let mut text = String::from("| kernel |");
    for report in reports {
        _ = write!(text, " {} |", report.title());
    }
    text += "\n| --- |";
    text += &" --- |".repeat(reports.len());
    for row in rows {
        _ = write!(text, "\n| {row} |");
        for report in reports {
            let check = report.checks.iter().find(|it| it.name == row);
            let cell = match check {
                Some(Check { held: true, said, .. }) => &said.replace('|', "\\|"),
                Some(Check { held: false, .. }) => "**fails**",
                None => "not reached",
            };
            _ = write!(text, " {cell} |");
        }
    }
    text + "\n"
}

/// Everything, for programs.
pub(super) fn json(reports: &[Report]) -> Value {
    let check = |it: &Check| json!({"check": it.name, "held": it.held, "said": it.said});
    let report = |it: &Report| {
        json!({
            "kernel": it.title(),
            "source": it.name,
            "seconds": it.seconds,
            "complete": it.broken.is_none(),
            "checks": it.checks.iter().map(check).collect::<Vec<_>>(),
        })
    };
    reports.iter().map(report).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Outcome, Report, json, table};

    fn report(text: &str, in_time: bool) -> Report {
        let (report, console) = (text.to_owned(), "Kernel panic - not syncing".to_owned());
        Report::read("a.deb", &Outcome { report, console, in_time, took: Duration::ZERO })
    }

    const WHOLE: &str = r#"{"begin":"kernel"}
{"check":"kernel","held":true,"said":"6.1.0"}
{"check":"attach","held":true,"said":"select"}
{"check":"steered","held":false,"said":"half of them"}
{"end":true}"#;

    #[test]
    fn a_failed_check_fails_and_is_seen() {
        let report = report(WHOLE, true);
        assert_eq!(report.failures(), ["6.1.0: steered: half of them"]);
        let text = table(&[report]);
        assert_eq!(
            text,
            "| kernel | 6.1.0 |\n| --- | --- |\n| attach | select |\n| steered | **fails** |\n"
        );
    }

    #[test]
    fn a_kernel_that_dies_fails() {
        let cut: String = WHOLE.lines().take(1).collect();
        for (text, in_time, expected) in [
            ("", true, "a.deb: did not boot;"),
            ("", false, "a.deb: did not boot in time;"),
            (cut.as_str(), true, "a.deb: died in `kernel`;"),
            (cut.as_str(), false, "a.deb: did not finish `kernel` in time;"),
        ] {
            let report = report(text, in_time);
            let failures = report.failures();
            assert_eq!(failures.len(), 1);
            assert!(failures[0].starts_with(expected), "{failures:?}");
            assert!(failures[0].contains("not syncing"), "{failures:?}");
            assert_eq!(json(&[report])[0]["complete"], false);
        }
    }
}
