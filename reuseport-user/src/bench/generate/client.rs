//! A client thread that connects.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::latency::Seen;
use super::schedule::{Schedule, derive};
use super::{GRACE, Job, pin};
use crate::bench::protocol::{REPLY, Request};
use crate::bench::workload::Pace;
use crate::sys::epoll::Epoll;
use crate::sys::{SyscallError, clock};

/// Pause after an error in a closed loop, so that a dead port does not make the load spin.
const PAUSE: Duration = Duration::from_millis(1);
/// Longest sleep: to see in time that all is to end.
const NAP: Duration = Duration::from_millis(20);
/// Everything that happens to a connection, told once each time.
const EVENTS: libc::c_int = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;

/// One connection.
struct Connection {
    socket: Socket,
    /// When the request under way was due, or the last one.
    due: Duration,
    /// Requests that are still to be made after it.
    left: u32,
    /// The request under way, until it was sent.
    request: Option<Request>,
    received: usize,
    /// The last reply is complete, and the server has only to close.
    answered: bool,
}

/// What came of looking at a connection.
enum Step {
    /// It goes on when the epoll tells.
    Waits,
    /// The reply is complete.
    Answered,
    /// The server closed after the last reply.
    Closed,
    Failed(String),
}

struct Client<'a> {
    job: &'a Job<'a>,
    epoll: Epoll,
    schedule: Schedule,
    address: SockAddr,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    seen: Seen,
    /// In a closed loop, connections to be made when the pause after an error is over.
    owed: usize,
    resume: Duration,
}

pub(super) fn run(job: &Job<'_>) -> Result<Seen, SyscallError> {
    let plan = job.plan;
    let seed = derive(plan.seed, job.place as u64);
    // Not from when this thread came to run: what was due before it did is late.
    let start = job.window.begin.saturating_sub(plan.warmup);
    let mut client = Client {
        job,
        epoll: Epoll::new()?,
        schedule: Schedule::new(plan.pace, plan.clients.len(), start, seed),
        address: SockAddr::from(plan.address),
        connections: Vec::new(),
        free: Vec::new(),
        seen: Seen::new(),
        owed: 0,
        resume: Duration::ZERO,
    };
    if let Pace::Closed { connections } = plan.pace {
        client.owed = job.connections(connections);
    }
    client.run()?;
    let missing = client.connections.iter().flatten();
    client.seen.unanswered +=
        missing.filter(|it| !it.answered && job.window.contains(it.due)).count() as u64;
    Ok(client.seen)
}

