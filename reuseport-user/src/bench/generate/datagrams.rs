//! A client thread that sends datagrams, each when the one before was answered or given up.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use super::Job;
use super::latency::Seen;
use super::schedule::{Schedule, derive};
use crate::bench::protocol::{REPLY, Request};
use crate::bench::workload::Pace;
use crate::sys::epoll::Epoll;
use crate::sys::{SyscallError, clock};

/// When a datagram counts as lost.
const LOST: Duration = Duration::from_secs(1);
const NAP: Duration = Duration::from_millis(20);

/// One flow: its source port is its own, and so is its hash.
struct Flow {
    socket: UdpSocket,
    due: Duration,
}

pub(super) fn run(job: &Job<'_>) -> Result<Seen, SyscallError> {
    let plan = job.plan;
    let Pace::Closed { connections } = plan.pace else { return Ok(Seen::new()) };
    let mut schedule =
        Schedule::new(plan.pace, 1, Duration::ZERO, derive(plan.seed, job.place as u64));
    let (epoll, mut seen) = (Epoll::new()?, Seen::new());
    let mut flows = Vec::new();
    for place in 0..job.connections(connections) {
        let call = "socket(SOCK_DGRAM)";
        let socket = open(plan.address).map_err(|source| SyscallError { call, source })?;
        epoll.add(socket.as_fd(), libc::EPOLLIN, place as u64)?;
        flows.push(Flow { socket, due: Duration::ZERO });
    }
    let mut tokens = Vec::new();
    loop {
        let now = clock::monotonic();
        if job.stops() || now >= job.window.end {
            return Ok(seen);
        }
        for flow in &mut flows {
            let late = now.saturating_sub(flow.due) >= LOST;
            if late {
                seen.unanswered += u64::from(job.window.contains(flow.due));
                send(flow, &mut schedule, job, &mut seen);
            }
        }
        epoll.wait_all(&mut tokens, Some(NAP))?;
        for &token in &tokens {
            let flow = &mut flows[token as usize];
            match flow.socket.recv(&mut [0; REPLY + 1]) {
                Ok(REPLY) => {
                    let now = clock::monotonic();
                    if job.window.contains(now) {
                        let at = now.saturating_sub(job.window.begin);
                        seen.answer(now.saturating_sub(flow.due), at);
                    }
                    send(flow, &mut schedule, job, &mut seen);
                }
                Ok(bytes) => seen.fail(format!("a reply of {bytes} bytes")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => seen.fail(format!("receive: {error}")),
            }
        }
    }
}

fn send(flow: &mut Flow, schedule: &mut Schedule, job: &Job<'_>, seen: &mut Seen) {
    flow.due = clock::monotonic();
    let work = job.plan.work.draw(schedule.rng());
    let request = Request { due: flow.due, work, last: false };
    if let Err(error) = flow.socket.send(&request.encode()) {
        seen.fail(format!("send: {error}"));
    }
}

fn open(address: std::net::SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
