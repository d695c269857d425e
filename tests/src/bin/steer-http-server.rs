//! One HTTP service, served in the ways that `steer-bench http` compares: `steer-http-server MODE
//! ADDRESS`. It says its process id when it listens.
//!
//! `open` serves nothing: it says how many milliseconds it took to open and steer 64 listeners, by the
//! clock and of CPU time.
#![expect(clippy::print_stdout, reason = "a command-line program speaks on stdout")]

use std::error::Error;
use std::net::SocketAddr;
use std::time::Instant;

use axum::Router;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use reuseport_tests::sys::usage;
use reuseport_user::group::{BoxError, Group, LoadGuard, Server, Stop, Worker, Workers};
use reuseport_user::rungs::Rung;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

/// Listeners of `open`.
const MANY: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, address] = arguments.as_slice() else {
        return Err("expected a mode and an address".into());
    };
    let address: SocketAddr = address.parse()?;
    match mode.as_str() {
        "multi" => multi_thread(address),
        "steered" => per_core(address, Rung::Ebpf),
        "incoming-cpu" => per_core(address, Rung::IncomingCpu),
        "hash" => per_core(address, Rung::Hash),
        "publishing" => by_hand(address, true),
        "silent" => by_hand(address, false),
        "open" => open(address),
        _ => Err(format!("no such mode: {mode}").into()),
    }
}

fn app() -> Router {
    Router::new().route("/", get(|| async { "Hello, world!" }))
}

async fn connection(stream: TcpStream, app: Router) {
    let service = TowerToHyperService::new(app);
    // A client that breaks off is no error of ours.
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// tokio's usual runtime, with one listener for all threads.
fn multi_thread(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        println!("{}", std::process::id());
        let app = app();
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(connection(stream, app.clone()));
        }
    })
}

/// The library's server.
fn per_core(address: SocketAddr, rung: Rung) -> Result<(), Box<dyn Error>> {
    let group = Group::builder().tcp(address).rung(rung).build()?;
    println!("{}", std::process::id());
    Server::new(group).serve(|_core| {
        let app = app();
        move |stream, _peer| connection(stream, app.clone())
    })?;
    Ok(())
}

/// The same with an accept loop by hand, that publishes its load or does not.
fn by_hand(address: SocketAddr, publish: bool) -> Result<(), Box<dyn Error>> {
    let group = Group::builder().tcp(address).rung(Rung::Ebpf).spill_above(1 << 20).build()?;
    println!("{}", std::process::id());
    Server::new(group).run(|worker, stop| accept(worker, stop, publish))?;
    Ok(())
}

async fn accept(mut worker: Worker, stop: Stop, publish: bool) -> Result<(), BoxError> {
    let (listener, app) = (worker.tokio_listener()?, app());
    let load = publish.then(|| worker.load_guard());
    loop {
        let (stream, _) = tokio::select! {
            () = stop.requested() => return Ok(()),
            accepted = listener.accept() => accepted?,
        };
        let in_service = load.as_ref().map(LoadGuard::enter);
        let app = app.clone();
        spawn_local(async move {
            connection(stream, app).await;
            drop(in_service);
        });
    }
}

fn open(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let cpus = reuseport_tests::cpus().into_iter().cycle().take(MANY).collect();
    let (start, before) = (Instant::now(), usage::so_far()?);
    let group =
        Group::builder().tcp(address).workers(Workers::On(cpus)).rung(Rung::Ebpf).build()?;
    let (wall, process) = (start.elapsed(), usage::so_far()?.saturating_sub(before));
    println!("{} {}", wall.as_secs_f64() * 1e3, process.as_secs_f64() * 1e3);
    drop(group);
    Ok(())
}
