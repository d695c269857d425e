//! What the copies write, line by line, each with its worker's number; and our own lines between.
//!
//! All of it is written by one thread, so that lines stay whole and a stuck reader holds up nobody
//! but those who write.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Color, Style};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// A line that is longer is broken.
const LONGEST_LINE: usize = 16 << 10;
/// Longest that the end of the copies' output is waited for, after they ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// Where a line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

#[derive(Debug)]
enum Job {
    Follow { worker: u32, pipe: OwnedFd, stream: Stream },
    Say(String),
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct Logs {
    jobs: UnboundedSender<Job>,
    thread: JoinHandle<()>,
}

impl Logs {
    /// Starts it. `width` is the longest worker number's.
    pub(crate) fn start(width: usize) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let (jobs, queue) = unbounded_channel();
        let write = move || runtime.block_on(work(queue, width));
        let thread = std::thread::Builder::new().name("logs".to_owned()).spawn(write)?;
        Ok(Self { jobs, thread })
    }

    /// Copies what comes out of `pipe`, until its end.
    pub(crate) fn follow(&self, worker: u32, pipe: OwnedFd, stream: Stream) {
        // It fails only after a panic of that thread, which nobody could be told of.
        drop(self.jobs.send(Job::Follow { worker, pipe, stream }));
    }

    /// A line of our own, to standard error.
    pub(crate) fn say(&self, line: impl Into<String>) {
        drop(self.jobs.send(Job::Say(line.into())));
    }

    /// Writes what is left. Who still holds a pipe open is not waited for.
    pub(crate) fn finish(self) {
        drop(self.jobs);
        let deadline = Instant::now() + FAREWELL;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

async fn work(mut queue: UnboundedReceiver<Job>, width: usize) {
    let mut followed = JoinSet::new();
    while let Some(job) = queue.recv().await {
        match job {
            Job::Follow { worker, pipe, stream } => {
                let prefix = prefix(&worker.to_string(), width, colour(worker), colours(stream));
                // Those of copies that ended are forgotten: there may be any number of them.
                while followed.try_join_next().is_some() {}
                // A pipe that cannot be read has nothing to say.
                if let Ok(pipe) = Receiver::from_owned_fd(pipe) {
                    followed.spawn(follow(pipe, prefix, stream));
                }
            }
            Job::Say(line) => {
                let mut text = prefix("run", width, Style::new().bold(), colours(Stream::Err));
                text.extend_from_slice(line.as_bytes());
                text.push(b'\n');
                write(Stream::Err, &text);
            }
        }
    }
    while followed.join_next().await.is_some() {}
}

async fn follow(mut pipe: Receiver, prefix: Vec<u8>, stream: Stream) {
    let mut lines = Lines { prefix, begun: Vec::new() };
    let mut chunk = vec![0; LONGEST_LINE];
    while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
        write(stream, &lines.take(&chunk[..length]));
    }
    write(stream, &lines.rest());
}

/// Bytes on their way to becoming lines.
struct Lines {
    prefix: Vec<u8>,
    begun: Vec<u8>,
}

impl Lines {
    /// The lines that `chunk` completes.
    fn take(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
            self.begun.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.begun.len() >= LONGEST_LINE {
                text.extend(self.rest());
            }
        }
        text
    }

    /// What was begun, as a line.
    fn rest(&mut self) -> Vec<u8> {
        let line = std::mem::take(&mut self.begun);
        if line.is_empty() {
            return line;
        }
        let end: &[u8] = if line.ends_with(b"\n") { b"" } else { b"\n" };
        [&self.prefix, line.as_slice(), end].concat()
    }
}

fn write(stream: Stream, text: &[u8]) {
    // A reader that went away must not end the copies: what they say is then lost.
    drop(match stream {
        Stream::Out => write_to(io::stdout().lock(), text),
        Stream::Err => write_to(io::stderr().lock(), text),
    });
}

fn write_to(mut to: impl Write, text: &[u8]) -> io::Result<()> {
    to.write_all(text)?;
    to.flush()
}

/// Whether colours can be seen there and are wanted.
fn colours(stream: Stream) -> bool {
    let choice = match stream {
        Stream::Out => anstream::AutoStream::choice(&io::stdout()),
        Stream::Err => anstream::AutoStream::choice(&io::stderr()),
    };
    choice != anstream::ColorChoice::Never
}

fn colour(worker: u32) -> Style {
    const COLOURS: [AnsiColor; 6] = [
        AnsiColor::Cyan,
        AnsiColor::Yellow,
        AnsiColor::Green,
        AnsiColor::Magenta,
        AnsiColor::Blue,
        AnsiColor::Red,
    ];
    let colour = COLOURS[worker as usize % COLOURS.len()];
    Style::new().fg_color(Some(Color::Ansi(colour)))
}

/// `[ 7] `, as wide for every worker.
fn prefix(name: &str, width: usize, style: Style, coloured: bool) -> Vec<u8> {
    let text = format!("[{name:>width$}]");
    let text = if coloured { format!("{style}{text}{style:#} ") } else { format!("{text} ") };
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_marked() {
        let mut lines = Lines { prefix: b"[1] ".to_vec(), begun: Vec::new() };
        assert_eq!(lines.take(b"a\nb"), b"[1] a\n");
        assert_eq!(lines.take(b"c"), b"");
        assert_eq!(lines.take(b"\n\n\xff\n"), b"[1] bc\n[1] \n[1] \xff\n");
        assert_eq!(lines.take(b"the end"), b"");
        assert_eq!(lines.rest(), b"[1] the end\n");
        assert_eq!(lines.rest(), b"");
        let long = vec![b'x'; LONGEST_LINE + 1];
        let broken = lines.take(&long);
        assert_eq!(broken.len(), LONGEST_LINE + 1 + 5);
        assert!(broken.ends_with(b"x\n"));
    }

    #[test]
    fn prefixes_line_up_and_are_coloured_on_demand() {
        let style = colour(7);
        assert_eq!(prefix("7", 2, style, false), b"[ 7] ");
        assert_eq!(prefix("run", 2, style, false), b"[run] ");
        assert_eq!(prefix("7", 1, style, true), b"\x1b[33m[7]\x1b[0m ");
    }
}