impl Client<'_> {
    fn run(&mut self) -> Result<(), SyscallError> {
        let end = self.job.window.end;
        let mut skew = self.job.plan.skew.then(|| self.job.window.middle());
        let mut tokens = Vec::new();
        loop {
            let now = clock::monotonic();
            if self.job.stops() || now >= end + GRACE || (now >= end && self.is_idle()) {
                return Ok(());
            }
            if skew.take_if(|middle| *middle <= now).is_some() {
                pin(self.job.plan.clients[0])?;
            }
            let next = self.make_due(now)?;
            let pause = next.map_or(NAP, |next| next.saturating_sub(clock::monotonic()).min(NAP));
            self.epoll.wait_all(&mut tokens, Some(pause))?;
            for &token in &tokens {
                self.look(token as usize)?;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.connections.len()
    }

    /// Makes what is due; says when the next will be.
    fn make_due(&mut self, now: Duration) -> Result<Option<Duration>, SyscallError> {
        let end = self.job.window.end;
        while let Some(due) = self.schedule.due().filter(|&due| due < end) {
            if due > now {
                return Ok(Some(due));
            }
            self.schedule.advance();
            self.connect(due)?;
        }
        if self.owed > 0 && now < end {
            if now < self.resume {
                return Ok(Some(self.resume));
            }
            for _ in 0..std::mem::take(&mut self.owed) {
                self.connect(clock::monotonic())?;
            }
        }
        Ok(None)
    }

    fn connect(&mut self, due: Duration) -> Result<(), SyscallError> {
        let request = self.request(due, self.job.plan.requests);
        let socket = match open(&self.address) {
            Ok(socket) => socket,
            Err(what) => {
                self.fail(what);
                return Ok(());
            }
        };
        let left = self.job.plan.requests - 1;
        let connection =
            Connection { socket, due, left, request: Some(request), received: 0, answered: false };
        let place = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        // Over loopback it is established already.
        self.epoll.add(connection.socket.as_fd(), EVENTS, place as u64)?;
        self.connections[place] = Some(connection);
        self.look(place)
    }

    fn request(&mut self, due: Duration, left: u32) -> Request {
        let work = self.job.plan.work.draw(self.schedule.rng());
        Request { due, work, last: left == 1 }
    }

    /// Goes on with a connection as far as it goes without waiting.
    fn look(&mut self, place: usize) -> Result<(), SyscallError> {
        loop {
            let Some(connection) = &mut self.connections[place] else { return Ok(()) };
            match connection.step() {
                Step::Waits => return Ok(()),
                Step::Answered => self.answered(place),
                Step::Closed => {
                    self.forget(place);
                    return self.go_on();
                }
                Step::Failed(what) => {
                    self.forget(place);
                    self.fail(what);
                    return Ok(());
                }
            }
        }
    }

    /// Records the reply, and has the next request sent where there is one.
    fn answered(&mut self, place: usize) {
        let now = clock::monotonic();
        let window = self.job.window;
        let Some((due, left)) = self.connections[place].as_ref().map(|it| (it.due, it.left)) else {
            return;
        };
        // In an open loop, all that were due in the window count, whenever they were answered.
        let open = self.schedule.due().is_some();
        let counts = if open { due } else { now };
        if window.contains(counts) {
            self.seen.answer(now.saturating_sub(due), counts.saturating_sub(window.begin));
        }
        let next = (left > 0 && now < window.end).then(|| self.request(now, left));
        if let Some(connection) = &mut self.connections[place] {
            match next {
                Some(request) => {
                    connection.left -= 1;
                    (connection.due, connection.request) = (now, Some(request));
                    connection.received = 0;
                }
                None => connection.answered = true,
            }
        }
        if next.is_none() && left > 0 {
            // The window is over in the middle of a connection.
            self.forget(place);
        }
    }

    /// In a closed loop, the next connection.
    fn go_on(&mut self) -> Result<(), SyscallError> {
        let now = clock::monotonic();
        if self.schedule.due().is_none() && now < self.job.window.end && !self.job.stops() {
            self.connect(now)?;
        }
        Ok(())
    }

    fn fail(&mut self, what: String) {
        self.seen.fail(what);
        if self.schedule.due().is_none() {
            self.owed += 1;
            self.resume = clock::monotonic() + PAUSE;
        }
    }

    fn forget(&mut self, place: usize) {
        if self.connections[place].take().is_some() {
            self.free.push(place);
        }
    }
}

impl Connection {
    fn step(&mut self) -> Step {
        if let Some(request) = self.request {
            match (&self.socket).write(&request.encode()) {
                // It is shorter than any send buffer.
                Ok(_) => self.request = None,
                Err(error) if waits(&error) => return Step::Waits,
                Err(error) => return failed("connect or send", &error),
            }
        }
        let mut reply = [0; REPLY + 1];
        loop {
            match (&self.socket).read(&mut reply[self.received.min(REPLY)..]) {
                Ok(0) if self.answered => return Step::Closed,
                Ok(0) => return Step::Failed("closed by the server before its reply".to_owned()),
                Ok(read) => self.received += read,
                Err(error) if waits(&error) => return Step::Waits,
                Err(error) => return failed("receive", &error),
            }
            match self.received {
                REPLY => return Step::Answered,
                0..REPLY => {}
                _ => return Step::Failed("a reply that is too long".to_owned()),
            }
        }
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

fn failed(step: &str, error: &io::Error) -> Step {
    Step::Failed(format!("{step}: {error}"))
}

/// A socket on its way to the server.
fn open(address: &SockAddr) -> Result<Socket, String> {
    let of = |step: &'static str| move |error: io::Error| format!("{step}: {error}");
    let kind = Type::STREAM.nonblocking();
    let domain = Domain::from(i32::from(address.family()));
    let socket = Socket::new(domain, kind, None).map_err(of("open a socket"))?;
    // Closing sends a reset, which frees the port at once on both sides.
    socket.set_linger(Some(Duration::ZERO)).map_err(of("set SO_LINGER"))?;
    match socket.connect(address) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(of("connect")(error)),
        Ok(()) | Err(_) => Ok(socket),
    }
}
