//! Plots of a cell, as SVG that stands inside a page: no legend (the page's tables have the colours)
//! and nothing that is loaded from elsewhere.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::bench::costs::Costs;
use crate::bench::judge::{Headline, Verdict};
use crate::bench::mechanism::Mechanism;
use crate::bench::record::{Cell, RecordError, Sample};
use crate::measure::{Estimate, quantile};

/// Pixels, which the page scales to its width: about a phone's, so that text is as large as meant.
const WIDTH: u32 = 420;
const HEIGHT: u32 = 320;
/// Of a row of the plots that have one for each mechanism.
const ROW: u32 = 46;
/// Of what is drawn below a row's name, nearer to it than to the next row's.
const MIDDLE: f64 = 0.38;
const FONT: (&str, i32) = ("sans-serif", 14);

/// Told apart also by those who see red and green alike; in order of [`Mechanism::ALL`].
const COLOURS: [RGBColor; 16] = [
    RGBColor(0x99, 0x99, 0x99),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0xbb, 0xbb, 0x44),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x33, 0x22, 0x88),
    RGBColor(0x88, 0xcc, 0xee),
    RGBColor(0x44, 0xaa, 0x99),
    RGBColor(0xdd, 0xcc, 0x77),
    RGBColor(0xcc, 0x66, 0x77),
    RGBColor(0x88, 0x22, 0x55),
];

fn colour(mechanism: Mechanism) -> RGBColor {
    COLOURS[mechanism as usize % COLOURS.len()]
}

/// As CSS takes it.
pub(super) fn css_colour(mechanism: Mechanism) -> String {
    let RGBColor(red, green, blue) = colour(mechanism);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

type Drawn = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(size: (u32, u32), plot: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, RecordError> {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        plot(&area).and_then(|()| Ok(area.present()?))
    };
    drawn.map_err(|error| RecordError::Draw(error.to_string()))?;
    // In a page it needs none, and the page then names no address at all.
    Ok(svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", ""))
}

/// Nanoseconds of a selection beyond the hash's, against the sockets in the group.
pub(super) fn costs(costs: &Costs) -> Result<String, RecordError> {
    let line = |mechanism| {
        let its = costs.selection.iter().filter(|it| it.mechanism == mechanism);
        let points = its.map(|it| ((it.sockets as f64).log2(), it.nanoseconds.median().max(1.0)));
        let points: Vec<_> = points.collect();
        (!points.is_empty()).then_some(Line { mechanism, points })
    };
    let lines: Vec<Line> = Mechanism::ALL.into_iter().filter_map(line).collect();
    let sockets = |log: &f64| format!("{:.0}", log.exp2());
    lines_plot(&lines, "sockets in the group", "ns more than the hash", &sockets)
}

/// One line of a plot.
struct Line {
    mechanism: Mechanism,
    points: Vec<(f64, f64)>,
}

/// Latency in microseconds against the percentile, each tenth of the rest as wide as the one before.
pub(super) fn latencies(cell: &Cell) -> Result<String, RecordError> {
    let nines = |part: f64| -(1.0 - part).log10();
    let lines = lines(cell, |sample| {
        let seen = 1.0 / sample.requests.max(1) as f64;
        // Beyond the last request there is no percentile.
        let curve = sample.curve.iter().filter(|(part, _)| *part < 1.0 && 1.0 - part >= seen);
        curve.map(|&(part, micros)| (nines(part), micros)).collect()
    });
    let label = |nines: &f64| match *nines {
        nines if nines < 0.5 => "0".to_owned(),
        nines => {
            let digits = (nines.round() - 2.0).max(0.0) as usize;
            format!("{:.digits$} %", 100.0 * (1.0 - 10f64.powf(-nines)))
        }
    };
    lines_plot(&lines, "percentile", "latency, us", &label)
}

/// The slowest reply in milliseconds, over the seconds of a run.
pub(super) fn over_time(cell: &Cell) -> Result<String, RecordError> {
    let lines = lines(cell, |sample| {
        let slices = sample.slowest_ms.iter().enumerate();
        slices.map(|(slice, &slowest)| (slice as f64 / 10.0, slowest.max(0.01))).collect()
    });
    lines_plot(&lines, "seconds", "slowest reply, ms", &|seconds| format!("{seconds:.1}"))
}

/// A line for each mechanism: at each place, the median of its runs.
fn lines(cell: &Cell, points: impl Fn(&Sample) -> Vec<(f64, f64)>) -> Vec<Line> {
    let line = |mechanism| {
        let samples = cell.samples.iter().filter(|sample| sample.mechanism == mechanism);
        let runs: Vec<Vec<(f64, f64)>> = samples.map(&points).collect();
        let most = runs.iter().map(Vec::len).max()?;
        let at = |place: usize| {
            let there: Vec<_> = runs.iter().filter_map(|run| run.get(place)).collect();
            let mut values: Vec<f64> = there.iter().map(|point| point.1).collect();
            values.sort_unstable_by(f64::total_cmp);
            (there[0].0, quantile(&values, 0.5).max(1e-3))
        };
        let points: Vec<_> = (0..most).map(at).collect();
        (!points.is_empty()).then_some(Line { mechanism, points })
    };
    Mechanism::ALL.into_iter().filter_map(line).collect()
}

fn lines_plot(
    lines: &[Line],
    x: &str,
    y: &str,
    label: &dyn Fn(&f64) -> String,
) -> Result<String, RecordError> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let end = points().map(|point| point.0).fold(1.0, f64::max);
    let low = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|point| point.1).fold(0.0, f64::max);
    if low > high {
        return Ok(String::new());
    }
    draw((WIDTH, HEIGHT), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(14)
            // Half of the last label stands beyond the axis.
            .margin_right(34)
            .x_label_area_size(42)
            .y_label_area_size(62)
            .build_cartesian_2d(0.0..end, (low * 0.8..high * 1.25).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .x_labels(6)
            .y_labels(8)
            .label_style(FONT)
            .axis_desc_style(FONT)
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.15))
            .x_label_formatter(label)
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        for line in lines {
            let style = colour(line.mechanism).stroke_width(2);
            chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        }
        Ok(())
    })
}

