//! Signals that the launcher minds.

use std::future::poll_fn;
use std::io::{self, IsTerminal as _};
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::sys::signal::is_ignored;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To end everything, by this signal.
    Stop(i32),
    /// To replace every copy.
    Roll,
    /// To pass this one on.
    Forward(i32),
    /// To look for children that ended.
    Reap,
}

/// The signals, caught.
pub(super) struct Signals {
    streams: Vec<(Signal, i32)>,
    /// Whether we began on a terminal.
    terminal: bool,
}

impl Signals {
    /// Must be called within a runtime. From then on they do not end the process.
    pub(super) fn catch() -> io::Result<Self> {
        let minded = [
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGHUP,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGCHLD,
        ];
        let catch = |&number: &i32| Ok((signal(SignalKind::from_raw(number))?, number));
        // Who lets it outlive a session (`nohup`) asks for no restart at the session's end.
        let ignored = is_ignored(libc::SIGHUP).map_err(|error| error.source)?;
        let minded = minded.iter().filter(|&&it| it != libc::SIGHUP || !ignored);
        let streams = minded.map(catch).collect::<io::Result<_>>()?;
        Ok(Self { streams, terminal: on_terminal() })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Asked {
        let number = poll_fn(|context| {
            for (stream, number) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        });
        match number.await {
            // Its terminal was closed: nobody is there to ask for a restart.
            libc::SIGHUP if self.terminal && !on_terminal() => Asked::Stop(libc::SIGTERM),
            libc::SIGHUP => Asked::Roll,
            libc::SIGCHLD => Asked::Reap,
            number @ (libc::SIGUSR1 | libc::SIGUSR2) => Asked::Forward(number),
            number => Asked::Stop(number),
        }
    }
}

fn on_terminal() -> bool {
    io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal()
}
