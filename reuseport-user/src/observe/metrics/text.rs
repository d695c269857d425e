//! The metrics as Prometheus, node_exporter's textfile collector and most others read them: text
//! format 0.0.4. (The textfile collector reads no OpenMetrics.)

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{TEXT_FORMAT, TextEncoder};

use super::{Family, Kind, Sample, Value};
use crate::agent::state::Latency;

/// The `Content-Type` of [`text`].
pub const CONTENT_TYPE: &str = TEXT_FORMAT;

/// Writes them down.
pub fn text(families: &[Family]) -> Result<String, prometheus::Error> {
    let families: Vec<MetricFamily> = families.iter().map(family).collect();
    TextEncoder::new().encode_to_string(&families)
}

fn family(family: &Family) -> MetricFamily {
    let mut told = MetricFamily::default();
    told.set_name(family.metric.name.to_owned());
    told.set_help(family.metric.help.to_owned());
    told.set_field_type(match family.metric.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    told.set_metric(family.samples.iter().map(|it| sample(family.metric, it)).collect());
    told
}

fn sample(metric: &super::Metric, sample: &Sample) -> Metric {
    let label = |(name, value): (&&str, &String)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value(value.clone());
        label
    };
    let labels = metric.labels.iter().zip(&sample.labels).map(label).collect();
    let mut told = Metric::from_label(labels);
    match (metric.kind, &sample.value) {
        (_, Value::Latency(latency)) => told.set_histogram(histogram(latency)),
        (Kind::Counter, &Value::Number(value)) => {
            let mut counter = Counter::default();
            counter.set_value(value);
            told.set_counter(counter);
        }
        (_, &Value::Number(value)) => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            told.set_gauge(gauge);
        }
    }
    told
}

fn histogram(latency: &Latency) -> Histogram {
    let mut within = 0;
    let buckets = Latency::BOUNDS.iter().zip(latency.buckets).map(|(bound, count)| {
        within += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound.as_secs_f64());
        bucket.set_cumulative_count(within);
        bucket
    });
    let mut told = Histogram::default();
    told.set_bucket(buckets.collect());
    told.set_sample_count(latency.count);
    told.set_sample_sum(latency.sum.as_secs_f64());
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics;

    #[test]
    fn it_is_the_text_format() {
        let sample = |label: &str, value| Sample {
            labels: vec![label.to_owned()],
            value: Value::Number(value),
        };
        let families = [Family {
            metric: &metrics::GROUPS,
            samples: vec![sample("steered", 2.0), sample("a \"quoted\\\nname\"", 0.5)],
        }];
        let text = text(&families).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("# HELP reuseport_steer_groups Groups by state"), "{text}");
        assert_eq!(
            lines[1..],
            [
                "# TYPE reuseport_steer_groups gauge",
                "reuseport_steer_groups{state=\"steered\"} 2",
                "reuseport_steer_groups{state=\"a \\\"quoted\\\\\\nname\\\"\"} 0.5",
            ]
        );
    }
    #[test]
    fn latency_is_a_histogram() {
        let latency = Latency {
            buckets: [0, 1, 0, 2, 0, 0, 0, 0, 0, 0],
            count: 4,
            sum: std::time::Duration::from_millis(60_084),
            max: std::time::Duration::from_mins(1),
        };
        let labels = ["g", "1", "2", "3"].map(ToOwned::to_owned).to_vec();
        let samples = vec![Sample { labels, value: Value::Latency(latency) }];
        let text = text(&[Family { metric: &metrics::HEAL_SECONDS, samples }]).unwrap();
        let labels = "group=\"g\",port=\"1\",netns=\"2\",uid=\"3\"";
        for (end, value) in [
            (format!("bucket{{{labels},le=\"0.005\"}}"), "0"),
            (format!("bucket{{{labels},le=\"0.01\"}}"), "1"),
            (format!("bucket{{{labels},le=\"0.03\"}}"), "3"),
            (format!("bucket{{{labels},le=\"1\"}}"), "3"),
            (format!("bucket{{{labels},le=\"+Inf\"}}"), "4"),
            (format!("sum{{{labels}}}"), "60.084"),
            (format!("count{{{labels}}}"), "4"),
        ] {
            let line = format!("\nreuseport_steer_heal_seconds_{end} {value}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
