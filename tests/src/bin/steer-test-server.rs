//! A server made with the library, for the tests: told on its command line what to be, it says in one
//! line of JSON what it became, answers each connection with one line of JSON, and says how it ended.
#![expect(clippy::print_stdout, reason = "a command-line program speaks on stdout")]

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use reuseport_tests::sys;
use reuseport_user::group::{Core, GroupBuilder, Server, Workers};
use reuseport_user::model::CpuSet;
use reuseport_user::rungs::Rung;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

/// What it is to be.
#[derive(Clone, Debug, Default)]
struct Options {
    builder: GroupBuilder,
    until_superseded: bool,
    drain: Option<Duration>,
    /// How long each connection is kept before it is answered.
    hold: Duration,
    /// Said first, to show that a connection is in service.
    greeting: &'static str,
    /// Leave the steering as it is, and end at once.
    persist: bool,
    /// On SIGHUP, start this program again, with what it needs to take over.
    pass: bool,
    /// Whom to become once the group is made.
    user: Option<u32>,
    /// What goes wrong.
    fault: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", json!({"error": error.to_string()}));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Value, Box<dyn Error>> {
    let options = parse(std::env::args().skip(1))?;
    if options.fault.as_deref() == Some("no-netlink") {
        sys::forbid_netlink()?;
    }
    let group = options.builder.clone().build()?;
    if let Some(uid) = options.user {
        sys::become_user(uid)?;
    }
    let addresses: Vec<String> = group.addresses().iter().map(ToString::to_string).collect();
    let notices: Vec<&str> = group.notices().iter().map(|it| it.what.as_str()).collect();
    let (pid, rung) = (std::process::id(), group.rung());
    let ready = json!({"pid": pid, "addresses": addresses, "rung": rung, "notices": notices});
    if options.persist {
        println!("{ready}");
        drop(group.persist());
        return Ok(Value::Null);
    }
    let mut next = Command::new(std::env::current_exe()?);
    next.args(std::env::args_os().skip(1));
    let passed = group.pass_to(&mut next)?;
    let starts = options.pass.then_some(next);
    let mut server = Server::new(group).until(asked(ready, starts));
    if options.until_superseded {
        server = server.until_superseded();
    }
    if let Some(limit) = options.drain {
        server = server.drain_timeout(limit);
    }
    let report = server.serve(|core| service(&core, &options));
    drop(passed);
    let report = report?;
    let cores: Vec<Value> =
        report.cores.iter().map(|it| json!([it.cpu, it.served, it.cut_off])).collect();
    Ok(json!({"reason": format!("{:?}", report.reason), "cores": cores}))
}

/// Until SIGTERM; each SIGHUP starts the `next` one. Says that it is ready when it can be told so.
async fn asked(ready: Value, mut next: Option<Command>) {
    let listen = |kind| signal(kind).expect("wait for a signal");
    let (mut terminate, mut hangup) =
        (listen(SignalKind::terminate()), listen(SignalKind::hangup()));
    println!("{ready}");
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = hangup.recv() => {
                if let Some(next) = &mut next {
                    // It outlives us, and is nobody's child then.
                    drop(next.spawn().expect("start the next one"));
                }
            }
        }
    }
}

fn service(core: &Core, options: &Options) -> impl Fn(TcpStream, SocketAddr) -> Answer + use<> {
    let panics = options.fault.as_deref() == Some("panic-core") && core.index() == 1;
    assert!(!panics, "as told");
    let (worker, cpu, slot) = (core.index(), core.cpu(), core.slot());
    let (hold, greeting, fault) = (options.hold, options.greeting, options.fault.clone());
    let pid = std::process::id();
    move |stream, _peer| {
        let line = json!({"worker": worker, "pid": pid, "cpu": cpu, "slot": slot});
        assert!(fault.as_deref() != Some("panic"), "as told");
        Box::pin(answer(stream, line, greeting, hold))
    }
}

type Answer = std::pin::Pin<Box<dyn Future<Output = ()>>>;

async fn answer(mut stream: TcpStream, mut line: Value, greeting: &str, hold: Duration) {
    // The client may be gone, here as below.
    let _sent: io::Result<()> = stream.write_all(greeting.as_bytes()).await;
    line["incoming_cpu"] = json!(sys::incoming_cpu(stream.as_fd()).ok());
    line["tid"] = json!(sys::thread_id());
    tokio::time::sleep(hold).await;
    let _sent: io::Result<()> = stream.write_all(format!("{line}\n").as_bytes()).await;
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
    let mut options = Options::default();
    for argument in arguments {
        let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
        let builder = std::mem::take(&mut options.builder);
        options.builder = match name {
            "tcp" => builder.tcp(value.parse::<SocketAddr>()?),
            "udp" => builder.udp(value.parse::<SocketAddr>()?),
            "v6only" => builder.v6only(true),
            "workers" => builder.workers(workers(value)?),
            "rung" => builder.rung(rung(value)?),
            "bpffs" => builder.bpffs(value),
            "standby" => builder.standby(),
            "beside-others" => builder.beside_others(),
            "spill" => builder.spill_above(value.parse()?),
            "backlog" => builder.backlog(value.parse()?),
            _ => {
                match name {
                    "until-superseded" => options.until_superseded = true,
                    "drain" => options.drain = Some(Duration::from_millis(value.parse()?)),
                    "hold" => options.hold = Duration::from_millis(value.parse()?),
                    "greet" => options.greeting = "\n",
                    "persist" => options.persist = true,
                    "pass" => options.pass = true,
                    "user" => options.user = Some(value.parse()?),
                    "fault" => options.fault = Some(value.to_owned()),
                    _ => return Err(format!("no such option: {argument}").into()),
                }
                builder
            }
        };
    }
    Ok(options)
}

fn workers(value: &str) -> Result<Workers, Box<dyn Error>> {
    Ok(match value.split_once(':') {
        None if value == "per-core" => Workers::PerCore,
        Some(("count", count)) => Workers::Count(count.parse()?),
        Some(("on", cpus)) => Workers::On(cpus.parse::<CpuSet>()?.iter().collect()),
        _ => return Err(format!("no such workers: {value}").into()),
    })
}

fn rung(value: &str) -> Result<Rung, Box<dyn Error>> {
    let rung = Rung::LADDER.into_iter().find(|rung| rung.name() == value);
    rung.ok_or_else(|| format!("no such rung: {value}").into())
}
