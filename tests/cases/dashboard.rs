//! The Grafana dashboard asks for what there is: every query is one that Prometheus understands, of
//! metrics and labels that are told.

use std::collections::BTreeSet;
use std::time::Duration;

use reuseport_tests::agent::Agent;
use reuseport_tests::client::{Target, burst};
use reuseport_tests::process::{Reaped, capture, tool};
use reuseport_tests::{cpus, eventually, require};
use reuseport_user::observe::metrics::{ALL, Kind, Metric};
use serde_json::Value;

use crate::scene::Scene;

const PATIENCE: Duration = Duration::from_mins(2);

const DASHBOARD: &str = include_str!("../../deploy/grafana/reuseport-steer.json");

/// Labels that Prometheus itself adds.
const OF_PROMETHEUS: [&str; 3] = ["instance", "job", "le"];

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).expect("the dashboard is JSON")
}

/// Queries with the legends of their series.
fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels").clone();
    let targets = panels.iter().flat_map(|it| it["targets"].as_array().expect("targets").clone());
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut found: Vec<_> =
        targets.map(|it| (text(&it["expr"]), text(&it["legendFormat"]))).collect();
    // What fills the variables: label_values(metric, label).
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if variable["type"] == "query" {
            let query = text(&variable["definition"]);
            let inner = query.strip_prefix("label_values(").and_then(|it| it.strip_suffix(')'));
            let (metric, label) = inner.and_then(|it| it.split_once(", ")).expect("label_values");
            found.push((metric.to_owned(), format!("{{{{{label}}}}}")));
        }
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
}

/// The metric that a name in a query means: a histogram has several.
fn metric(name: &str) -> &'static Metric {
    let of = |metric: &&&'static Metric| match metric.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| name.strip_suffix(suffix) == Some(metric.name)),
        Kind::Counter | Kind::Gauge => metric.name == name,
    };
    ALL.iter().find(of).unwrap_or_else(|| panic!("no metric is called {name}"))
}

/// Labels that a query or a legend names.
fn labels(query: &str, legend: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let between = |text: &str, open: &str, close: char| -> Vec<String> {
        let parts = text.split(open).skip(1);
        parts.filter_map(|part| Some(part.split_once(close)?.0.to_owned())).collect()
    };
    for selector in between(query, "{", '}') {
        // name="...", name=~"..."
        let names = selector.split(", ").map(|it| words(it).next().unwrap_or_default().to_owned());
        found.extend(names);
    }
    for list in ["by (", "on (", "group_left ("] {
        let lists = between(query, list, ')');
        found.extend(lists.iter().flat_map(|it| it.split(", ")).map(str::to_owned));
    }
    found.extend(between(legend, "{{", '}'));
    found
}

#[test]
fn it_asks_for_metrics_and_labels_that_there_are() {
    let queries = queries();
    assert!(queries.len() > 10, "the queries are not found: {queries:?}");
    let mut asked = BTreeSet::new();
    for (query, legend) in &queries {
        let metrics: Vec<_> =
            words(query).filter(|word| word.starts_with("reuseport_steer_")).map(metric).collect();
        assert!(!metrics.is_empty(), "{query}");
        let known: BTreeSet<&str> =
            metrics.iter().flat_map(|it| it.labels).copied().chain(OF_PROMETHEUS).collect();
        for label in labels(query, legend) {
            assert!(known.contains(label.as_str()), "no label {label:?}: {query} {legend}");
        }
        asked.extend(metrics.iter().map(|it| it.name));
    }
    // What would wake somebody up is on it.
    for name in [
        "problems",
        "foreign_program",
        "selections_total",
        "misses_total",
        "heal_seconds",
        "evicted",
        "evictions_total",
        "widened_rows",
    ] {
        assert!(asked.contains(format!("reuseport_steer_{name}").as_str()), "{name}");
    }
}

#[test]
fn prometheus_understands_its_queries() {
    let rule = |(place, (query, _)): (usize, &(String, String))| {
        let query = query.replace("$__rate_interval", "5m").replace('$', "");
        format!("  - record: query:{place}\n    expr: '{query}'\n")
    };
    let rules: String = queries().iter().enumerate().map(rule).collect();
    let rules = format!("groups:\n- name: dashboard\n  rules:\n{rules}");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), &rules).expect("write the rules");
    let path = file.path().to_str().expect("a path of ours is text");
    let said = tool("promtool", &["check", "rules", path]);
    assert!(said.contains("SUCCESS"), "{said}");
}

/// Prometheus scrapes an agent, and every panel has something to show.
#[test]
fn every_panel_has_data() {
    require::cpus(2);
    let scene = Scene::new();
    let _agent = Agent::start(&scene.netns, &scene.bpffs, 8080, &["--metrics", "127.0.0.1:9464"]);
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("prometheus.yml");
    let scrape = "scrape_configs:\n- job_name: steer\n  scrape_interval: 1s\n  static_configs:\n  \
                  - targets: ['127.0.0.1:9464']\n";
    std::fs::write(&config, scrape).expect("write a file");
    let mut prometheus = scene.netns.command("prometheus");
    prometheus.arg(format!("--config.file={}", config.display()));
    prometheus.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
    prometheus.args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"]);
    let _prometheus = Reaped(prometheus.spawn().expect("start prometheus"));

    let mut empty = queries();
    let filled = eventually(PATIENCE, || {
        // Rates need counters that grow.
        burst(&scene.netns, cpus()[0], &Target::plain("127.0.0.1:8080"), 5);
        empty.retain(|(query, _)| {
            let query = query.replace("$__rate_interval", "1m");
            let query = query.replace("$group", ".*").replace("$netns", ".*");
            let ask = ["query", "instant", "http://127.0.0.1:9090", &query];
            let (status, stdout, _) = capture(scene.netns.command("promtool").args(ask), PATIENCE);
            !status.is_some_and(|it| it.success()) || stdout.trim().is_empty()
        });
        empty.is_empty()
    });
    assert!(filled, "without data: {empty:#?}");
}

#[test]
fn a_mistake_in_it_would_be_seen() {
    let labels = |query: &str| labels(query, "{{worker}}").into_iter().collect::<Vec<_>>();
    assert_eq!(
        labels("sum by (a, b) (x{c=~\"$c\", d=\"1\"}) * on (e) group_left (f) y"),
        ["a", "b", "c", "d", "e", "f", "worker"]
    );
    assert_eq!(metric("reuseport_steer_heal_seconds_bucket").kind, Kind::Histogram);
    let unknown = std::panic::catch_unwind(|| metric("reuseport_steer_heal_seconds"));
    assert!(unknown.is_err());
    let unknown = std::panic::catch_unwind(|| metric("reuseport_steer_selections"));
    assert!(unknown.is_err());
}
