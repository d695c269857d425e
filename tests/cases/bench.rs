//! `bench`: whole, in short, and interrupted.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use reuseport_tests::binary::{self, Cli};
use reuseport_tests::eventually;
use reuseport_tests::leak::Baseline;
use reuseport_tests::process::{self, Reaped, children};
use serde_json::Value;

mod page;

const SCHEMA: &str = include_str!("../../reuseport-user/src/bench/schema.json");
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
/// As a user types it, and a machine that does other things can do it.
const QUICK: [&str; 6] = ["bench", "--quick", "--repetitions", "1", "--seconds", "1"];

fn bench<'a>(args: &[&'a str]) -> Cli<'a> {
    Cli::new(QUICK.iter().chain(args)).limit(Duration::from_mins(3))
}

/// Asserts that it is what the schema describes.
fn assert_valid(record: &Value) {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is one");
    let errors: Vec<String> =
        validator.iter_errors(record).map(|it| format!("{}: {it}", it.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

fn read(directory: &Path, file: &str) -> String {
    fs::read_to_string(directory.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn samples(record: &Value) -> Vec<&Value> {
    let cells = record["cells"].as_array().expect("cells");
    cells.iter().flat_map(|cell| cell["samples"].as_array().expect("samples")).collect()
}

#[test]
fn a_quick_run_is_what_its_schema_says_and_a_page() {
    let before = Baseline::take();
    {
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().join("new");
        let outcome = bench(&[
            "--topology",
            "t1",
            "--workload",
            "w1",
            "--json",
            "--output",
            output.to_str().expect("text"),
        ])
        .run()
        .ok();
        let record = outcome.json();
        assert_valid(&record);
        let saved: Value = serde_json::from_str(&read(&output, "bench.json")).expect("JSON");
        assert_eq!(saved, record);
        // A schema that takes anything would not do.
        let mut spoilt = record.clone();
        spoilt["cells"][0]["samples"][0]["rate"] = "fast".into();
        let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
        assert!(!jsonschema::is_valid(&schema, &spoilt));

        let measured: Vec<&str> =
            samples(&record).iter().filter_map(|it| it["mechanism"].as_str()).collect();
        assert_eq!(measured.len(), 10, "{measured:?}");
        let lines = read(&output, "bench.csv").lines().count();
        assert_eq!(lines, 1 + measured.len());
        assert_page(&read(&output, "bench.html"), &measured);
        page::assert_readable(&output.join("bench.html"), &record);
    }
    before.assert_same();
}

/// One file that loads nothing, with plots.
fn assert_page(page: &str, mechanisms: &[&str]) {
    for from_elsewhere in ["http", "src=", "url(", "@import", "<link", "<script"] {
        assert!(!page.contains(from_elsewhere), "{from_elsewhere}");
    }
    for tag in ["svg", "section", "table", "ul", "details", "html", "body"] {
        let opened = page.matches(&format!("<{tag}")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "<{tag}>");
    }
    assert_eq!(page.matches("<svg").count(), 3, "ratios, latencies, locality");
    assert!(page.contains("width=device-width"));
    for mechanism in mechanisms {
        assert!(page.contains(&format!(">{mechanism}<")), "{mechanism}");
    }
}

/// Gates that no noise breaks: where packets arrive, who polls, who serves them.
#[test]
fn topologies_are_what_they_claim() {
    let before = Baseline::take();
    let outcome =
        bench(&["--topology", "t1,t2,t3,t4,t5", "--mechanism", "ebpf,incoming-cpu", "--json"]);
    let record = outcome.run().ok().json();
    let cells = record["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), 5);
    for (cell, arrival) in cells.iter().zip(["every", "one", "every", "every", "one"]) {
        let gates = cell["verdict"]["gates"].as_array().expect("gates");
        let passed = |what: &str| gates.iter().any(|it| it["what"] == what && it["passed"] == true);
        let topology = &cell["topology"];
        let where_to = if arrival == "every" { "every CPU" } else { "one CPU" };
        assert!(passed(&format!("packets arrive on {where_to}")), "{topology}: {gates:#?}");
        assert!(passed("ebpf serves where it receives"), "{topology}: {gates:#?}");
        assert!(passed("ebpf: socket and program agree"), "{topology}: {gates:#?}");
        let veth = topology != "t1" && topology != "t2";
        assert_eq!(passed("NAPI threads poll the queues"), veth, "{gates:#?}");
    }
    before.assert_same();
}

#[test]
fn an_interrupted_run_leaves_nothing_and_goes_on() {
    let before = Baseline::take();
    {
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().to_str().expect("text");
        let file = directory.path().join("bench.json");
        let mut command = process::command(binary::path());
        command.args(["bench", "--quick", "--repetitions", "3", "--seconds", "1"]);
        // On veth, with an agent: all that there is to leave behind.
        command.args(["--topology", "t3", "--mechanism", "ebpf-spill", "--output", output]);
        let log = tempfile::NamedTempFile::new().expect("a file");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.reopen().expect("the log"));
        let mut child = Reaped(command.spawn().expect("start the bench"));
        let saved =
            || -> Option<Value> { serde_json::from_str(&fs::read_to_string(&file).ok()?).ok() };
        let repeated =
            |record: &Value| record["cells"][0]["background"].as_array().map_or(0, Vec::len);
        let limit = Duration::from_mins(1);
        assert!(eventually(limit, || saved().is_some_and(|it| repeated(&it) == 1)));
        child.signal(SIGINT);
        let status = child.wait(Duration::from_secs(20)).expect("it ends");
        let said = fs::read_to_string(log.path()).expect("the log");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("ended by SIGINT") && said.contains("--resume"), "{said}");
        let first = saved().expect("a record");
        assert_valid(&first);
        let done = repeated(&first);
        assert!((1..3).contains(&done), "{done} repetitions");

        let path = file.to_str().expect("text");
        let outcome = Cli::new(["bench", "--resume", path, "--json"]).limit(limit * 2).run().ok();
        let record = outcome.json();
        assert_eq!(repeated(&record), 3);
        assert_eq!(record["settings"], first["settings"]);
        let (old, new) = (samples(&first), samples(&record));
        assert_eq!(old[..], new[..old.len()], "what was measured stays");
        assert_eq!(new.len(), 3 * 3, "hash, hash-again, ebpf-spill");
        assert!(read(directory.path(), "bench.html").contains("ebpf-spill"));
    }
    before.assert_same();
}

/// Neither has a moment to clear up: first the server, which has the group, then the bench, which has
/// the agent and all namespaces.
#[test]
fn a_bench_and_a_server_that_are_killed_leave_nothing() {
    let before = Baseline::take();
    {
        let mut command = process::command(binary::path());
        command.args(["bench", "--topology", "t3", "--mechanism", "ebpf-spill"]);
        command.args(["--seconds", "2", "--repetitions", "1000"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = Reaped(command.spawn().expect("start the bench"));
        let agent = |pid: u32| -> bool {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let mut names = threads.map(|it| fs::read_to_string(it.path().join("comm")));
            names.any(|name| name.is_ok_and(|name| name.trim() == "agent"))
        };
        // With others before it, in random order.
        let limit = Duration::from_mins(2);
        assert!(eventually(limit, || !child.alive() || agent(child.pid())));
        let servers = children(child.pid());
        assert_eq!(servers.len(), 1, "{servers:?}");
        process::tool("kill", &["-KILL", &servers[0].to_string()]);
        child.signal(SIGKILL);
        child.wait(Duration::from_secs(20)).expect("it ends");
    }
    before.assert_same();
}

/// An agent keeps the group while its server is replaced, and no request is lost by it.
#[test]
fn a_server_is_replaced_under_an_agent() {
    let before = Baseline::take();
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().to_str().expect("text");
    let args = ["--topology", "t1", "--workload", "w7", "--mechanism", "ebpf,ebpf-spill", "--json"];
    let record = bench(&[&args[..], &["--output", output]].concat()).run().ok().json();
    assert_valid(&record);
    assert_eq!(record["cells"][0]["excluded"], serde_json::json!({}));
    for sample in samples(&record) {
        if sample["mechanism"].as_str().is_some_and(|it| it.starts_with("ebpf")) {
            assert!(sample["requests"].as_u64() > Some(0), "{sample}");
            assert_eq!(
                (&sample["errors"], &sample["unanswered"]),
                (&serde_json::json!({}), &0.into())
            );
        }
    }
    // With a plot over time.
    page::assert_readable(&directory.path().join("bench.html"), &record);
    before.assert_same();
}

/// Each workload does what it says, workers that publish their load spill, and costs are shown.
#[test]
fn every_workload_is_what_it_claims_and_costs_are_shown() {
    let before = Baseline::take();
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().to_str().expect("text");
    let args = ["--topology", "t1", "--workload", "w2,w3,w4,w5,w6,w8", "--costs", "--json"];
    let mechanisms =
        ["--mechanism", "ebpf,ebpf-spill,ebpf-queue-0", "--rate", "1000", "--seconds", "0.5"];
    let more = ["bench", "--quick", "--repetitions", "1", "--output", output];
    let bench = Cli::new(more.iter().chain(&args).chain(&mechanisms));
    let record = bench.limit(Duration::from_mins(3)).run().ok().json();
    assert_valid(&record);
    let sample = |workload: &str, mechanism: &str| -> &Value {
        let cells = record["cells"].as_array().expect("cells");
        let cell = cells.iter().find(|it| it["workload"] == workload).expect("a cell");
        let samples = cell["samples"].as_array().expect("samples");
        samples.iter().find(|it| it["mechanism"] == mechanism).expect("a sample")
    };
    let of = |workload: &str, mechanism: &str, figure: &str| -> f64 {
        let sample = sample(workload, mechanism);
        sample[figure].as_f64().unwrap_or_else(|| panic!("{figure}: {sample:#}"))
    };
    for sample in samples(&record) {
        assert!(sample["requests"].as_u64() > Some(0), "{sample:#}");
    }
    // 50 us of work each; 20 us, and 2 ms in 1 of 100; none.
    for (workload, least) in [("w2", 50.0), ("w3", 35.0)] {
        assert!(of(workload, "hash", "cpu_us") > least, "{:#}", sample(workload, "hash"));
    }
    // Only the first of a hundred requests takes a connection.
    let flows = sample("w4", "ebpf")["flows"].as_array().expect("flows");
    let connections: u64 = flows.iter().filter_map(|it| it["count"].as_u64()).sum();
    let requests = of("w4", "ebpf", "requests");
    assert!(connections > 0 && requests > 50.0 * connections as f64, "{flows:#?}");
    let stuck = |mechanism| of("w6", mechanism, "stuck");
    assert!(stuck("hash") > 100.0 && stuck("ebpf-spill") < stuck("hash") / 2.0, "{record:#}");
    let excluded = &record["cells"][3]["excluded"];
    assert!(excluded["ebpf-spill"].is_string() && excluded["ebpf-queue-0"].is_string());
    page::assert_readable(&directory.path().join("bench.html"), &record);
    before.assert_same();
}

#[test]
fn what_cannot_be_is_refused_and_nothing_left() {
    let before = Baseline::take();
    {
        let refused = |args: &[&str], code: i32, words: &str| {
            Cli::new(["bench"].iter().chain(args)).run().fails(code).says(words);
        };
        refused(&["--mechanism", "magic"], 2, "incoming-cpu");
        refused(&["--topology", "t9"], 2, "t1, t2");
        refused(&["--workload", "w0"], 2, "w8");
        refused(&["--repetitions", "3"], 2, "6 to 1000");
        refused(&["--seconds", "0"], 2, "0.05 to 60");
        refused(&["--connections", "0"], 2, "1 to 4096");
        refused(&["--load", "1.5"], 2, "up to 1");
        refused(&["--rate", "0"], 2, "1 to 1000000");
        refused(&["--goals", "--workload", "w1"], 2, "cannot be used with");
        refused(&["--workload", "w8", "--topology", "t2"], 2, "w8 takes t1");
        refused(&["--output", "/proc/nowhere"], 3, "/proc/nowhere");
        refused(&["--resume", "/nowhere/bench.json"], 3, "/nowhere/bench.json");
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("bench.json");
        fs::write(&file, "{}").expect("write");
        let path = file.to_str().expect("text");
        refused(&["--resume", path], 2, "not a saved bench");
        refused(&["--output", directory.path().to_str().expect("text")], 7, "--resume");
        Cli::new(["bench", "--quick"]).uid(65534).run().fails(5).says("CAP_SYS_ADMIN");
        let one = Cli::new(["bench", "--quick"]).through(["taskset", "-c", "0"]);
        one.run().fails(6).says("two CPUs");
    }
    before.assert_same();
}
