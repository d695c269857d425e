//! Clients: connections from a chosen CPU, and what became of them.
//!
//! On loopback and veth the SYN is received on the CPU that sent it, so a client bound to CPU `c`
//! is a packet received on CPU `c`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;
use crate::{stuck, sys};

/// PostgreSQL's start-up message: its length, version 3.0, who to whom.
const LOGIN: &str = "\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0";

/// Where to connect and what to say.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server.
    pub address: SocketAddr,
    /// Sent after connecting; the reply is read to the server's close, which PostgreSQL's is asked
    /// for.
    pub request: &'static str,
    /// For the connection, and again for each read.
    pub timeout: Duration,
    /// Whether a timeout is a surprise, to be told with all that explains it.
    pub told: bool,
}

impl Target {
    /// A server that speaks first and closes, as the test worker does: `127.0.0.1:8080`.
    pub fn plain(address: &str) -> Self {
        let address = address.parse().unwrap_or_else(|_| panic!("{address} is no ADDR:PORT"));
        Self { address, request: "", timeout: Duration::from_secs(10), told: false }
    }

    /// A web server.
    pub fn http(address: &str) -> Self {
        Self { request: "GET / HTTP/1.0\r\nHost: test\r\n\r\n", ..Self::plain(address) }
    }

    /// PostgreSQL or a PgBouncer: login, `SELECT current_user`, logout.
    pub fn postgres(address: &str) -> Self {
        Self { request: LOGIN, ..Self::plain(address) }
    }

    /// With another timeout.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Where nothing may time out: what does is told with both its ends.
    #[must_use]
    pub fn told(self) -> Self {
        Self { told: true, ..self }
    }
}

/// Why a connection got no reply.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nobody listens, or the listener refused: a reset in answer to the SYN.
    Refused,
    /// A reset after it was established.
    Reset,
    /// Nothing came in time.
    Timeout,
    /// The server closed without a word.
    Eof,
    /// Anything else, as the kernel says it.
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Timeout,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply(pub String);

impl Reply {
    /// A field of the test worker's reply: `worker`, `pid`, `tid`, `cpu`, `incoming_cpu`.
    pub fn field(&self, name: &str) -> i64 {
        let line: Value = serde_json::from_str(&self.0).expect("a test worker's reply");
        line[name].as_i64().unwrap_or_else(|| panic!("no {name} in {line}"))
    }

    /// Who answered: the test worker's index, or the body of a web server's response.
    pub fn worker(&self) -> String {
        if let Ok(Value::Object(line)) = serde_json::from_str::<Value>(&self.0) {
            return line["worker"].to_string();
        }
        let body = self.0.split_once("\r\n\r\n").map_or(self.0.as_str(), |(_, body)| body);
        body.trim().to_owned()
    }
}

/// One connection from the calling thread: connect, request, reply, close.
pub fn exchange(target: &Target) -> Result<Reply, Failure> {
    let socket = Socket::new(Domain::for_address(target.address), Type::STREAM, None)?;
    let result = converse(&socket, target);
    if target.told && result == Err(Failure::Timeout) {
        stuck::tell(&socket, target.address);
    }
    result
}

fn converse(socket: &Socket, target: &Target) -> Result<Reply, Failure> {
    socket.connect_timeout(&target.address.into(), target.timeout)?;
    socket.set_read_timeout(Some(target.timeout))?;
    let mut stream = socket;
    stream.write_all(target.request.as_bytes())?;
    let text = if target.request == LOGIN {
        current_user(stream)?
    } else {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        text
    };
    // The server closed first; our reset clears its side, so that no port is ever used up.
    sys::reset_on_close(stream.as_fd())?;
    if text.is_empty() { Err(Failure::Eof) } else { Ok(Reply(text)) }
}

/// Asks PostgreSQL who we are, after [`LOGIN`], one message at a time as libpq does.
fn current_user(mut stream: &Socket) -> Result<String, Failure> {
    const QUERY: &[u8] = b"Q\0\0\0\x18SELECT current_user\0";
    const TERMINATE: &[u8] = b"X\0\0\0\x04";
    let mut answer = None;
    loop {
        // A type, and a length that counts itself.
        let mut head = [0; 5];
        if let Err(error) = stream.read_exact(&mut head) {
            let early = error.kind() == ErrorKind::UnexpectedEof;
            return Err(if early { Failure::Eof } else { error.into() });
        }
        let [kind, length @ ..] = head;
        let length = u32::from_be_bytes(length).saturating_sub(4);
        let mut body = Vec::new();
        stream.take(length.into()).read_to_end(&mut body)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match (kind, answer.take()) {
            (b'E', _) => return Err(Failure::Other(text(&body).replace('\0', " "))),
            // One column: a count of two bytes, a length of four, the value.
            (b'D', _) => answer = Some(text(body.get(6..).unwrap_or_default())),
            // Ready for a query.
            (b'Z', None) => stream.write_all(QUERY)?,
            (b'Z', Some(answer)) => {
                stream.write_all(TERMINATE)?;
                stream.read_to_end(&mut body)?;
                return Ok(answer);
            }
            (_, before) => answer = before,
        }
    }
}

