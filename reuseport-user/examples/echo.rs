//! An echo server: one thread per core, each with its own listener and its own runtime.
//!
//! ```console
//! $ cargo run --example echo -- 127.0.0.1:7000
//! ```
#![expect(clippy::print_stdout, reason = "an example speaks on stdout")]

use std::error::Error;
use std::net::SocketAddr;

use reuseport_user::group::{Group, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn main() -> Result<(), Box<dyn Error>> {
    let address: SocketAddr =
        std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:7000").parse()?;
    let group = Group::builder().tcp(address).build()?;
    println!("listening on {}, steered by {}", group.addresses()[0], group.rung());
    let report = Server::new(group).serve(|_core| |stream, _peer| echo(stream))?;
    println!("{report:?}");
    Ok(())
}

async fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    // A client that goes away ends its connection and nothing else.
    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
        if stream.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
}
