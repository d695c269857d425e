//! `top`: what is steered where, live.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ratatui::crossterm::event::{self, Event};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::app::{App, Wish};
use self::source::Source;
use super::args::{CommonArgs, WhereArgs, duration};
use super::output::to_json;
use super::screen::Screen;
use crate::observe::http::Endpoint;
use crate::observe::{Rates, Snapshot};

mod app;
mod source;
mod view;

/// Watch what is steered where, live
///
/// Workers and their queues, rows, connections per second (runs of the program, to be exact), locality
/// and what happens. Works without an agent; with `--agent` it shows what an agent sees and did, and
/// needs no privilege then. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Keys:
  q  quit     p  pause     left, right  sort by     r  reverse     up, down, page up, page down  scroll

Examples:
  reuseport-steer top
  reuseport-steer top --port 6432 --interval 500ms
  reuseport-steer top --agent 127.0.0.1:9464
  reuseport-steer top --once > frame.txt
  reuseport-steer top --once --json | jq '.rates.groups[].local'")]
pub(super) struct Args {
    /// Only the groups on this port, also those that are not steered
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    place: WhereArgs,
    /// What an agent tells at this address, the one of its --metrics
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["port", "addr", "pid", "netns", "udp"])]
    agent: Option<Endpoint>,
    /// Between looks
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    interval: Duration,
    /// Print one frame as text, of what happens in one interval
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// What cannot be shown as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum TopError {
    /// There is no terminal to draw on.
    #[error("standard input and output are no terminal: use --once for a frame as text")]
    NoTerminal,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let target = args.port.map(|port| args.place.target(port));
    let mut source = match &args.agent {
        Some(endpoint) => Source::agent(endpoint.clone())?,
        None => Source::pins(target, args.common.settings()),
    };
    if args.once || args.common.json {
        return once(args, &mut source);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(TopError::NoTerminal.into());
    }
    live(args.interval, source)
}

/// Draws frames until it is told to end.
fn live(interval: Duration, mut source: Source) -> Result<()> {
    // What is wrong from the beginning is told as every verb tells it.
    let first = source.take()?;
    let mut app = App::new(interval, source.name.clone(), first);
    let (inputs, looker) = watch(source, interval)?;
    let mut screen = Screen::take().context("take over the terminal")?;
    loop {
        screen.draw(|frame| view::draw(&mut app, frame))?;
        let wish = match inputs.recv() {
            Ok(Input::Terminal(event)) => app.event(&event),
            Ok(Input::Sample(sample)) => {
                app.sample(*sample);
                Wish::Stay
            }
            Ok(Input::Panic) => {
                drop(screen);
                // Its panic is ours.
                return looker.join().map_err(|panic| std::panic::resume_unwind(panic));
            }
            Ok(Input::Stop) | Err(mpsc::RecvError) => Wish::Quit,
        };
        if wish == Wish::Quit {
            return Ok(());
        }
    }
}

/// Two looks, and a frame of what was between them.
fn once(args: &Args, source: &mut Source) -> Result<()> {
    let earlier = source.take()?;
    thread::sleep(args.interval);
    let mut later = source.take()?;
    // An agent may rest for longer: what it tells is then what it told before.
    while later.clock == earlier.clock {
        thread::sleep(Duration::from_millis(100));
        later = source.take()?;
    }
    let mut out = super::stdout();
    if args.common.json {
        let rates = Rates::between(&earlier, &later);
        return to_json(&mut out, &serde_json::json!({ "snapshot": later, "rates": rates }));
    }
    let mut app = App::new(args.interval, source.name.clone(), earlier);
    app.sample(Ok(later));
    for line in view::text(&app) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// What the frame changes for.
enum Input {
    /// A key, or another size.
    Terminal(Event),
    /// Another look.
    Sample(Box<Result<Snapshot, String>>),
    /// It is over: a signal, or a terminal that went away.
    Stop,
    /// A thread panicked.
    Panic,
}

/// Says so when a thread ends.
struct Farewell(Sender<Input>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let last = if thread::panicking() { Input::Panic } else { Input::Stop };
        let _nobody_waits = self.0.send(last);
    }
}

/// Starts to look, and to listen to the terminal and to signals: each in a thread of its own, because
/// a look may take longer than a key should wait.
///
/// None of them is waited for at the end: they go with the process.
fn watch(mut source: Source, interval: Duration) -> Result<(Receiver<Input>, JoinHandle<()>)> {
    let (inputs, receiver) = mpsc::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("handle signals")?;
    let farewell = Farewell(inputs.clone());
    thread::spawn(move || {
        let _signal = signals.forever().next();
        drop(farewell);
    });
    let farewell = Farewell(inputs.clone());
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if farewell.0.send(Input::Terminal(event)).is_err() {
                return;
            }
        }
    });
    let farewell = Farewell(inputs);
    let looker = thread::spawn(move || {
        loop {
            thread::sleep(interval);
            let sample = source.take().map_err(|error| super::message(&error));
            if farewell.0.send(Input::Sample(Box::new(sample))).is_err() {
                return;
            }
        }
    });
    Ok((receiver, looker))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::observe::test::snapshot;

    /// What tells this test that it is the child of itself.
    const CHILD: &str = "REUSEPORT_STEER_TEST_PANICS";

    /// The panic of the thread that looks, on a terminal of `script`.
    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        if std::env::var_os(CHILD).is_some() {
            let mut looks = 0;
            let source = Source::new("nowhere".to_owned(), move || {
                looks += 1;
                assert!(looks < 3, "the third look");
                Ok(snapshot(looks, Vec::new()))
            });
            live(Duration::from_millis(100), source).unwrap();
            unreachable!("its panic is ours");
        }
        let this = std::env::current_exe().unwrap();
        let name = "cli::top::tests::a_panic_gives_the_terminal_back_before_it_is_told";
        // The shell tells how the terminal is set before and after.
        let session = format!(
            "stty rows 24 cols 80; stty -g; {} --exact {name} --nocapture; echo ended $?; stty -g",
            this.display()
        );
        let script = ["-q", "-e", "-c", &session, "/dev/null"];
        let output = Command::new("script")
            .args(script)
            .env(CHILD, "1")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let entered = text.find("\x1b[?1049h").unwrap_or_else(|| panic!("no frame: {text:?}"));
        let left = text.find("\x1b[?1049l").unwrap_or_else(|| panic!("not left: {text:?}"));
        let told = text.find("the third look").unwrap_or_else(|| panic!("not told: {text:?}"));
        assert!(entered < left && left < told, "{text:?}");
        assert_eq!(text.matches("\x1b[?1049l").count(), 1, "{text:?}");
        assert!(text[entered..left].contains("nowhere"), "{text:?}");
        assert!(text.contains("ended 101"), "{text:?}");
        assert!(text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "no cursor: {text:?}");
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines.first(), lines.last(), "the terminal is set as it was: {text:?}");
    }
}
