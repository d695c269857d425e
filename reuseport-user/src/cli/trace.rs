//! `trace`: what happens to a port's connections between the kernel and the server.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::widgets::Paragraph;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::args::{TargetArgs, duration};
use super::output::to_json;
use super::screen::Screen;
use crate::sys::signal::is_ignored;
use crate::trace::{Hook, Reading, Summary, Trace};

mod view;

/// How often is looked for signals, keys and connections: the kernel wakes nobody for them.
const STEP: Duration = Duration::from_millis(20);

/// See how long connections wait, and on which CPUs they come and are accepted
///
/// For any TCP listeners, steered or not; the server is not touched. Shows by listener and by CPU how
/// many connections were accepted, how near the accepting CPU was to the receiving one, how long the
/// handshake took (from SYN-ACK to accept queue) and how long connections waited to be accepted (from
/// accept queue to the return of accept). Runs until Ctrl-C; leaves nothing behind. Costs the host
/// something for as long as it runs.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
On a terminal a live table since the beginning (q ends it), elsewhere one table for each interval; at
the end all of it. Percentiles are at most an eighth too long.

Examples:
  reuseport-steer trace --port 6432
  reuseport-steer trace --port 6432 --duration 10s --json | jq '.total.wait.p99_us'
  reuseport-steer trace --port 6432 --events | jq -c 'select(.wait_us > 1000)'

DROPPED is a dash where the listener defers accepting (TCP_DEFER_ACCEPT, as PgBouncer does): the kernel
drops the last segment of each of its handshakes and counts that with the rest.

Needs CAP_BPF and CAP_PERFMON, CAP_SYS_PTRACE for other users' servers, and a kernel with BTF.")]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// End after this time
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// Between tables, and between looks for listeners that are new
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    interval: Duration,
    /// Print each connection as a line of JSON; what is counted goes to standard error
    #[arg(long)]
    events: bool,
    /// Print JSON at the end; with --events as its last line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut ends = Ends::new()?;
    let mut trace = Trace::start(&args.target.target(), args.events)?;
    ends.at = args.duration.map(|duration| Instant::now() + duration);
    let live =
        !args.events && !args.json && io::stdout().is_terminal() && io::stdin().is_terminal();
    if !live {
        let count = trace.traced().len();
        let s = if count == 1 { "" } else { "s" };
        let how = how(&trace);
        writeln!(anstream::stderr(), "tracing {count} listener{s} {how}; Ctrl-C ends it")?;
    }
    // What was counted up to an error is told all the same.
    let traced = if args.events {
        follow(&mut trace, &ends, args.interval, print_connections)
    } else if args.json {
        follow(&mut trace, &ends, args.interval, |_| Ok(()))
    } else if live {
        watch(&mut trace, &ends, args.interval)
    } else {
        tables(&mut trace, &ends, args.interval)
    };
    trace.stop();
    if args.events && traced.is_ok() {
        print_connections(&mut trace)?;
    }
    let read = trace.read();
    print(args, &trace.summary(trace.last()))?;
    traced?;
    Ok(read.map(drop)?)
}

fn print(args: &Args, summary: &Summary) -> Result<()> {
    if args.events && args.json {
        let mut out = super::stdout();
        serde_json::to_writer(&mut out, &serde_json::json!({ "summary": summary }))?;
        return Ok(writeln!(out)?);
    }
    if args.json {
        return to_json(&mut super::stdout(), summary);
    }
    if args.events {
        return Ok(view::text(&mut anstream::stderr().lock(), summary)?);
    }
    Ok(view::text(&mut super::stdout(), summary)?)
}

/// When it is over.
struct Ends {
    /// If ever.
    at: Option<Instant>,
    /// A signal said so.
    told: Arc<AtomicBool>,
}

impl Ends {
    fn new() -> Result<Self> {
        let told = Arc::new(AtomicBool::new(false));
        let signals = [SIGTERM, SIGINT].into_iter();
        // As `nohup` wants it.
        let hangup = if is_ignored(SIGHUP)? { None } else { Some(SIGHUP) };
        for signal in signals.chain(hangup) {
            signal_hook::flag::register(signal, told.clone()).context("handle signals")?;
        }
        Ok(Self { at: None, told })
    }