/// As many digits as say something.
fn short(value: f64) -> String {
    match value {
        10.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The headline's ratio to the hash: median, 95 % interval (thick), p10 to p90 (thin).
pub(super) fn ratios(headline: Headline, verdict: &Verdict) -> Result<String, RecordError> {
    let rows: Vec<(Mechanism, Estimate)> = verdict
        .figures
        .iter()
        .filter(|figures| figures.mechanism != Mechanism::Hash)
        .filter_map(|figures| Some((figures.mechanism, headline.ratio(figures)?)))
        .collect();
    let all = || rows.iter().map(|row| row.1);
    let low = all().map(|it| it.spread.p10.min(it.ci95.low)).fold(1.0, f64::min);
    let high = all().map(|it| it.spread.p90.max(it.ci95.high)).fold(1.0, f64::max);
    let room = ((high - low) * 0.05).max(0.01);
    let (low, high) = (low - room, high + room);
    by_mechanism(&rows, (low, high), Some(1.0), &|Estimate { spread, ci95, .. }| {
        vec![
            Shape::Line { from: spread.p10, to: spread.p90, width: 1 },
            Shape::Line { from: ci95.low, to: ci95.high, width: 5 },
            Shape::Dot(spread.median),
        ]
    })
}

/// For each mechanism and CPU, the part of the connections received there that was served there.
pub(super) fn locality(cell: &Cell, cpus: &[u32]) -> Result<String, RecordError> {
    let rows: Vec<(Mechanism, Vec<f64>)> = Mechanism::ALL
        .into_iter()
        .filter_map(|mechanism| {
            let samples = || cell.samples.iter().filter(|it| it.mechanism == mechanism);
            samples().next()?;
            let part = |&cpu: &u32| {
                let flows = || samples().flat_map(|it| &it.flows).filter(|it| it.received == cpu);
                let all: u64 = flows().map(|flow| flow.count).sum();
                let local: u64 =
                    flows().filter(|flow| flow.served == cpu).map(|flow| flow.count).sum();
                (all > 0).then(|| local as f64 * 100.0 / all as f64)
            };
            Some((mechanism, cpus.iter().filter_map(part).collect()))
        })
        .collect();
    by_mechanism(&rows, (0.0, 100.0), None, &|parts| {
        let height = 0.46 / parts.len().max(1) as f64;
        // The first CPU on top.
        let bars = parts.iter().rev().enumerate();
        let bar = |(place, &to)| Shape::Bar {
            to,
            above: 0.14 + place as f64 * height,
            height: height * 0.8,
        };
        bars.map(bar).collect()
    })
}

/// Something in a row, at places of the axis; heights are parts of the row's.
enum Shape {
    Line { from: f64, to: f64, width: u32 },
    Dot(f64),
    Bar { to: f64, above: f64, height: f64 },
}

/// A row for each mechanism, its name above what `of` draws; nothing of none.
fn by_mechanism<T>(
    rows: &[(Mechanism, T)],
    (low, high): (f64, f64),
    mark: Option<f64>,
    of: &dyn Fn(&T) -> Vec<Shape>,
) -> Result<String, RecordError> {
    if rows.is_empty() {
        return Ok(String::new());
    }
    let count = rows.len() as f64;
    draw((WIDTH, rows.len() as u32 * ROW + 40), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(14)
            .margin_right(20)
            .x_label_area_size(24)
            .build_cartesian_2d(low..high, 0.0..count)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_labels(6)
            .label_style(FONT)
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.15))
            .draw()?;
        if let Some(mark) = mark {
            let line = PathElement::new(vec![(mark, 0.0), (mark, count)], BLACK.stroke_width(1));
            chart.draw_series(std::iter::once(line))?;
        }
        for (place, (mechanism, value)) in rows.iter().enumerate() {
            let y = count - 1.0 - place as f64;
            let name = Text::new(mechanism.name(), (low, y + 0.92), FONT);
            chart.draw_series(std::iter::once(name))?;
            let colour = colour(*mechanism);
            for shape in of(value) {
                match shape {
                    Shape::Line { from, to, width } => {
                        let points = vec![(from, y + MIDDLE), (to, y + MIDDLE)];
                        let line = PathElement::new(points, colour.stroke_width(width));
                        chart.draw_series(std::iter::once(line))?;
                    }
                    Shape::Dot(x) => {
                        let dot = Circle::new((x, y + MIDDLE), 5, colour.filled());
                        chart.draw_series(std::iter::once(dot))?;
                    }
                    Shape::Bar { to, above, height } => {
                        let corners = [(low, y + above), (to, y + above + height)];
                        let bar = Rectangle::new(corners, colour.filled());
                        chart.draw_series(std::iter::once(bar))?;
                    }
                }
            }
        }
        Ok(())
    })
}
