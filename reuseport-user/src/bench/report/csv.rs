//! Every run as a line, for spreadsheets and data frames.

use super::super::judge::Verdict;
use super::super::record::{Record, RecordError, Sample};
use super::super::workload::Pace;

const HEADS: [&str; 28] = [
    "topology",
    "workload",
    "open_rate",
    "connections_at_a_time",
    "workers_per_cpu",
    "mechanism",
    "repetition",
    "position",
    "requests",
    "rate",
    "p50_us",
    "p90_us",
    "p99_us",
    "p999_us",
    "max_us",
    "accept_p50_us",
    "accept_p99_us",
    "connections",
    "remote",
    "chosen_remote",
    "cpu_us",
    "napi_seconds",
    "failed",
    "stuck",
    "steal",
    "background",
    "conclusive",
    "seed",
];

/// The runs of a record, below a line of names.
pub fn to_csv(record: &Record) -> Result<Vec<u8>, RecordError> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let of = |error: csv::Error| RecordError::Draw(error.to_string());
    out.write_record(HEADS).map_err(of)?;
    for cell in &record.cells {
        let (rate, connections) = match cell.pace {
            Pace::Open { rate } => (rate.to_string(), String::new()),
            Pace::Closed { connections } => (String::new(), connections.to_string()),
        };
        let conclusive = cell.verdict.as_ref().is_some_and(Verdict::is_conclusive);
        for sample in &cell.samples {
            let background = cell.background.get(sample.repetition as usize);
            let mut line = vec![cell.topology.to_string(), cell.workload.to_string(), rate.clone()];
            line.extend([connections.clone(), cell.workers.to_string()]);
            line.extend(fields(sample));
            line.push(background.map(f64::to_string).unwrap_or_default());
            line.extend([conclusive.to_string(), record.settings.seed.to_string()]);
            out.write_record(line).map_err(of)?;
        }
    }
    out.into_inner().map_err(|error| RecordError::Draw(error.to_string()))
}

fn fields(sample: &Sample) -> Vec<String> {
    let Sample { latency, accept, .. } = sample;
    let mut fields = vec![
        sample.mechanism.to_string(),
        sample.repetition.to_string(),
        sample.position.to_string(),
        sample.requests.to_string(),
    ];
    let numbers = [sample.rate, latency.p50, latency.p90, latency.p99, latency.p999, latency.max];
    fields.extend(numbers.map(|it| it.to_string()));
    fields.extend([accept.p50, accept.p99].map(|it| it.to_string()));
    fields.push(sample.connections().to_string());
    let known = [sample.remote(), sample.chosen_remote, sample.cpu_us];
    fields.extend(known.map(|it| it.map(|it| it.to_string()).unwrap_or_default()));
    fields.push(sample.napi_seconds.to_string());
    fields.extend([sample.failed(), sample.stuck].map(|it| it.to_string()));
    fields.push(sample.steal.to_string());
    fields
}
