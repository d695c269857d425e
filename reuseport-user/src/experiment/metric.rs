//! Figures in what a load prints, and in what the kernel saw of it.

use std::str::FromStr;

use regex_lite::Regex;
use serde_json::Value;

use super::load::Output;
use crate::measure::Better;

/// A figure, and where to find it.
#[derive(Clone, Debug)]
pub struct Metric {
    /// What it is called.
    pub name: String,
    /// Which way it should go.
    pub better: Better,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    /// The one group of its last match, on standard output or else standard error.
    Regex(Regex),
    /// What this JSON pointer (RFC 6901) points at, where standard output is one JSON value.
    Json(String),
    /// What it points at in what `trace --json` says of the time of the run.
    Kernel(String),
}

/// Why there is no figure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// The pattern matches nothing, or nothing is there.
    #[error("`{0}` is not in what the load printed")]
    NotPrinted(String),
    /// Nothing is there.
    #[error("`{0}` is not in what the kernel saw of the load, which `trace --json` shows")]
    NotSeen(String),
    /// Standard output is not one JSON value.
    #[error("the load did not print JSON on its standard output: {0}")]
    NotJson(String),
    /// What was found is not a number.
    #[error("`{0}` is not a finite number")]
    NotNumber(String),
}

/// What marks a pointer.
const JSON: &str = "json:";
const KERNEL: &str = "kernel:";

impl FromStr for Metric {
    type Err = String;

    /// `[NAME<=|NAME>=](REGEX|json:POINTER|kernel:POINTER)`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, better, source) = match split(text) {
            Some((name, better, source)) => (Some(name), better, source),
            None => (None, Better::More, text),
        };
        let marked =
            |mark, source_of: fn(String) -> Source| Some((source.strip_prefix(mark)?, source_of));
        let pointer = marked(JSON, Source::Json).or_else(|| marked(KERNEL, Source::Kernel));
        let (fallback, source) = if let Some((pointer, source_of)) = pointer {
            if !pointer.starts_with('/') {
                return Err(format!("`{pointer}` is no JSON pointer: it begins with `/`"));
            }
            let last = pointer.rsplit('/').next().unwrap_or(pointer);
            (last.to_owned(), source_of(pointer.to_owned()))
        } else {
            let regex = Regex::new(source).map_err(|error| error.to_string())?;
            // The whole match counts as one.
            if regex.captures_len() != 2 {
                return Err(format!(
                    "it needs one group in parentheses around the number, and has {}; others are written \
                     (?:...)",
                    regex.captures_len() - 1
                ));
            }
            (label(source), Source::Regex(regex))
        };
        let name = name.map_or(fallback, str::to_owned);
        Ok(Self { name, better, source })
    }
}

/// A name, which has no spaces, and what is better for it.
fn split(text: &str) -> Option<(&str, Better, &str)> {
    let named = |mark: &str, better| {
        let (name, source) = text.split_once(mark)?;
        let plain = |letter: char| letter.is_alphanumeric() || "_-./%".contains(letter);
        (!name.is_empty() && name.chars().all(plain)).then_some((name, better, source))
    };
    named("<=", Better::Less).or_else(|| named(">=", Better::More))
}

/// What stands before the group of `tps = ([0-9.]+)`; all of it where that is no word.
fn label(regex: &str) -> String {
    let before = regex.split('(').next().unwrap_or_default();
    let word = before.trim_end_matches(|letter: char| !letter.is_alphanumeric()).trim();
    let plain = |letter: char| letter.is_alphanumeric() || " _-./%".contains(letter);
    if word.is_empty() || !word.chars().all(plain) { regex.to_owned() } else { word.to_owned() }
}

impl Metric {
    /// Whether it is the kernel that has it.
    pub(super) fn is_kernels(&self) -> bool {
        matches!(self.source, Source::Kernel(_))
    }

