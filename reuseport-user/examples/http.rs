//! An HTTP server: axum's router behind one accept loop per core.
//!
//! Each core has a router of its own, with state that never leaves the core: no lock, no atomic.
//! Connections that are kept alive are told when the server ends, so that they end between requests.
//!
//! ```console
//! $ cargo run --example http -- 127.0.0.1:8080
//! ```
#![expect(clippy::print_stdout, reason = "an example speaks on stdout")]

use std::cell::Cell;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;

use axum::Router;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use reuseport_user::group::{Core, Group, Server, Stop};
use tokio::net::TcpStream;

fn main() -> Result<(), Box<dyn Error>> {
    let address: SocketAddr =
        std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:8080").parse()?;
    let group = Group::builder().tcp(address).build()?;
    println!("listening on {}, steered by {}", group.addresses()[0], group.rung());
    let report = Server::new(group).serve(|core| {
        let app = app(&core);
        // Not Send, and need not be.
        let requests = Rc::new(Cell::new(0_u64));
        move |stream, _peer| {
            requests.set(requests.get() + 1);
            connection(stream, app.clone(), core.stop().clone())
        }
    })?;
    println!("{report:?}");
    Ok(())
}

/// What this core answers.
fn app(core: &Core) -> Router {
    let greeting = format!("hello from CPU {}\n", core.cpu());
    Router::new().route("/", get(move || async move { greeting }))
}

async fn connection(stream: TcpStream, app: Router, stop: Stop) {
    let service = TowerToHyperService::new(app);
    let mut connection =
        pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    // What a client does wrong ends its connection and nothing else.
    tokio::select! {
        _ended = &mut connection => return,
        () = stop.requested() => connection.as_mut().graceful_shutdown(),
    }
    let _ended = connection.await;
}
