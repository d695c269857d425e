//! What a connection looks like that got no answer in time, from both of its ends: told where it
//! happens, because nobody can look later.
#![expect(clippy::print_stderr, reason = "beside the failure that it explains")]

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::Socket;

/// How much longer it is waited for: an answer that is late is another fault than none.
const LATE: Duration = Duration::from_secs(20);

/// Prints both ends of the client's `socket`, the server's listeners with their queues and what
/// their processes wait for, the kernel's counters; and whether something comes in the end.
pub fn tell(socket: &Socket, server: SocketAddr) {
    let port = socket.local_addr().ok().and_then(|it| it.as_socket()).map_or(0, |it| it.port());
    let ends = format!("( sport = :{port} or dport = :{port} )");
    let listeners = format!("sport = :{}", server.port());
    let (ends, listeners) =
        (run("ss", &["-tanpoiem", &ends]), run("ss", &["-tlnpoem", &listeners]));
    let mut text = format!("no answer from {server} on port {port}:\n{ends}{listeners}");
    for pid in pids(&listeners) {
        for what in ["wchan", "syscall", "stack"] {
            let said = fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let line = [&format!("{pid} {what}: "), said.trim(), "\n"].concat();
            text += &line;
        }
    }
    text += &run("nstat", &["-s", "--zeros=false"]);
    let since = Instant::now();
    let mut byte = [std::mem::MaybeUninit::uninit()];
    drop(socket.set_read_timeout(Some(LATE)));
    let end = socket.recv(&mut byte);
    eprintln!("{text}and {:.1?} later: {end:?}\n{}", since.elapsed(), run("ss", &["-tanpoiem"]));
}

fn run(name: &str, args: &[&str]) -> String {
    let output = Command::new(name).args(args).output();
    output.map_or_else(|error| error.to_string(), |it| String::from_utf8_lossy(&it.stdout).into())
}

/// The processes that `ss -p` names.
fn pids(text: &str) -> Vec<u32> {
    let numbers = text.split("pid=").skip(1);
    let numbers = numbers.filter_map(|it| it.split(',').next()?.parse().ok());
    let mut all: Vec<u32> = numbers.collect();
    all.sort_unstable();
    all.dedup();
    all
}
