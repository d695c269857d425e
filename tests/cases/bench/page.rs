//! The page that a bench leaves, as a browser shows it.

use std::fs;
use std::path::Path;

use reuseport_tests::browser::{self, Shown};
use serde_json::{Value, json};

/// A phone's, and a desk's.
const WIDTHS: [u32; 2] = [390, 1280];
/// Pixels that text must have to be read.
const SMALLEST: f64 = 9.0;

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// Asserts that the page of a record can be read, and says what the record says.
pub(super) fn assert_readable(page: &Path, record: &Value) {
    for width in WIDTHS {
        let Shown { found, console } = browser::open(page, width);
        assert!(console.is_empty(), "at {width}: {console:#?}");
        assert_eq!(found["width"], width);
        assert!(number(&found["needs"]) <= f64::from(width), "{} at {width}", found["needs"]);
        assert_eq!(found["loads"], json!([]));
        assert_eq!(list(&found["plots"]).len(), plots(record));
        for plot in list(&found["plots"]) {
            assert!(number(&plot["width"]) > 200.0 && number(&plot["height"]) > 100.0, "{plot:#}");
            assert!(list(&plot["texts"]).len() > 3, "{plot:#}");
            for flaw in ["empty", "outside", "overlaps"] {
                assert_eq!(plot[flaw], json!([]), "{flaw} at {width}: {plot:#}");
            }
            assert!(number(&plot["smallest"]) >= SMALLEST, "at {width}: {plot:#}");
        }
        assert_figures(list(&found["tables"]), record);
        let picture = page.with_file_name(format!("{width}.png"));
        assert_eq!(browser::picture(page, width, &picture), (width, 900));
    }
}

/// Ratios, latencies and locality of each cell, and what happened over time where something was to
/// happen. There is no ratio to nothing, of stuck requests mostly.
fn plots(record: &Value) -> usize {
    let of_cell = |cell: &Value| {
        let workload = cell["workload"].as_str().expect("a text");
        let ratio = match workload {
            "w6" | "w7" => "stuck",
            _ if cell["pace"]["loop"] == "closed" => "rate",
            _ => "p99",
        };
        let figures = list(&cell["verdict"]["figures"]).iter();
        let mut others = figures.filter(|it| it["mechanism"] != "hash");
        let has_ratio = others.any(|it| !it["ratios"][ratio].is_null());
        let over_time = ["w6", "w7", "w8"].contains(&workload);
        2 + usize::from(has_ratio) + usize::from(over_time)
    };
    list(&record["cells"]).iter().map(of_cell).sum::<usize>()
        + usize::from(!record["costs"].is_null())
}

/// The tables are those of goals and cells, in this order.
fn assert_figures(tables: &[Value], record: &Value) {
    let (goals, cells) = (list(&record["goals"]), list(&record["cells"]));
    let mut tables = tables.iter();
    if !goals.is_empty() {
        let rows = &list(tables.next().expect("a table of goals"))[1..];
        assert_eq!(rows.len(), goals.len(), "{rows:#?}");
        for (row, goal) in rows.iter().zip(goals) {
            let [what, cell] = ["what", "cell"].map(|it| goal[it].as_str().expect("a text"));
            assert_eq!(row[0], format!("{what} ({cell})"), "{goal:#}");
            assert_eq!(row[3], goal["wanted"], "{goal:#}");
        }
    }
    for cell in cells {
        let rows = &list(tables.next().expect("a table of the cell"))[1..];
        let figures = list(&cell["verdict"]["figures"]);
        assert_eq!(rows.len(), figures.len(), "{rows:#?}");
        for (row, figures) in rows.iter().zip(figures) {
            assert_eq!(row[0], figures["mechanism"]);
            let columns = [(2, "rate"), (3, "p50_us"), (4, "p99_us"), (5, "accept_p99_us")];
            for (column, name) in columns.into_iter().chain([(8, "stuck")]) {
                let shown = format!("{:.0}", number(&figures[name]["median"]));
                assert_eq!(row[column], shown, "{name}: {row} {figures:#}");
            }
            let cpu = figures["cpu_us"]["median"].as_f64();
            assert_eq!(row[7], cpu.map_or_else(|| "–".to_owned(), |it| format!("{it:.1}")));
        }
    }
    if let Some(costs) = record["costs"]["selection"].as_array() {
        let rows = &list(tables.next().expect("a table of costs"))[1..];
        assert_eq!(rows.len(), costs.len(), "{rows:#?}");
        for (row, cost) in rows.iter().zip(costs) {
            assert_eq!(
                (&row[0], &row[1]),
                (&cost["mechanism"], &json!(cost["sockets"].to_string()))
            );
        }
    }
    assert_eq!(tables.next(), None);
}

/// What the test above rests on.
#[test]
fn flaws_of_a_page_are_seen() {
    let directory = tempfile::tempdir().expect("a directory");
    let page = directory.path().join("page.html");
    let text = "<!doctype html><html><head><title>flaws</title></head><body>
<p style='width: 700px'>wide</p>
<img src='http://192.0.2.1/picture.png' alt=''>
<script>console.error('a complaint');</script>
<svg width='100' height='100' viewBox='0 0 200 200'>
<text x='10' y='50' font-size='20'>one</text><text x='20' y='55' font-size='20'>other</text>
<text x='150' y='150' font-size='20'>cut off</text><text x='9' y='190' font-size='10'>small</text>
</svg>
<table><tr><td>1 &lt; 2&nbsp;µs</td></tr></table>
</body></html>";
    fs::write(&page, text).expect("write a page");
    let Shown { found, console } = browser::open(&page, WIDTHS[0]);
    let says = |words: &str| console.iter().any(|line| line.contains(words));
    assert!(says("a complaint"), "{console:#?}");
    assert!(says("Failed to load") || found["loads"] != json!([]), "{console:#?} {found:#}");
    assert!(number(&found["needs"]) >= 700.0, "{found:#}");
    let plot = &found["plots"][0];
    assert_eq!(plot["outside"], json!(["cut off"]));
    assert_eq!(plot["overlaps"], json!([["one", "other"]]));
    assert!((number(&plot["smallest"]) - 5.0).abs() < 0.1, "{plot:#}");
    assert_eq!(found["tables"], json!([[["1 < 2\u{a0}µs"]]]));
}