    /// Whether it is over, asked after the usual pause, or a shorter one up to `until`.
    fn after_pause(&self, until: Option<Instant>) -> bool {
        let now = Instant::now();
        let pauses =
            [self.at, until].into_iter().flatten().map(|at| at.saturating_duration_since(now));
        sleep(pauses.fold(STEP, Duration::min));
        self.now()
    }

    fn now(&self) -> bool {
        self.told.load(Ordering::Relaxed) || self.at.is_some_and(|at| at <= Instant::now())
    }
}

/// Without tables: does something at each step, and looks for listeners that are new now and then.
fn follow(
    trace: &mut Trace,
    ends: &Ends,
    interval: Duration,
    step: impl Fn(&mut Trace) -> Result<()>,
) -> Result<()> {
    let mut next = Instant::now() + interval;
    while !ends.after_pause(None) {
        step(trace)?;
        if Instant::now() >= next {
            trace.read()?;
            next = Instant::now() + interval;
        }
    }
    Ok(())
}

/// A line for each connection.
fn print_connections(trace: &mut Trace) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    while let Some(connection) = trace.connection() {
        serde_json::to_writer(&mut out, &connection)?;
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

/// A table for each interval.
fn tables(trace: &mut Trace, ends: &Ends, interval: Duration) -> Result<()> {
    let mut before = Reading::default();
    let mut next = Instant::now() + interval;
    loop {
        // Once at least: a reading may take longer than the interval.
        loop {
            if ends.after_pause(Some(next)) {
                return Ok(());
            }
            if Instant::now() >= next {
                break;
            }
        }
        next = (next + interval).max(Instant::now());
        let now = trace.read()?;
        let mut out = super::stdout();
        view::table(&mut out, &trace.summary(&now.since(&before)))?;
        writeln!(out)?;
        before = now;
    }
}

/// A table on the terminal, of all that happened so far.
fn watch(trace: &mut Trace, ends: &Ends, interval: Duration) -> Result<()> {
    let mut screen = Screen::take().context("take over the terminal")?;
    let mut before = Reading::default();
    loop {
        let now = trace.read()?;
        let rate = trace.summary(&now.since(&before));
        let text = live(trace, &now, rate.total.accepted as f64 / rate.seconds)?;
        before = now;
        let next = Instant::now() + interval;
        let draw = |screen: &mut Screen| {
            screen.draw(|frame| frame.render_widget(Paragraph::new(text.as_str()), frame.area()))
        };
        draw(&mut screen)?;
        loop {
            if ends.now() {
                return Ok(());
            }
            let pause = next.saturating_duration_since(Instant::now());
            // Once at least: a reading may take longer than the interval.
            let key = event::poll(pause.min(STEP))?.then(event::read).transpose()?;
            match key {
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    let control = key.modifiers.contains(KeyModifiers::CONTROL);
                    if key.code == KeyCode::Char('q') || key.code == KeyCode::Char('c') && control {
                        return Ok(());
                    }
                }
                Some(Event::Resize(..)) => draw(&mut screen)?,
                _ => {}
            }
            if Instant::now() >= next {
                break;
            }
        }
    }
}

/// Where accepts are seen, and why not where it would cost less.
fn how(trace: &Trace) -> String {
    match (trace.hook(), trace.why()) {
        (Hook::Function, _) => "at the end of inet_accept".to_owned(),
        (Hook::Syscalls, why) => {
            let why = why.unwrap_or("not asked");
            format!(
                "at the end of every system call on the host (inet_accept cannot be hooked: {why})"
            )
        }
    }
}

fn live(trace: &Trace, reading: &Reading, rate: f64) -> Result<String> {
    let mut out = anstream::StripStream::new(Vec::new());
    writeln!(out, "{rate:.0} connections/s; seen {}; q quit\n", how(trace))?;
    view::text(&mut out, &trace.summary(reading))?;
    Ok(String::from_utf8_lossy(&out.into_inner()).into_owned())
}
