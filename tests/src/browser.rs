//! A page as a browser shows it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::netns::Netns;
use crate::process::capture;

/// Tells what is seen; see there for what it finds.
const PROBE: &str = include_str!("browser.js");

/// More than any page takes on a busy machine.
const LIMIT: Duration = Duration::from_mins(2);
const HEIGHT: u32 = 900;

/// A page that was opened.
#[derive(Debug)]
pub struct Shown {
    /// What the probe found.
    pub found: Value,
    /// What the browser said on its console: errors, and what it could not load.
    pub console: Vec<String>,
}

/// Opens a page in a window of that width, where there is no network.
pub fn open(page: &Path, width: u32) -> Shown {
    let directory = tempfile::tempdir().expect("a directory");
    let text = fs::read_to_string(page).expect("read the page");
    let probed = text.replacen("</body>", &format!("<script>{PROBE}</script></body>"), 1);
    assert_ne!(probed, text, "no body");
    let copy = directory.path().join("copy.html");
    fs::write(&copy, probed).expect("write a copy");
    let (dom, said) = browse(&copy, width, &["--dump-dom"]);
    let found = dom.split_once("<pre id=\"findings\">").and_then(|it| it.1.split_once("</pre>"));
    let (found, _) = found.unwrap_or_else(|| panic!("no findings\n{said}\n{dom}"));
    let console = said.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned);
    Shown {
        found: serde_json::from_str(found).unwrap_or_else(|error| panic!("{error}: {found}")),
        console: console.collect(),
    }
}

/// Takes a picture of the top of a page, as PNG; its width and height.
pub fn picture(page: &Path, width: u32, to: &Path) -> (u32, u32) {
    browse(page, width, &[&format!("--screenshot={}", to.display())]);
    let png = fs::read(to).expect("read the picture");
    assert_eq!(png.get(1..4), Some(&b"PNG"[..]), "not a PNG");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
    (number(16), number(20))
}

/// Standard output and error of the browser.
fn browse(page: &Path, width: u32, args: &[&str]) -> (String, String) {
    let netns = Netns::new();
    let home = tempfile::tempdir().expect("a directory");
    let mut command: Command = netns.command("chromium-headless-shell");
    // As root it has no sandbox; the page is our own.
    command.args(["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]);
    command.arg(format!("--user-data-dir={}", home.path().display()));
    command.arg(format!("--window-size={width},{HEIGHT}")).args(args);
    command.arg(format!("file://{}", page.display())).env("HOME", home.path());
    let (status, stdout, stderr) = capture(&mut command, LIMIT);
    assert!(status.is_some_and(|it| it.success()), "{command:?}: {status:?}\n{stderr}");
    (stdout, stderr)
}
