//! Prometheus' text format, read.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, Write as _};

use crate::process;

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// What was scraped.
#[derive(Debug)]
pub struct Metrics {
    samples: Vec<(String, Labels, String)>,
    text: String,
}

impl Metrics {
    /// Reads a text, after `promtool` has checked it: its format, its names and its helps.
    pub fn of(text: &str) -> Self {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(text.as_bytes()).and_then(|()| file.rewind()).expect("write a file");
        let mut said = tempfile::tempfile().expect("a temporary file");
        let mut promtool = process::command("promtool");
        promtool.args(["check", "metrics"]).stdin(file);
        promtool.stdout(said.try_clone().expect("dup a file"));
        promtool.stderr(said.try_clone().expect("dup a file"));
        let status = promtool.status().expect("start promtool");
        let mut complaints = String::new();
        said.rewind().and_then(|()| said.read_to_string(&mut complaints)).expect("read a file");
        assert!(status.success() && complaints.is_empty(), "promtool: {complaints}\n{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Self { samples: lines.map(sample).collect(), text: text.to_owned() }
    }

    /// The one value of a metric (named without its prefix) with these labels, among others;
    /// `None` where there is no such series.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<u64> {
        let all = self.all(name, labels);
        assert!(all.len() <= 1, "{name} {labels:?} is not one: {all:?}");
        all.first().map(|(_, value)| number(value))
    }

    /// As [`Metrics::find`], of a series that there is.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let value = self.find(name, labels);
        value.unwrap_or_else(|| panic!("no {name} {labels:?} in\n{}", self.text))
    }

    /// The sum of all series of a metric with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.all(name, labels).iter().map(|(_, value)| number(value)).sum()
    }

    /// All series of a metric with these labels, each with its value as it is written.
    pub fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(&Labels, &str)> {
        let name = format!("reuseport_steer_{name}");
        let fits = |own: &Labels| {
            labels.iter().all(|(name, value)| own.get(*name).is_some_and(|it| it == value))
        };
        let found = self.samples.iter().filter(|(own, labels, _)| *own == name && fits(labels));
        found.map(|(_, labels, value)| (labels, value.as_str())).collect()
    }
}

fn number(value: &str) -> u64 {
    value.parse().unwrap_or_else(|_| panic!("no whole number: {value}"))
}

/// `name{label="value",...} 1`; values without quotes in them.
fn sample(line: &str) -> (String, Labels, String) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    assert!(value.parse::<f64>().is_ok(), "no number: {line}");
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').expect("a closing brace")),
        None => (series, ""),
    };
    let mut read = Labels::new();
    let mut rest = labels;
    while let Some((name, more)) = rest.split_once("=\"") {
        let (value, more) = more.split_once('"').unwrap_or_else(|| panic!("open: {line}"));
        read.insert(name.to_owned(), value.to_owned());
        rest = more.strip_prefix(',').unwrap_or(more);
    }
    assert_eq!(rest, "", "{line}");
    (name.to_owned(), read, value.to_owned())
}