/// One connection from `cpu` in `netns`.
pub fn connect(netns: &Netns, cpu: u32, target: &Target) -> Result<Reply, Failure> {
    netns.run_in(|| {
        sys::pin(0, &[cpu]).unwrap_or_else(|error| panic!("run on CPU {cpu}: {error}"));
        exchange(target)
    })
}

/// One datagram and its answer, from a socket of its own on the calling thread.
pub fn datagram(target: &Target) -> Result<Reply, Failure> {
    let socket = match target.address {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.set_read_timeout(Some(target.timeout))?;
    socket.connect(target.address)?;
    socket.send(b"?")?;
    let mut bytes = [0; 1024];
    let length = socket.recv(&mut bytes)?;
    Ok(Reply(String::from_utf8_lossy(&bytes[..length]).into_owned()))
}

/// `count` datagrams from `cpu` in `netns`, one after the other.
pub fn datagrams(netns: &Netns, cpu: u32, target: &Target, count: u32) -> Tally {
    repeat(netns, cpu, count, || datagram(target))
}

/// `count` connections from `cpu` in `netns`, one after the other.
pub fn burst(netns: &Netns, cpu: u32, target: &Target, count: u32) -> Tally {
    repeat(netns, cpu, count, || exchange(target))
}

fn repeat(
    netns: &Netns,
    cpu: u32,
    count: u32,
    one: impl Fn() -> Result<Reply, Failure> + Sync,
) -> Tally {
    netns.run_in(|| {
        sys::pin(0, &[cpu]).unwrap_or_else(|error| panic!("run on CPU {cpu}: {error}"));
        let mut tally = Tally::default();
        for _ in 0..count {
            tally.add(cpu, one());
        }
        tally
    })
}

/// What became of many connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Replies by the client's CPU and who answered.
    pub replies: BTreeMap<(u32, String), u64>,
    /// Connections without one, by the client's CPU and the reason.
    pub failures: BTreeMap<(u32, Failure), u64>,
}

impl Tally {
    /// Counts one more.
    pub fn add(&mut self, cpu: u32, result: Result<Reply, Failure>) {
        match result {
            Ok(reply) => *self.replies.entry((cpu, reply.worker())).or_default() += 1,
            Err(failure) => *self.failures.entry((cpu, failure)).or_default() += 1,
        }
    }

    /// Takes another tally in.
    pub fn merge(&mut self, other: Self) {
        for (key, count) in other.replies {
            *self.replies.entry(key).or_default() += count;
        }
        for (key, count) in other.failures {
            *self.failures.entry(key).or_default() += count;
        }
    }

    /// Connections that were answered.
    pub fn answered(&self) -> u64 {
        self.replies.values().sum()
    }

    /// Connections that were not.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Answered connections from `cpu`, by who answered.
    pub fn by_worker(&self, cpu: u32) -> BTreeMap<&str, u64> {
        let own = self.replies.iter().filter(|((from, _), _)| *from == cpu);
        own.map(|((_, worker), &count)| (worker.as_str(), count)).collect()
    }

    /// Share of the answered connections that `worker` of their CPU answered, 0 to 1.
    pub fn locality(&self, worker: impl Fn(u32) -> String) -> f64 {
        let local = self.replies.iter().filter(|((cpu, name), _)| *name == worker(*cpu));
        local.map(|(_, count)| count).sum::<u64>() as f64 / self.answered().max(1) as f64
    }

    /// Asserts that all were answered, and those of each CPU by `worker` of it only.
    pub fn assert_local(&self, worker: impl Fn(u32) -> String) {
        assert_eq!(self.failed(), 0, "{self}");
        assert!(self.answered() > 0, "no connection was made");
        let stray = self.replies.keys().find(|(cpu, name)| *name != worker(*cpu));
        assert_eq!(stray, None, "answered by the wrong worker: {self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((cpu, worker), count) in &self.replies {
            write!(f, "[cpu {cpu} -> worker {worker}: {count}] ")?;
        }
        for ((cpu, failure), count) in &self.failures {
            write!(f, "[cpu {cpu}: {failure:?} {count}] ")?;
        }
        Ok(())
    }
}