    /// Of what the load printed, or of what the kernel saw of it.
    pub(super) fn read(&self, output: &Output, kernel: &Value) -> Result<f64, MetricError> {
        let found = match &self.source {
            Source::Regex(regex) => {
                let last = |text: &str| {
                    regex
                        .captures_iter(text)
                        .filter_map(|it| it.get(1))
                        .last()
                        .map(|it| it.as_str().to_owned())
                };
                let found = last(&output.stdout).or_else(|| last(&output.stderr));
                found.ok_or_else(|| MetricError::NotPrinted(regex.as_str().to_owned()))?
            }
            Source::Json(pointer) => {
                let json: Value = serde_json::from_str(&output.stdout)
                    .map_err(|error| MetricError::NotJson(error.to_string()))?;
                let found = json.pointer(pointer).map(text);
                found.ok_or_else(|| MetricError::NotPrinted(pointer.clone()))?
            }
            Source::Kernel(pointer) => {
                let found = kernel.pointer(pointer).filter(|it| !it.is_null()).map(text);
                found.ok_or_else(|| MetricError::NotSeen(pointer.clone()))?
            }
        };
        let number = found.trim().parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or(MetricError::NotNumber(found))
    }
}

/// A string without its quotes: numbers may be in some.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PGBENCH: &str =
        "latency average = 1.234 ms\ntps = 100.5 (so far)\ntps = 3242.25 (incl.)\n";

    fn read(metric: &str, stdout: &str) -> Result<f64, MetricError> {
        let output = Output { stdout: stdout.to_owned(), stderr: "errors: 3\n".to_owned() };
        let kernel = serde_json::json!({"total": {"wait": {"p99_us": 12.5}, "handshake": null}});
        metric.parse::<Metric>().unwrap().read(&output, &kernel)
    }

    #[test]
    fn figures_are_found() {
        assert_eq!(read("tps = ([0-9.]+)", PGBENCH), Ok(3242.25), "the last one");
        assert_eq!(read("latency<=latency average = ([0-9.]+) ms", PGBENCH), Ok(1.234));
        assert_eq!(read("errors<=errors: (\\d+)", PGBENCH), Ok(3.0), "on standard error");
        let json = r#"{"result": [{"rps": 12.5, "p99": "0.25", "what": "x"}]}"#;
        assert_eq!(read("json:/result/0/rps", json), Ok(12.5));
        assert_eq!(read("p99<=json:/result/0/p99", json), Ok(0.25), "numbers in quotes too");
        assert!(matches!(read("json:/result/0/what", json), Err(MetricError::NotNumber(_))));
        assert!(matches!(read("json:/result/1", json), Err(MetricError::NotPrinted(_))));
        assert!(matches!(read("json:/result", json), Err(MetricError::NotNumber(_))));
        assert!(matches!(read("json:/rps", PGBENCH), Err(MetricError::NotJson(_))));
        assert_eq!(read("wait<=kernel:/total/wait/p99_us", ""), Ok(12.5));
        for pointer in ["/total/handshake", "/total/wait/p98_us"] {
            let found = read(&format!("kernel:{pointer}"), json);
            assert_eq!(found, Err(MetricError::NotSeen(pointer.into())));
        }
        assert_eq!(read("qps = (.*)", PGBENCH), Err(MetricError::NotPrinted("qps = (.*)".into())));
        assert_eq!(
            read("tps = (.*)", PGBENCH),
            Err(MetricError::NotNumber("3242.25 (incl.)".into()))
        );
        for text in ["inf", "NaN", "1e999", "", "-"] {
            let found = read("x(.*)", &format!("x{text}\n"));
            assert_eq!(found, Err(MetricError::NotNumber(text.into())), "{text}");
        }
    }

    #[test]
    fn names_and_directions_are_read() {
        let of = |text: &str| text.parse::<Metric>().map(|it| (it.name, it.better));
        let is = |name: &str, better| Ok((name.to_owned(), better));
        assert_eq!(of("tps = ([0-9.]+)"), is("tps", Better::More));
        assert_eq!(of("rate>=Requests/sec: +([0-9.]+)"), is("rate", Better::More));
        assert_eq!(of("p99<=99% +([0-9.]+)ms"), is("p99", Better::Less));
        assert_eq!(of("json:/a/rps"), is("rps", Better::More));
        assert_eq!(of("lat<=json:/a/b"), is("lat", Better::Less));
        assert_eq!(of("wait<=kernel:/total/wait/p99_us"), is("wait", Better::Less));
        assert_eq!(of("([0-9]+) rows"), is("([0-9]+) rows", Better::More));
        assert_eq!(of("rows <= ([0-9]+)"), is("rows", Better::More), "a name has no spaces");
        for text in ["", "tps", "tps = ([0-9", "(a)(b)", "json:rps", "json:", "kernel:p99", "lat<="]
        {
            assert!(of(text).is_err(), "{text:?}");
        }
    }
}
