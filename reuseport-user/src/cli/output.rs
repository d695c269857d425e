//! Text for people and JSON for programs.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use serde::Serialize;

use crate::steer::Notice;

/// Headings.
pub(super) const BOLD: Style = Style::new().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

/// Pretty JSON and a final newline.
pub(super) fn to_json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Columns as wide as their widest cell; nothing where there are no lines.
pub(super) fn table(
    out: &mut impl Write,
    heads: &[&str],
    lines: Vec<Vec<String>>,
) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let heads: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    let all: Vec<_> = std::iter::once(heads).chain(lines).collect();
    let width = |column: usize| {
        all.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..all[0].len()).map(|column| width(column).unwrap_or(0)).collect();
    for line in &all {
        let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// What is wrong, and beneath it what to do.
pub(super) fn notices(out: &mut impl Write, notices: &[Notice]) -> io::Result<()> {
    for Notice { what, remedy } in notices {
        writeln!(out, "  {WARNING}!{WARNING:#} {what}\n    -> {remedy}")?;
    }
    Ok(())
}

/// `12,345,678`.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `3d`, `5h`, `12m`, `40s`.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// `part` of `whole`; a dash where there is no whole. Never rounds up to 100.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    let shown = if part < whole { percent.min(99.99) } else { percent };
    format!("{shown:.2} %")
}

/// `0, 1, 2`; a dash for none.
pub(super) fn list(slots: &[u32]) -> String {
    if slots.is_empty() { "-".to_owned() } else { few(slots.iter().map(u32::to_string), 8) }
}

/// The first `most`, and how many more there are.
fn few(words: impl ExactSizeIterator<Item = String>, most: usize) -> String {
    let more = words.len().saturating_sub(most);
    let text = words.take(most).collect::<Vec<_>>().join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(percent(1, 0), "-");
        assert_eq!(percent(999_999, 1_000_000), "99.99 %");
        assert_eq!(percent(5, 5), "100.00 %");
        assert_eq!(list(&(0..10).collect::<Vec<_>>()), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut out = Vec::new();
        let lines = vec![vec!["1".into(), "b".into()], vec!["100".into(), String::new()]];
        table(&mut out, &["A", "LONG"], lines).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "  A    LONG\n  1    b\n  100\n");
    }
}
